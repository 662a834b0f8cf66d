"""Runs as Python functions: all numbers of the papers are here, with their sources."""
