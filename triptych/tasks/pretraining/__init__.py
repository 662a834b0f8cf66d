"""Pre-training tasks, one file a system."""
