"""Model card templates, kept as package data."""
