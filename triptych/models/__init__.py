"""The systems: one folder each, made of the same blocks."""
