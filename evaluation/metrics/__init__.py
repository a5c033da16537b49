"""Figures from embeddings: numbers in, numbers out."""
