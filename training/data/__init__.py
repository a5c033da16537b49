"""Images and captions on their way to a batch."""
