"""A checkpoint of open_clip: a CustomTextCLIP with a SigLIP image tower of timm, fixed size or NaFlex."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeling_siglip_ext import SiglipExtConfig

from ..checkpoint import Choices, Facts, Tokenizer
from ..containers.arrays import Arrays, count_values, types_line
from ..containers.sources import Source
from ..errors import CheckpointError
from ..name_map import unclaimed
from ..plan import AnyConfig, Plan, constants_for
from ..released.catalogue import tokenizers
from ..resize import changes_between
from .config import CONFIG, describe_open_clip, read_config
from .names import open_clip_rules


SIGN = "visual.trunk of open_clip"
WEIGHTS = "open_clip_model.safetensors"
FILES = (WEIGHTS, CONFIG)


@dataclass(frozen=True)
class OpenClipCheckpoint:
    """See `Checkpoint`.

    Args:
        source: The file.
        config: What the tensors and the settings tell.
        settings: `open_clip_config.json`; empty where there is none.
    """

    source: Source
    config: SiglipExtConfig
    settings: dict[str, Any]
    text_length: None = None

    @property
    def arrays(self) -> Arrays:
        return self.source.arrays

    @property
    def tokenizer(self) -> Tokenizer | None:
        size = getattr(self.config.text_config, "vocab_size", None)
        return next((known for known in tokenizers().values() if known.vocab_size == size), None)

    @property
    def facts(self) -> Facts:
        resample = self.settings.get("preprocess_cfg", {}).get("interpolation")
        # bicubic is open_clip's default
        return Facts({"kind": "open_clip"}, resample="bilinear" if resample == "bilinear" else "bicubic")

    def plan(self, config: AnyConfig) -> Plan:
        table = open_clip_rules(self.config)
        unknown = unclaimed(self.arrays, table)
        if unknown:
            raise CheckpointError(f"nothing here understands {', '.join(unknown[:5])}")
        missing = sorted({slot.name for rule in table for slot in rule.slots} - set(self.arrays))
        if missing:
            raise CheckpointError(f"the checkpoint has no {', '.join(missing[:5])}")
        return Plan(config, table, changes_between(self.config, config), constants_for(self.config, config))

    def lines(self) -> list[str]:
        return [f"parameters: {count_values(self.arrays):,}", f"tensors: {types_line(self.arrays)}"]


def claims(arrays: Arrays) -> bool:
    return any(name.startswith("visual.trunk.") for name in arrays)


def read(source: Source, *, origin: str | Path, name: str | None, choices: Choices) -> OpenClipCheckpoint:
    """What a checkpoint of open_clip holds; see `open_checkpoint`. The catalogue knows none of them."""
    if not claims(source.arrays):
        raise CheckpointError(f"{source.name} has no visual.trunk: not a CustomTextCLIP with a timm image tower")
    settings = read_config(source.path if source.path.is_dir() else source.path.parent)
    return OpenClipCheckpoint(source, describe_open_clip(source.arrays, settings, choices), settings)
