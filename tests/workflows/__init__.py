"""Recipes and what is done with them, end to end on small written scenes."""
