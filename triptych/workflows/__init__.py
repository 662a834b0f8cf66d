"""What is done with recipes: running, stages, evaluation, import and export, and the demo."""
