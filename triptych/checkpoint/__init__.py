"""What a run writes to go on from (`run`), and what a model is shared as (`model_folder`)."""
