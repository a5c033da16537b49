"""Images of different sizes in one row of tokens instead of a padded batch ("Patch n' Pack", arXiv 2307.06304).

Patch embedding, norms, MLPs and projections then compute what there is and no padding. Attention stays within each
image: by flash attention's kernels for sequences of varying length where those were chosen, else by one call of the
chosen backend for all images of one length. The images lie in the row in the order of their lengths, so the tokens of
such a group are a view. On a CPU the block masks of flex attention take three times as long, nested tensors ten times;
where flex attention was chosen, it is for padded images.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling


@dataclass
class UnpaddedOutput(BaseModelOutputWithPooling):
    """What the vision tower returns with `unpadded_output=True`.

    Args:
        last_hidden_state: Tokens of all images, image after image, (T, D).
        pooler_output: One vector for each image (B, E). With pooling "none" None, or (T, projection_size) where the
            config has a projection.
        cu_seqlens: (B + 1,), int32: the tokens of image i are the rows cu_seqlens[i] to cu_seqlens[i + 1] − 1.
    """

    cu_seqlens: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class Packing:
    """How the images of a batch lie in one row.

    Args:
        grids: Rows and columns of patches of each image, in the order of the row.
        groups: For each group of images of equal length their number and that length.
        tokens: Where each token of the row lies in the padded batch, as an index into its B·L tokens, (T,), int64.
        places: Where each image of the batch lies in the row, (B,), int64.
        cu_seqlens: Where the images begin in the row, and its length, (B + 1,), int32.
        batch_shape: Images and padded length of the batch, (B, L).
    """

    grids: list[tuple[int, int]]
    groups: list[tuple[int, int]]
    tokens: torch.Tensor
    places: torch.Tensor
    cu_seqlens: torch.Tensor
    batch_shape: tuple[int, int]

    def pack(self, batch: torch.Tensor) -> torch.Tensor:
        """The row (1, T, D) of a padded batch (B, L, D)."""
        return batch.flatten(0, 1).index_select(0, self.tokens.to(batch.device))[None]

    def pad(self, row: torch.Tensor) -> torch.Tensor:
        """The batch (B, L, D) of a row (1, T, D), zero where it is padded."""
        images, length = self.batch_shape
        batch = row.new_zeros(images * length, row.shape[-1])
        return batch.index_copy(0, self.tokens.to(row.device), row[0]).view(images, length, -1)

    def in_batch_order(self, row: torch.Tensor) -> torch.Tensor:
        """The row (1, T, D) with the images in the order of the batch, (T, D)."""
        return row[0].index_select(0, self.tokens.argsort().to(row.device))

    def images_in_batch_order(self, images: torch.Tensor) -> torch.Tensor:
        """What there is of each image (B, ...), from the order of the row to that of the batch."""
        return images.index_select(0, self.places.to(images.device))

    def split(self, row: torch.Tensor, *, pooled: bool = False) -> list[torch.Tensor]:
        """The groups (images, tokens, ...) of a row (1, T, ...); or (images, 1, ...) of (1, B, ...), if it is pooled.

        Views, split in one operation: each slice of its own would have a gradient as large as the row.
        """
        shapes = [(images, 1 if pooled else length) for images, length in self.groups]
        pieces = row[0].split([images * length for images, length in shapes])
        return [piece.unflatten(0, shape) for piece, shape in zip(pieces, shapes)]

    # compiled layers break here: the groups differ from batch to batch, and would be compiled anew for each
    @torch.compiler.disable
    def attend(
        self,
        backend: Callable[..., tuple[torch.Tensor, torch.Tensor | None]],
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        flash: bool,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attention within each image.

        Args:
            backend: An attention function of transformers' interface.
            query: (1, H, T, h); or (1, H, B, h), one for each image.
            key, value: (1, H, T, h).
            flash: Whether the backend takes sequences of varying length in one row, as flash attention's do.

        Returns:
            (1, T or B, H, h), and no weights.
        """
        pooled = query.shape[2] != key.shape[2]
        if flash:
            starts = self.cu_seqlens.to(query.device)
            longest = self.groups[-1][1]
            return backend(
                module,
                query,
                key,
                value,
                None,
                cu_seq_lens_q=torch.arange(len(starts), dtype=torch.int32, device=starts.device) if pooled else starts,
                cu_seq_lens_k=starts,
                max_length_q=1 if pooled else longest,
                max_length_k=longest,
                **kwargs,
            )
        queries = self.split(query.transpose(1, 2), pooled=pooled)
        keys, values = (self.split(states.transpose(1, 2)) for states in (key, value))
        attended = [
            backend(module, *(states.transpose(1, 2) for states in group), None, **kwargs)[0].flatten(0, 1)
            for group in zip(queries, keys, values)
        ]
        return torch.cat(attended)[None], None


