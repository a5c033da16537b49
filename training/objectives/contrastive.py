"""Which image belongs to which text: the loss over all pairs of the global batch, at once or in chunks."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from modeling_siglip_ext.losses import sigmoid_loss, softmax_loss
from modeling_siglip_ext.modeling_siglip_ext import SiglipExtModel

from ..components.grad_cache import CachedStep, cached_backward, check_chunkable, split_batch
from ..components.towers import loss_head


PAIRS = "pair_ids"
LOSSES = {"sigmoid": sigmoid_loss, "softmax": softmax_loss}


class Contrastive:
    """The loss that the model's config names (`loss_type`); the sigmoid loss for models that name none.

    Args:
        core: gives the model without wrappers, `core_model`. Trainer may put another in its place.

    Raises:
        TypeError: for a model without `logit_scale` and `logit_bias`.
    """

    def __init__(self, core: Callable[[], nn.Module]):
        self.core = core
        model = core()
        missing = [name for name in ("logit_scale", "logit_bias") if not hasattr(model, name)]
        if missing:
            raise TypeError(
                f"{type(model).__name__} has no {' and no '.join(missing)}: the sigmoid loss needs a "
                "dual-tower model such as SiglipExtModel or SiglipModel"
            )
        self.name = "softmax" if getattr(model.config, "loss_type", None) == "softmax" else "sigmoid"
        self.loss: Callable[..., torch.Tensor] = LOSSES[self.name]
        """(image_embeds, text_embeds, logit_scale, logit_bias, pair_ids=) → scalar, of the default group's batch."""

    @property
    def forward_options(self) -> dict[str, bool]:
        """How the forward is to be called for `__call__`.

        SiglipExtModel computes the loss in its forward, while FSDP has its parameters whole, and builds no logits
        then. Others have no loss over the global batch to give.
        """
        return {"return_loss": True} if isinstance(self.core(), SiglipExtModel) else {}

    def forward_inputs(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What the forward is to be called with for `__call__`; other models than ours know no `pair_ids`."""
        ours = isinstance(self.core(), SiglipExtModel)
        return {name: value for name, value in inputs.items() if ours or name != PAIRS} | self.forward_options

    def __call__(self, outputs, inputs: Mapping[str, Any]) -> torch.Tensor:
        """From outputs with `image_embeds` and `text_embeds` (B, D), normalised, and `pair_ids` among the inputs."""
        core = self.core()
        if isinstance(core, SiglipExtModel):
            return outputs.loss
        # A stock forward builds its small local logits from logit_scale and logit_bias, too; their gradients come from
        # the line below alone. DDP reduces them all the same: its hooks sit on the parameters.
        return self.loss(outputs.image_embeds, outputs.text_embeds, *loss_head(core), pair_ids=inputs.get(PAIRS))

    def in_chunks(self, model: nn.Module, batch: Mapping[str, Any], size: int, **settings: Any) -> CachedStep:
        """The same loss of all chunks together by the gradient cache, which leaves the gradients in the parameters.

        Args:
            model: as it is wrapped by DDP, FSDP or torch.compile.
            batch: inputs of the forward of this process, `pair_ids` on its device.
            size: pairs in a chunk.
            settings: see `cached_backward`.

        Raises:
            ValueError: for a tower whose output for one example depends on the others in its chunk.
        """
        core = self.core()
        check_chunkable(core)
        group = getattr(core, "loss_group", None)
        loss = partial(self.loss, group=group, pair_ids=batch.get(PAIRS))
        inputs = {name: value for name, value in batch.items() if name not in ("return_loss", PAIRS)}
        return cached_backward(model, core, split_batch(inputs, size), loss, **settings)
