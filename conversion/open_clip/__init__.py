"""Checkpoints of open_clip."""
