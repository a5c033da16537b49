"""The layers of a tower by name, and which of them are written in 8 bits."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


LONG_TABLE = 2**16  # rows; from here on a token table is what a tower consists of


@dataclass(frozen=True)
class Product:
    """A product of an activation with constant weights.

    Args:
        layer: what is given back to float together: "vision_model.encoder.layers.3.mlp", "vision_model.head".
        node: its name in the graph.
        activation, weight: names of its inputs.
    """

    layer: str
    node: str
    activation: str = ""
    weight: str = ""


def in_model(module: str) -> list[str]:
    """The parts of a module's name in the model that a tower holds as `model`; none for what is outside of it."""
    parts = module.split(".")
    return parts[parts.index("model") + 1 :] if "model" in parts else []


def layer_of(scope: Sequence[str]) -> str:
    """The attention or the MLP of a layer, or what stands outside of the layers by its first two names."""
    number = next((place for place, part in enumerate(scope) if part.isdigit()), None)
    return ".".join(scope[:2] if number is None else scope[: number + 2])


def choose(found: Sequence[Product], *, static: bool = False, in_float: Iterable[str] = ()) -> list[Product]:
    """The products to compute in 8 bits.

    The first layer reads what embeddings give, whose channels differ most, and stays in float. So do the heads where
    scales are static: a MAP head sees one token, whose range differs from image to image.

    Args:
        in_float: layers that stay in float, too.
    """
    kept = set(in_float)

    def suits(product: Product) -> bool:
        number = re.search(r"\.(\d+)(\.|$)", product.layer)
        return product.layer not in kept and (not static if number is None else number[1] != "0")

    return [product for product in found if suits(product)]
