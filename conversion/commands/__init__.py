"""The commands of `siglip-ext-convert`, one a file."""
