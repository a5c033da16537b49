"""What the Trainer is made of, one concern a file."""
