"""Train with several processes: start and join them, and let them communicate."""
