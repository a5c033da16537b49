"""The released files: what is known of each, and their cards."""
