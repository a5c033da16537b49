"""Captioning: a decoder on the image tower's tokens learns to write each image's texts (CapPa, LocCa, SigLIP 2).

The loss of a text is the mean over its weighted tokens, as in big_vision; that of an example the mean over tasks; that
of a batch the mean over examples, to which a text without weight adds nothing. So it is separable over examples, and a
batch may be cut into chunks. Facts: `utils.weighted_softmax_xent` and `trainers/proj/cappa` in big_vision.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from modeling_siglip_ext.captioning import CaptionDecoder, decoder_inputs
from modeling_siglip_ext.losses.vocabulary import vocabulary_loss


class CaptionLoss(NamedTuple):
    loss: torch.Tensor
    """Scalar: the mean over examples of the weighted sum over tasks."""
    by_text: torch.Tensor
    """(B, T), the mean loss of each text's tokens, without graph; 0 for texts without weight."""


def caption_loss(
    decoder: CaptionDecoder,
    encoded: torch.Tensor,
    labels: torch.Tensor,
    token_weights: torch.Tensor | None = None,
    parallel: torch.Tensor | None = None,
    *,
    encoded_mask: torch.Tensor | None = None,
    task_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
    chunk_tokens: int | None = None,
) -> CaptionLoss:
    """The loss of T texts for each image.

    Args:
        encoded: the image tower's tokens after its last norm, (B, N, E).
        labels: (B, T, L) int64, padded.
        token_weights: of the labels, 0 for prefixes and padding; by default 1 for all but padding.
        parallel: which texts are predicted in parallel, (B, T) bool; none by default.
        encoded_mask: True for tokens of the image, (B, N).
        task_weights: of the T texts; 1/T each by default.
        label_smoothing: this much of each target is shared by the other words.
        chunk_tokens: see `vocabulary_loss`.

    Raises:
        ValueError: shapes that do not fit.
    """
    batch, texts, _ = labels.shape
    if token_weights is None:
        token_weights = labels != decoder.config.pad_token_id
    if len(encoded) != batch or token_weights.shape != labels.shape:
        raise ValueError(
            f"labels {tuple(labels.shape)} need as many weights and images, got {tuple(token_weights.shape)} and "
            f"{len(encoded)}"
        )
    if task_weights is None:
        task_weights = [1 / texts] * texts
    elif len(task_weights) != texts:
        raise ValueError(f"{len(task_weights)} task_weights for {texts} tasks")
    rows = labels.flatten(0, 1)
    row_parallel = None if parallel is None else parallel.flatten()
    inputs = decoder_inputs(rows, decoder.config, row_parallel)
    states = decoder(inputs, encoded, row_parallel, encoded_mask)

    weights = token_weights.to(torch.promote_types(states.dtype, torch.float32))
    means = weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    shares = means * weights.new_tensor(list(task_weights))[:, None] / batch
    output = decoder.output
    loss, token_losses = vocabulary_loss(
        states.flatten(0, 1),
        output.weight,
        output.bias,
        rows.flatten(),
        shares.flatten(),
        label_smoothing=label_smoothing,
        chunk_tokens=chunk_tokens,
    )
    return CaptionLoss(loss, (token_losses.view(labels.shape) * means).sum(-1))


class Captioning(nn.Module):
    """The objective, and the module that owns its parameters: called as any objective, within the model's forward.

    It needs batches with `caption_labels`, `caption_weights` and `caption_parallel`, see `CaptioningCollator`.

    Args:
        decoder: see `CaptionDecoder`.
        task_weights: of the texts in a batch; the mean by default, so that captioning weighs as much as another loss.
        label_smoothing, chunk_tokens: see `caption_loss`.
    """

    def __init__(
        self,
        decoder: CaptionDecoder,
        *,
        task_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        chunk_tokens: int | None = None,
    ):
        super().__init__()
        self.decoder = decoder
        self.settings: dict[str, Any] = {
            "task_weights": task_weights,
            "label_smoothing": label_smoothing,
            "chunk_tokens": chunk_tokens,
        }

    def forward(self, outputs: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
        """The loss of a batch, a mean over its examples; see `losses`."""
        return self.losses(outputs, inputs).loss

    def losses(self, outputs: Any, inputs: Mapping[str, Any]) -> CaptionLoss:
        """The loss, and that of every text for the logs.

        Args:
            outputs: of the dual model, or of an image tower alone.
            inputs: the batch.

        Raises:
            ValueError: the batch has no captions for a decoder.
        """
        if "caption_labels" not in inputs:
            raise ValueError("the batch has no caption_labels: wrap the data collator in a CaptioningCollator")
        tower = getattr(outputs, "vision_model_output", outputs)
        return caption_loss(
            self.decoder,
            tower.last_hidden_state,
            inputs["caption_labels"],
            inputs["caption_weights"],
            inputs["caption_parallel"],
            encoded_mask=inputs.get("pixel_attention_mask"),
            **self.settings,
        )
