"""Weights are loaded whole: what a checkpoint lacks would stay random, and only a table in the log would tell.

transformers initialises missing weights anew and goes on. A tower of a vision-language model is the common case: its
weights lie under other names, so all of it would be random. They are looked for there.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Container, Generator, Iterable
from contextlib import contextmanager
from typing import Any

from safetensors import SafetensorError
from transformers.modeling_utils import PreTrainedModel

from .naflex_form import change_form


LOGGER = logging.getLogger("transformers.modeling_utils")
LAYER = re.compile(r"\.layers\.\d+\.")


def load_whole(
    load: Callable[..., Any],
    source: Any,
    *args: Any,
    new: str | None = None,
    naflex: bool | None = None,
    **options: Any,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A model all of whose weights come from its checkpoint, and transformers' report of loading it.

    Args:
        load: `from_pretrained` of a model class or of an Auto class.
        source: the name or folder of a model, or of one that holds it as a part.
        new: a pattern of the parameters that may be missing, because they are trained from here on.
        naflex: of our models: True for a NaFlex image tower, False for one of fixed resolution, whichever is saved.
        options: of `from_pretrained`. With `ignore_mismatched_sizes=True` weights of other shapes start anew.

    Raises:
        ValueError: the checkpoint has no weights for some parameters, weights of another shape, of further layers, or
            damaged ones; or its image tower cannot have the other form.
    """
    anew = options.pop("ignore_mismatched_sizes", False)
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    with report_held_back() as held_back, damage_named(source):
        model, report = load(source, *args, **options)
        prefix = prefix_of(report["missing_keys"], report["unexpected_keys"])
        if prefix is not None and "key_mapping" not in options:
            held_back.clear()
            model, report = load(source, *args, **options, key_mapping={f"^{re.escape(prefix)}": ""})
            # transformers would save the tower under the names that it had in the larger model
            model.__dict__.pop("_weight_conversions", None)
            held_back.clear()  # the rest of the larger model is not missed
        name = type(model).__name__
        missing = [key for key in report["missing_keys"] if new is None or not re.search(new, key)]
        if missing:
            raise ValueError(
                f"{source} has no weights for {len(missing)} of the {len(model.state_dict())} tensors of {name}, "
                f"which would stay random: {some(missing)}. Name the folder that this model was saved in"
                + (', or load it with pooling="none" if it has no head' if all_of_head(missing) else "")
            )
        fewer = any("config" in option or option == "num_hidden_layers" for option in options)  # may be asked for
        as_saved = prefix is None and not fewer
        beyond = layers_beyond(report["unexpected_keys"], model.state_dict()) if as_saved else []
        if beyond:
            raise ValueError(
                f"{source} has weights of more layers than its configuration says, {some(beyond, 1)}: mend "
                "num_hidden_layers in its config.json"
            )
        if report["mismatched_keys"] and not anew:
            shapes = {key: (tuple(theirs), tuple(ours)) for key, theirs, ours in report["mismatched_keys"]}
            theirs, ours = shapes[min(shapes)]
            raise ValueError(
                f"{source} does not fit its configuration: {min(shapes)} is {theirs} in the checkpoint and {ours} in "
                f"{name}, and {len(shapes) - 1} others differ; with ignore_mismatched_sizes=True they start anew"
            )
    if naflex is not None:
        change_form(model, naflex)
    return model, report


@contextmanager
def damage_named(source: Any) -> Generator[None]:
    """A file of weights that was cut or damaged, as an error that names where it is."""
    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"the weights of {source} are damaged ({error}): save or download them again") from error


@contextmanager
def report_held_back() -> Generator[list[logging.LogRecord]]:
    """Keep transformers' table of keys until it is known whether an error says the same in one line."""
    records: list[logging.LogRecord] = []

    def keep(record: logging.LogRecord) -> bool:
        is_report = "LOAD REPORT" in str(record.msg)
        if is_report:
            records.append(record)
        return not is_report

    LOGGER.addFilter(keep)
    try:
        yield records
    finally:
        LOGGER.removeFilter(keep)
    for record in records:
        LOGGER.handle(record)


def prefix_of(missing: Iterable[str], unexpected: Iterable[str]) -> str | None:
    """What stands before the missing names in a checkpoint with longer ones; None where that is unclear.

    Example:

    ```python
    >>> prefix_of({"head.probe", "encoder.weight"}, {"model.tower.encoder.weight", "lm_head.weight"})
    'model.tower.'

    ```"""
    missing = set(missing)
    prefixes: Counter[str] = Counter()
    for key in unexpected:
        parts = key.split(".")
        for start in range(1, len(parts)):
            if ".".join(parts[start:]) in missing:
                prefixes[".".join(parts[:start]) + "."] += 1
    ranked = prefixes.most_common(2)
    if not ranked or (len(ranked) == 2 and ranked[0][1] == ranked[1][1]):
        return None
    return ranked[0][0]


def layers_beyond(unexpected: Iterable[str], known: Container[str]) -> list[str]:
    """Names of a checkpoint that a model knows of its first layer, but not of so many.

    Example:

    ```python
    >>> layers_beyond(["tower.layers.2.fc.weight", "tower.position_ids"], {"tower.layers.0.fc.weight"})
    ['tower.layers.2.fc.weight']

    ```"""
    return [key for key in unexpected if LAYER.search(key) and LAYER.sub(".layers.0.", key) in known]


def all_of_head(missing: Iterable[str]) -> bool:
    return all(key.startswith("head.") for key in missing)


def some(keys: Iterable[str], shown: int = 3) -> str:
    """The first of some names, and how many there are beside them."""
    ordered = sorted(keys)
    return ", ".join(ordered[:shown]) + (f" and {len(ordered) - shown} more" if len(ordered) > shown else "")
