"""Foundations that every other room may use: configs, registry, outputs, random state, errors."""
