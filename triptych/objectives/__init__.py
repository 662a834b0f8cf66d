"""Objectives, as functions of tensors that own no weight; feature queues and momentum encoders."""

IGNORE_INDEX = -100
"""Label of a position that no loss reads."""
