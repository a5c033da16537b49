"""Checkpoints of the original JAX code."""
