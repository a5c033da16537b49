"""A checkpoint of big_vision: its parameters under today's names, and what they are."""

from collections import defaultdict
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoint, Choices
from ..containers.arrays import Arrays, LazyArray, count_values, types_line
from ..containers.sources import Source
from ..errors import CheckpointError
from ..name_map import unclaimed
from ..plan import AnyConfig, Plan, check_complete, constants_for, vision_of
from ..released.catalogue import Entry, find, recognise, text_tokens
from ..resize import changes_between
from .config import describe
from .layouts import Layout, container_prefix, describe_legacy, modern, pack, parameters, stacked_towers
from .names import rules


SIGN: str = "big_vision image tower"
FILES: tuple[str, ...] = ()
PROJECTION = ("img/head/kernel", "img/head/bias")
LEFT_OUT = {  # an array, or the prefix of several, that no model has a place for: what it is
    "llm/": "PaliGemma's language model",
    "t": "the temperature of a model of one tower (CLIPPO)",
    **dict.fromkeys(PROJECTION, "the image tower's projection, which the stock classes cannot hold"),
}


def plan_big_vision(params: Arrays, source: AnyConfig, config: AnyConfig) -> Plan:
    """The plan for a checkpoint of big_vision.

    Args:
        params: Its arrays, under today's names.
        source: The configuration that describes it.
        config: The configuration of the model to write.

    Raises:
        CheckpointError: Arrays are missing, contradict each other, or nothing here understands them.
    """
    table = rules(source, stacked_towers(params))
    if vision_of(config).projection_size is None:
        table = [rule for rule in table if rule.slots[0].name not in PROJECTION]
    left_out: dict[str, list[str]] = defaultdict(list)
    for name in unclaimed(params, table):
        what = LEFT_OUT.get("llm/" if name.startswith("llm/") else name, "unknown")
        left_out[what].append(name)
    unknown = left_out.pop("unknown", [])
    check_complete(params, table, unknown)
    return Plan(config, table, changes_between(source, config), constants_for(source, config), dict(left_out))


class BigVisionCheckpoint(Checkpoint):
    """Its arrays are the parameters, under today's names."""

    def plan(self, config: AnyConfig) -> Plan:
        return plan_big_vision(self.arrays, self.config, config)

    def lines(self) -> list[str]:
        counts = {"image": "img/", "text": "txt/", "language model": "llm/"}
        parts = {name: count_values(self.arrays, start) for name, start in counts.items()}
        stacked = ", ".join(self.layout["stacked"])
        entry = f"{self.catalogue} ({self.licence or 'licence unknown'})" if self.catalogue else "not a file of it"
        lines = [
            f"catalogue: {entry}",
            "parameters: " + ", ".join(f"{name} {number:,}" for name, number in parts.items() if number),
            f"arrays: {len(self.arrays)} under {self.layout['prefix'] or 'no prefix'}; {types_line(self.arrays)}",
            f"layers: {f'stacked in {stacked}' if stacked else 'one by one'}"
            f"{', old names' if self.layout['legacy'] else ''}",
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
    checkpoint = BigVisionCheckpoint(source, params, config, asdict(layout_of(source, params)))
    if entry is None:
        return checkpoint
    length = entry.text_length if entry.bert else None
    return replace(
        checkpoint, tokenizer=entry.tokenizer, text_length=length, catalogue=entry.name, licence=entry.licence
    )
