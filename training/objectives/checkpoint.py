"""Checkpoints of a model that trains with objectives: the model's files hold the dual model in its usual form and
nothing else; what trains beside it stands in `objectives.safetensors`, by name.
"""

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import extract_model_from_parallel
from safetensors.torch import load_file, save_file
from torch import nn

from ..components.checked_run import CheckedRun
from ..components.run_identity import Identity
from ..components.sharded import load_whole, whole_state
from . import Weighted
from .another_run import FILE, forms
from .model import ObjectiveModel, TrainedObjective


def drawn_by(collator: Any) -> dict[str, Any]:
    """The settings of what a collator adds to the batches of another."""
    found: dict[str, Any] = {}
    while collator is not None:
        for part in (*getattr(collator, "additions", ()), getattr(collator, "targets", None)):
            settings = getattr(part, "settings", None)
            if is_dataclass(settings) and not isinstance(settings, type):
                found |= {f"{type(part).__name__}.{name}": value for name, value in asdict(settings).items()}
        collator = getattr(collator, "collator", None)
    return found


class ObjectiveCheckpoints(CheckedRun):
    """The part of `SiglipExtTrainer` that keeps objectives out of the model's files and in its checkpoints."""

    _beside: Mapping[str, Weighted] = {}
    """The objectives beside the contrastive one, by name."""

    @property
    def everything(self) -> ObjectiveModel | None:
        """The model with the objectives that have parameters, without wrappers; None without such objectives."""
        model = extract_model_from_parallel(self.model, keep_torch_compile=False)  # FSDP's may be compiled
        return model if isinstance(model, ObjectiveModel) else None

    @property
    def parts(self) -> nn.ModuleDict:
        """The objectives that have parameters or other state, by name."""
        return nn.ModuleDict() if self.everything is None else self.everything.parts

    @property
    def active_parts(self) -> tuple[str, ...]:
        """Names of those that are computed now."""
        return () if self.everything is None else self.everything.active

    def about_objectives(self) -> Identity:
        weights = {f"weight of {name}": one.weight for name, one in self._beside.items()}
        parts = {name: cast(TrainedObjective, part) for name, part in self.parts.items()}
        later = {f"starts_at of {name}": float(part.starts_at) for name, part in parts.items() if part.starts_at}
        own = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.identity().items()}
        return json.loads(json.dumps(weights | later | own | drawn_by(self.data_collator)))

    @contextmanager
    def _dual_model(self) -> Generator[None]:
        model, everything = self.model, self.everything
        if everything is not None:
            self.model = everything.model
        try:
            yield
        finally:
            self.model = model

    def save_extra(self, folder: Path) -> None:
        super().save_extra(folder)
        state = whole_state(self.parts, wanted=self.args.should_save)
        if state:
            metadata = {"objectives": " ".join(self.parts), "forms": json.dumps(forms(self.parts))}
            save_file(state, folder / FILE, metadata=metadata)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if state_dict is not None and self.everything is not None:
            # FSDP's is gathered from everything, and has its names
            named = {name.partition("."): tensor for name, tensor in state_dict.items()}
            state_dict = {name: tensor for (owner, _, name), tensor in named.items() if owner == "model"}
        with self._dual_model():
            super()._save(output_dir, state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        with self._dual_model():
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_parts(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        # accelerate's file of an FSDP run is of everything
        with nullcontext() if self.is_fsdp_enabled else self._dual_model():
            super()._load_best_model()
        if self.state.best_model_checkpoint is not None:
            self._load_parts(Path(self.state.best_model_checkpoint))

    def _load_parts(self, folder: Path) -> None:
        """
        Raises:
            ValueError: the checkpoint holds other objectives than are trained now.
        """
        path = folder / FILE
        saved: dict[str, torch.Tensor] = load_file(path) if path.is_file() else {}
        expected = self.parts.state_dict()
        differing = sorted(name for name in saved.keys() ^ expected.keys())
        differing += [name for name in saved.keys() & expected.keys() if saved[name].shape != expected[name].shape]
        if differing:
            raise ValueError(
                f"{folder} was written with other objectives, or other settings of them, than are trained now, "
                f"e.g. {differing[:3]}: resume with those of that run, or start anew from its model"
            )
        load_whole(self.parts, saved)
