"""Captioning: a decoder on the image tower's tokens learns to write each image's texts (CapPa, LocCa, SigLIP 2).

The loss of a text is the mean over its weighted tokens, as in big_vision; that of an example the mean over tasks; that
of a batch the mean over examples, to which a text without weight adds nothing. So it is separable over examples, and a
batch may be cut into chunks. Facts: `utils.weighted_softmax_xent` and `trainers/proj/cappa` in big_vision.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from modeling_siglip_ext.captioning import CaptionDecoder, decoder_inputs
from modeling_siglip_ext.captioning.unpadded import without_padding
from modeling_siglip_ext.losses.vocabulary import vocabulary_loss

from ..components.sharded import whole_state
from .model import TrainedObjective


@dataclass(frozen=True)
class CaptionLossSettings:
    """
    Args:
        task_weights: of the tasks, in their order in the batch; by default their mean, so that captioning weighs as
            much as another loss.
        label_smoothing: this much of each target is shared by the other words.
        chunk_tokens: tokens whose logits exist at once, see `vocabulary_loss`.

    Raises:
        ValueError: settings out of range.
    """

    task_weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0
    chunk_tokens: int | None = None

    def __post_init__(self) -> None:
        weights = self.task_weights
        if weights is not None and not (any(weights) and all(0 <= weight < float("inf") for weight in weights)):
            raise ValueError(f"task_weights must not be negative, and not all be 0, got {list(weights)}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be at least 0 and below 1, got {self.label_smoothing}")
        if self.chunk_tokens is not None and self.chunk_tokens < 1:
            raise ValueError(f"chunk_tokens must be at least 1, got {self.chunk_tokens}")


class CaptionLoss(NamedTuple):
    loss: torch.Tensor
    """Scalar: the mean over examples of the weighted sum over tasks."""
    by_text: torch.Tensor
    """(B, T), the mean loss of each text's tokens, without graph; 0 for texts without weight."""


PLAIN = CaptionLossSettings()


def caption_loss(
    decoder: CaptionDecoder,
    encoded: torch.Tensor,
    labels: torch.Tensor,
    token_weights: torch.Tensor | None = None,
    parallel: torch.Tensor | None = None,
    *,
    encoded_mask: torch.Tensor | None = None,
    counted: int | None = None,
    computed: int | None = None,
    settings: CaptionLossSettings = PLAIN,
) -> CaptionLoss:
    """The loss of T texts for each image.

    Args:
        encoded: the image tower's tokens after its last norm, (B, N, E).
        labels: (B, T, L) int64, padded.
        token_weights: of the labels, 0 for prefixes and padding; by default 1 for all but padding.
        parallel: which texts are predicted in parallel, (B, T) bool; none by default.
        encoded_mask: True for tokens of the image, (B, N).
        counted: how many tokens have a weight, see `vocabulary_loss`.
        computed: how many tokens the decoder must compute for these, see `without_padding`. With too small a number
            of either kind the loss is NaN.
        settings: weights of the tasks and more.

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
    task_weights = settings.task_weights or (1 / texts,) * texts
    if len(task_weights) != texts:
        raise ValueError(f"{len(task_weights)} task_weights for {texts} tasks")
    rows = labels.flatten(0, 1)
    row_parallel = None if parallel is None else parallel.flatten()
    inputs = decoder_inputs(rows, decoder.config, row_parallel)
    tokens, missed = without_padding(token_weights.flatten(0, 1), row_parallel, computed)
    states = decoder(inputs, encoded, row_parallel, encoded_mask, tokens)

    weights = token_weights.to(torch.promote_types(states.dtype, torch.float32))
    means = weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    # task by task, because a tensor of numbers from the host would wait for the device
    shares = torch.stack([part * (weight / batch) for part, weight in zip(means.unbind(1), task_weights)], 1)
    output = decoder.output
    loss, token_losses = vocabulary_loss(
        states,
        output.weight,
        output.bias,
        tokens.take(rows),
        tokens.take(shares.flatten(0, 1)),
        label_smoothing=settings.label_smoothing,
        chunk_tokens=settings.chunk_tokens,
        counted=counted,
    )
    by_text = (tokens.pad(token_losses).view(labels.shape) * means).sum(-1)
    return CaptionLoss(loss.masked_fill(missed, torch.nan), by_text)


class Captioning(TrainedObjective):
    """The objective, and the module that owns its parameters.

    It needs batches with `caption_labels`, `caption_weights` and `caption_parallel`, see `CaptioningCollator`. With
    `caption_counts` and `caption_lengths`, for each image the number of its tokens that have a weight and of those
    that the decoder computes, the device is not asked for them; a compiled model asks it once a step nevertheless.
    Whoever changes labels or weights of a batch leaves both out.

    Args:
        decoder: see `CaptionDecoder`.
        settings: weights of the tasks and more.
    """

    inputs = ("caption_labels", "caption_weights", "caption_parallel", "caption_counts", "caption_lengths")
    shardable = True

    def __init__(self, decoder: CaptionDecoder, settings: CaptionLossSettings = PLAIN):
        super().__init__()
        self.decoder = decoder
        self.settings = settings

    def identity(self) -> dict[str, Any]:
        own = {"task_weights": self.settings.task_weights, "label_smoothing": self.settings.label_smoothing}
        return own | asdict(self.decoder.config)

    def form(self) -> dict[str, Any]:
        config = asdict(self.decoder.config)
        written = config.pop("text_format")
        del config["dropout"]  # changes what is learnt, and not what it means
        return config | written

    def whole_decoder(self) -> CaptionDecoder:
        """The decoder by itself on the host, to be saved; under FSDP every process must call this.

        Where no copy is needed it shares the memory of the one that is trained.
        """
        with torch.device("meta"):
            decoder = CaptionDecoder(self.decoder.config)
        decoder.load_state_dict(whole_state(self.decoder), assign=True)
        return decoder

    def forward(self, core: nn.Module, outputs: Any, batch: Mapping[str, Any]) -> torch.Tensor:
        """The loss of a batch, a mean over its examples; see `losses`."""
        return self.losses(outputs, batch).loss

    def losses(self, outputs: Any, inputs: Mapping[str, Any]) -> CaptionLoss:
        """The loss, and that of every text for the logs.

        Args:
            outputs: of the dual model, or of an image tower alone.
            inputs: the batch.

        Raises:
            ValueError: the batch has no captions for a decoder, or the outputs no tokens of images.
        """
        if "caption_labels" not in inputs:
            raise ValueError("the batch has no caption_labels: wrap the data collator in a CaptioningCollator")
        tower = getattr(outputs, "vision_model_output", outputs)
        tokens = getattr(tower, "last_hidden_state", None)
        if tokens is None or tokens.ndim != 3:
            raise ValueError("captioning reads the image tower's tokens, and the outputs have none")
        counts, lengths = inputs.get("caption_counts"), inputs.get("caption_lengths")
        if torch.compiler.is_compiling():  # numbers of the host are constants of a graph, which is to serve all steps
            counts = lengths = None
        return caption_loss(
            self.decoder,
            tokens,
            inputs["caption_labels"],
            inputs["caption_weights"],
            inputs["caption_parallel"],
            encoded_mask=inputs.get("pixel_attention_mask"),
            counted=None if counts is None else sum(counts),
            computed=None if lengths is None else sum(lengths),
            settings=self.settings,
        )
