"""Fine-tuning tasks, one file a task."""
