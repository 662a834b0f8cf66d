"""Batch jobs: a model asked about a dataset of any size, into parquet, in one process or on Ray."""
