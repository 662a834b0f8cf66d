"""Runs as Python functions: every paper number lives here, with its source."""
