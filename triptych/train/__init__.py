"""Training of any Task: the loop, AdamW, schedules, precision, logs, clean stops and resuming."""
