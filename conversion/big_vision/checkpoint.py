"""A checkpoint of big_vision: its parameters under today's names, and what they are."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..checkpoint import Choices, Facts, Tokenizer
from ..containers.arrays import Arrays, LazyArray, count_values, types_line
from ..containers.sources import Source
from ..errors import CheckpointError
from ..plan import AnyConfig, Plan
from ..released.catalogue import Entry, find, recognise, text_tokens
from .config import describe
from .layouts import Layout, container_prefix, describe_legacy, modern, pack, parameters, stacked_towers
from .plan import plan_big_vision


SIGN = "big_vision image tower"
FILES = ()


@dataclass(frozen=True)
class BigVisionCheckpoint:
    """See `Checkpoint`.

    Args:
        source: The file or folder.
        arrays: The model's parameters.
        config: What their shapes (and the catalogue) tell.
        layout: How the arrays are called and stored, for the way back.
        entry: Its place in the catalogue.
    """

    source: Source
    arrays: dict[str, LazyArray]
    config: AnyConfig
    layout: Layout
    entry: Entry | None = None

    @property
    def tokenizer(self) -> Tokenizer | None:
        return None if self.entry is None else self.entry.tokenizer

    @property
    def text_length(self) -> int | None:
        return self.entry.text_length if self.entry is not None and self.entry.bert else None

    @property
    def facts(self) -> Facts:
        if self.entry is None:
            return Facts(asdict(self.layout))
        return Facts(asdict(self.layout), self.entry.name, self.entry.licence)

    def plan(self, config: AnyConfig) -> Plan:
        return plan_big_vision(self.arrays, self.config, config)

    def lines(self) -> list[str]:
        counts = {"image": "img/", "text": "txt/", "language model": "llm/"}
        parts = {name: count_values(self.arrays, start) for name, start in counts.items()}
        stacked, entry = ", ".join(self.layout.stacked), self.entry
        lines = [
            "catalogue: "
            + ("not a file of it" if entry is None else f"{entry.name} ({entry.licence or 'licence unknown'})"),
            "parameters: " + ", ".join(f"{name} {number:,}" for name, number in parts.items() if number),
            f"arrays: {len(self.arrays)} under {self.layout.prefix or 'no prefix'}; {types_line(self.arrays)}",
            f"layers: {f'stacked in {stacked}' if stacked else 'one by one'}"
            f"{', old names' if self.layout.legacy else ''}",
        ]
        other = len(self.source.arrays) - len(self.arrays)
        if other > 0:
            lines.append(f"beside them: {other} arrays of a training run, which are not converted")
        return lines


def beside(params: dict[str, LazyArray]) -> dict[str, Any]:
    """The temperature of a model of one tower (CLIPPO), which no class has a place for, for the way back."""
    one_tower = not any(name.startswith("txt/") for name in params)
    return {"t": pack(params["t"].load())} if one_tower and "t" in params and params["t"].shape == (1,) else {}


def layout_of(source: Source, params: dict[str, LazyArray]) -> Layout:
    dtypes = {name: str(array.dtype).removeprefix("torch.") for name, array in params.items()}
    usual = max(set(dtypes.values()), key=list(dtypes.values()).count)
    return Layout(
        prefix=container_prefix(source.arrays),
        stacked=sorted(stacked_towers(params)),
        dtype=usual,
        dtypes={name: dtype for name, dtype in sorted(dtypes.items()) if dtype != usual},
        text_head="txt/head/kernel" in params,
        bias="b" in params,
        beside=beside(params),
        legacy=describe_legacy(parameters(source.arrays)),
    )


def choose_entry(path: str | Path, name: str | None) -> Entry | None:
    if name == "none":
        return None
    return recognise(path) if name is None else find(name)


def claims(arrays: Arrays) -> bool:
    return any(name.endswith("img/embedding/kernel") for name in arrays)


def read(source: Source, *, origin: str | Path, name: str | None, choices: Choices) -> BigVisionCheckpoint:
    """What a checkpoint of big_vision holds; see `open_checkpoint`."""
    entry = choose_entry(origin, name)
    params = modern(parameters(source.arrays))
    try:
        config = describe(params, choices if entry is None else entry.choices)
        if entry is not None:
            entry.check(config)
    except CheckpointError as error:
        raise type(error)(f"{source.name}: {error}") from error
    if entry is not None and entry.tokenizer is not None and entry.tokenizer.rules != "bert":
        for key, value in text_tokens(entry.tokenizer.rules).items():
            setattr(config.text_config, key, value)
    return BigVisionCheckpoint(source, params, config, layout_of(source, params), entry)
