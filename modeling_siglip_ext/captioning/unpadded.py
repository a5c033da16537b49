"""Texts without what changes nothing: a decoder computes each text up to its last word that counts, and no padding.

Captions are cut and padded to one length, which is several times that of most. Norms, projections and MLPs act on each
token by itself, so they are given the needed ones in one row; attention alone has them in their places.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..losses.vocabulary import counted_tokens


@dataclass(frozen=True, eq=False)
class TokenPlaces:
    """Where the tokens that are computed stand in a padded batch.

    Args:
        shape: rows and their padded length, (R, L).
        places: of the N tokens among the R·L, int64 (N,), in order, then any surplus; None for all.
    """

    shape: tuple[int, int]
    places: torch.Tensor | None = None

    def take(self, padded: torch.Tensor) -> torch.Tensor:
        """(N, ...) of (R, L, ...)."""
        tokens = padded.flatten(0, 1)
        return tokens if self.places is None else tokens.index_select(0, self.places)

    def pad(self, tokens: torch.Tensor) -> torch.Tensor:
        """(R, L, ...) of (N, ...), 0 where nothing was computed."""
        if self.places is not None:
            rows, length = self.shape
            tokens = tokens.new_zeros(rows * length, *tokens.shape[1:]).index_copy_(0, self.places, tokens)
        return tokens.unflatten(0, self.shape)

    def in_rows(self, rows: int) -> TokenPlaces:
        """The same tokens in fewer, longer rows."""
        return TokenPlaces((rows, self.shape[0] * self.shape[1] // rows), self.places)


def needed_tokens(token_weights: torch.Tensor, parallel: torch.Tensor | None = None) -> torch.Tensor:
    """Which tokens a decoder must compute for the losses of those that have a weight, (R, L) bool.

    A token sees those before it alone, so that none behind a text's last weight is needed. In parallel rows all see
    all, the padding, too, as in the original: such a row is needed whole, unless nothing in it has a weight.

    Args:
        token_weights: (R, L).
        parallel: (R,) bool.
    """
    weighted = token_weights != 0
    needed = weighted.flip(1).cumsum(1).flip(1) > 0
    if parallel is not None:
        needed |= parallel.bool()[:, None] & weighted.any(1, keepdim=True)
    return needed


def without_padding(
    token_weights: torch.Tensor, parallel: torch.Tensor | None = None, count: int | None = None
) -> tuple[TokenPlaces, torch.Tensor]:
    """The places of the needed tokens; of all where a graph is compiled for one shape, as on TPUs.

    Args:
        token_weights, parallel: as for `needed_tokens`.
        count: how many tokens are needed, or a number that is larger, where the host knows it. By default they are
            counted, which waits for an accelerator.

    Returns:
        The places, and whether some that are needed are not among them: a scalar on the device.
    """
    shape = (token_weights.shape[0], token_weights.shape[1])
    if torch.compiler.is_compiling() or token_weights.device.type == "xla":
        return TokenPlaces(shape), torch.zeros((), dtype=torch.bool, device=token_weights.device)
    places, missed = counted_tokens(needed_tokens(token_weights, parallel).flatten(), count)
    return TokenPlaces(shape, places), missed
