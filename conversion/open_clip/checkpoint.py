"""A checkpoint of open_clip: a CustomTextCLIP with a SigLIP image tower of timm, fixed size or NaFlex."""

from pathlib import Path

from ..checkpoint import Checkpoint, Choices
from ..containers.arrays import Arrays, count_values, types_line
from ..containers.sources import Source
from ..errors import CheckpointError
from ..model_folder.processor import has_tokenizer
from ..name_map import unclaimed
from ..plan import AnyConfig, Plan, check_complete, constants_for
from ..released.catalogue import tokenizers
from ..resize import changes_between
from .config import CLEANING, CONFIG, describe_open_clip, preprocessing_of, read_config, remarks_on
from .names import open_clip_rules
from .towers import TIMM_CONFIG


SIGN: str = "visual.trunk of open_clip"
WEIGHTS = "open_clip_model.safetensors"
FILES: tuple[str, ...] = (WEIGHTS, CONFIG, TIMM_CONFIG)


class OpenClipCheckpoint(Checkpoint):
    """Its arrays are the file's, under its own names."""

    def plan(self, config: AnyConfig) -> Plan:
        table = open_clip_rules(self.config)
        check_complete(self.arrays, table, unclaimed(self.arrays, table))
        return Plan(config, table, changes_between(self.config, config), constants_for(self.config, config))

    def lines(self) -> list[str]:
        return [f"parameters: {count_values(self.arrays):,}", f"tensors: {types_line(self.arrays)}"]


def claims(arrays: Arrays) -> bool:
    return any(name.startswith("visual.trunk.") for name in arrays)


def read(source: Source, *, origin: str | Path, name: str | None, choices: Choices) -> OpenClipCheckpoint:
    """What a checkpoint of open_clip holds; see `open_checkpoint`. The catalogue knows none of them."""
    if not claims(source.arrays):
        raise CheckpointError(f"{source.name} has no visual.trunk: not a CustomTextCLIP with a timm image tower")
    beside = source.path if source.path.is_dir() else source.path.parent
    settings = read_config(beside)
    config = describe_open_clip(source.arrays, settings, choices)
    size = getattr(config.text_config, "vocab_size", None)
    return OpenClipCheckpoint(
        source,
        source.arrays,
        config,
        {"kind": "open_clip"},
        tokenizer=next((known for known in tokenizers().values() if known.vocab_size == size), None),
        images=preprocessing_of(settings),
        tokenizer_folder=beside if has_tokenizer(beside) else None,
        tokenizer_ready=settings.cleaning == CLEANING,
        remarks=tuple(remarks_on(settings, config, choices)),
    )
