"""What a conversion raises about its input."""


class CheckpointError(ValueError):
    """A checkpoint that is not what it claims to be; the message names the thing and what to do."""


class VerificationError(RuntimeError):
    """A result that differs from its source."""
