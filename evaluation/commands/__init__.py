"""The commands of `siglip-ext-eval`, one a file."""
