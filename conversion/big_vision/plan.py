"""What happens to every array of a big_vision checkpoint."""

from ..containers.arrays import Arrays
from ..errors import CheckpointError
from ..name_map import unclaimed
from ..plan import AnyConfig, Plan, constants_for, vision_of
from ..resize import changes_between
from .layouts import stacked_towers
from .names import check_complete, rules


PROJECTION = ("img/head/kernel", "img/head/bias")
LEFT_OUT = {  # an array, or the prefix of several: what it is
    "llm/": "PaliGemma's language model",
    "t": "the temperature of a model of one tower (CLIPPO)",
    "img/head/": "the image tower's projection, which the stock classes cannot hold",
}


def left_out_as(name: str) -> str | None:
    """Which entry of LEFT_OUT an array falls under."""
    return next((key for key in LEFT_OUT if name == key or (key.endswith("/") and name.startswith(key))), None)


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
    left_out: dict[str, list[str]] = {}
    unknown = []
    for name in unclaimed(params, table):
        key = left_out_as(name)
        if key is None or (key == "img/head/" and name not in PROJECTION):
            unknown.append(name)
        else:
            left_out.setdefault(LEFT_OUT[key], []).append(name)
    if unknown:
        shown = ", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        raise CheckpointError(f"nothing here understands {shown}")
    check_complete(params, table)
    return Plan(config, table, changes_between(source, config), constants_for(source, config), left_out)
