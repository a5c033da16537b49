"""Towers that are not SigLIP's: any transformers image or text model, through one adapter.

A frozen DINOv2 or ViT under a new text tower is LiT; BERT is LiT's text tower. The foreign model stands as it is at
`vision_model` or `text_model`, so its parameter names stay its own; the adapter beside it makes an embedding of what
it returns.
"""

import inspect

import torch
from torch import nn
from transformers import MODEL_MAPPING
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel

from .pooling import POOLINGS


MAIN_INPUT = {"vision": "pixel_values", "text": "input_ids"}


def tower_width(config: PreTrainedConfig) -> int:
    """Channels of a tower's token states."""
    width = getattr(config, "hidden_size", None) or (getattr(config, "hidden_sizes", None) or [None])[-1]
    if width is None:
        raise ValueError(f"a {config.model_type!r} configuration names no hidden_size, so it cannot be a tower")
    return width


def tower_arguments(config: PreTrainedConfig, pooling: str) -> dict[str, bool]:
    """Leaves out a pooling layer that nothing would use: DDP stumbles over parameters without a gradient."""
    model_class = MODEL_MAPPING.get(type(config), None)
    optional = inspect.isclass(model_class) and "add_pooling_layer" in inspect.signature(model_class).parameters
    return {"add_pooling_layer": False} if optional and pooling != "pooler" else {}


class ForeignTowerAdapter(nn.Module):
    """From the output of a foreign tower to an embedding: its own pooled output or a pooling of ours, then a head.

    Args:
        tower: The foreign model; it is looked at here, and passed again to every call.
        kind: "vision" or "text".
        pooling: "pooler" for the tower's own `pooler_output`, or "first", "last", "mean", "max" over its tokens.
        projection_size: Width of a linear head; None for none.

    Raises:
        ValueError: The tower takes other inputs, or lacks the output that the pooling needs.
    """

    def __init__(self, tower: PreTrainedModel, kind: str, pooling: str, projection_size: int | None):
        super().__init__()
        name = type(tower).__name__
        if tower.main_input_name != MAIN_INPUT[kind]:
            raise ValueError(f"{name} takes {tower.main_input_name}, a {kind} tower must take {MAIN_INPUT[kind]}")
        signature = inspect.signature(tower.forward)
        annotation = str(signature.return_annotation)
        if pooling == "pooler" and "Output" in annotation and "Pooling" not in annotation:
            raise ValueError(f'{name} has no pooled output; set {kind}_pooling to "first", "last", "mean" or "max"')
        self.accepts = frozenset(signature.parameters)
        self.kind = kind
        self.pad_token_id = getattr(tower.config, "pad_token_id", None)
        self.max_length = getattr(tower.config, "max_position_embeddings", None) if kind == "text" else None
        self.pooling = None if pooling == "pooler" else POOLINGS[pooling](tower.config)
        self.projection = None
        if projection_size is not None:
            self.projection = nn.Linear(tower_width(tower.config), projection_size)

    def forward(
        self, tower: PreTrainedModel, inputs: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            inputs: Images (B, 3, H, W) or token ids (B, L).
            attention_mask: 1 for tokens, 0 for padding, (B, L); made from the tower's `pad_token_id` if not given.
            kwargs: Further inputs of the tower; those that are None or False are left out.

        Returns:
            The tower's output with `pooler_output` (B, E), the embedding before normalisation.
        """
        if self.kind == "text":
            attention_mask = self.text_mask(inputs, attention_mask)
            kwargs["attention_mask"] = attention_mask if "attention_mask" in self.accepts else None
        kwargs = {key: value for key, value in kwargs.items() if value is not None and value is not False}
        # With a mask transformers asks the device whether it hides anything, to leave it out where it does not: for
        # towers of its own that is one wait a forward.
        outputs = tower(**{MAIN_INPUT[self.kind]: inputs}, **kwargs)
        hidden_states = outputs.last_hidden_state
        if hidden_states.ndim == 4:  # convolutional towers: (B, D, H, W)
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        if self.pooling is not None:
            pooled = self.pooling(hidden_states, attention_mask)
        elif getattr(outputs, "pooler_output", None) is None:
            raise ValueError(f"{type(tower).__name__} gave no pooled output; set {self.kind}_pooling to another one")
        else:
            pooled = outputs.pooler_output.flatten(1)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden_states,
            pooler_output=pooled if self.projection is None else self.projection(pooled),
            hidden_states=getattr(outputs, "hidden_states", None),
            attentions=getattr(outputs, "attentions", None),
        )

    def text_mask(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
        if self.max_length is not None and input_ids.shape[-1] > self.max_length:
            raise ValueError(
                f"input_ids has {input_ids.shape[-1]} tokens, the text tower takes at most {self.max_length}: "
                f"tokenize with max_length={self.max_length}, truncation=True"
            )
        if attention_mask is None and self.pad_token_id is not None:
            attention_mask = input_ids.ne(self.pad_token_id).long()
        return attention_mask
