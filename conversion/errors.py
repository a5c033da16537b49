"""What a conversion raises about its input."""


class CheckpointError(ValueError):
    """A checkpoint that is not what it claims to be; the message names the thing and what to do."""


class AnotherFileError(CheckpointError):
    """A checkpoint that is sound, but not the released file that its name says."""


class VerificationError(RuntimeError):
    """A result that differs from its source."""
