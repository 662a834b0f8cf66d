"""The papers' evaluations as data: their benchmarks, and every number of their tables."""
