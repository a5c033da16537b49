"""Random numbers that follow from (key, what for, index) by whole-number arithmetic: the same everywhere.

No generator is carried along, so any scene can be drawn without those before it, and many at once. NumPy may change
its distributions from one version to the next; these do not.
"""

import hashlib

import numpy as np


_STEP = np.uint64(0x9E3779B97F4A7C15)


class Draws:
    """
    Args:
        key: with the same one all draws are the same.
    """

    def __init__(self, key: str):
        self._key = key

    def under(self, purpose: str) -> "Draws":
        """Others, for a part of the work."""
        return Draws(f"{self._key}/{purpose}")

    def __call__(self, purpose: str, indices: np.ndarray, count: int) -> np.ndarray:
        """Numbers from 0 up to 2**62, int64 (N, count), for indices (N,)."""
        digest = hashlib.blake2b(f"{self._key}/{purpose}".encode(), digest_size=8).digest()
        start = np.uint64(int.from_bytes(digest, "little"))
        rows = mixed(start + indices.astype(np.uint64) * _STEP)
        numbers = mixed(rows[:, None] + (np.arange(count, dtype=np.uint64) + np.uint64(1)) * _STEP)
        return (numbers >> np.uint64(2)).astype(np.int64)


def mixed(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer, uint64 to uint64 (Steele, Lea and Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
