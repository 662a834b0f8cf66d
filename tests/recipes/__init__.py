"""Recipes, end to end on small written scenes."""
