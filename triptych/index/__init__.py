"""Indices of images: built once from any dataset, searched by words and by image."""
