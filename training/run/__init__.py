"""One training run from a recipe."""