def on_device(numbers: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Numbers of the host, copied without waiting for what an accelerator is doing; others as they are."""
    accelerator = torch.accelerator.current_accelerator()
    pinned = accelerator is not None and numbers.device.type == "cpu" and device.type == accelerator.type != "mps"
    return numbers.pin_memory().to(device, non_blocking=True) if pinned else numbers.to(device)


def pack_images(grids: list[tuple[int, int]], length: int, device: torch.device) -> Packing:
    """The packing of a batch of images with these rows and columns of patches, each padded to `length` patches."""
    order = sorted(range(len(grids)), key=lambda image: (grids[image][0] * grids[image][1], grids[image]))
    in_row = [grids[image] for image in order]
    lengths = [height * width for height, width in in_row]
    places = torch.tensor(order).argsort()
    starts = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    tokens = torch.cat([torch.arange(count) + image * length for image, count in zip(order, lengths)])
    return Packing(
        grids=in_row,
        groups=[(len(list(group)), count) for count, group in itertools.groupby(lengths)],
        tokens=on_device(tokens, device),
        places=on_device(places, device),
        cu_seqlens=on_device(starts, device),
        batch_shape=(len(grids), length),
    )


# How the tokens of a batch lie: packed; padded to (B, L, D), with a mask (B, L) of booleans; or all of one length.
Layout = Packing | torch.Tensor | None


def padded(
    states: torch.Tensor, pooled: torch.Tensor | None, layout: Layout, *, pooled_tokens: bool
) -> BaseModelOutputWithPooling:
    """The tower's output in the stock classes' shapes; `pooled_tokens` says that `pooled` holds tokens, not images."""

    def arrange(tokens: torch.Tensor) -> torch.Tensor:
        return layout.pad(tokens) if isinstance(layout, Packing) else tokens

    if pooled is not None and pooled_tokens:
        pooled = arrange(pooled)
    return BaseModelOutputWithPooling(last_hidden_state=arrange(states), pooler_output=pooled)


def unpadded(
    states: torch.Tensor, pooled: torch.Tensor | None, layout: Layout, *, pooled_tokens: bool
) -> UnpaddedOutput:
    """The tower's output without padding; arguments as for `padded`."""

    def arrange(tokens: torch.Tensor) -> torch.Tensor:
        if isinstance(layout, Packing):
            return layout.in_batch_order(tokens)
        return tokens.flatten(0, 1) if layout is None else tokens[layout]

    if pooled is not None and pooled_tokens:
        pooled = arrange(pooled)
    if isinstance(layout, Packing):
        lengths = layout.images_in_batch_order(layout.cu_seqlens.diff())
    elif layout is None:
        lengths = torch.full(states.shape[:1], states.shape[1], device=states.device)
    else:
        lengths = layout.sum(dim=1)
    cu_seqlens = nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    return UnpaddedOutput(last_hidden_state=arrange(states), pooler_output=pooled, cu_seqlens=cu_seqlens)
