"""What a dataset hides from a model that trains on it."""
