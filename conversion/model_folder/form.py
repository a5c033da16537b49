"""The form that a model folder is written in, its configuration, and the comparison with what it was made from."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel

from modeling_siglip_ext import SiglipExtVisionConfig, native_config

from ..containers.arrays import Arrays
from ..containers.safetensors_files import read_safetensors
from ..errors import CheckpointError, VerificationError
from ..plan import AnyConfig, Plan, for_stock_classes
from ..transfer import compare_tensors


def choose_form(config: AnyConfig, form: str | None, zero_bias: bool = False) -> tuple[AnyConfig, bool]:
    """The configuration to write, and whether it is in stock form.

    Raises:
        CheckpointError: The stock form was asked for and cannot express the model.
    """
    lacks_bias = getattr(config, "loss_type", None) == "softmax" and config.logit_bias_init is None
    if zero_bias and not lacks_bias:
        raise CheckpointError("--zero_bias is for softmax models of two towers without a bias; leave it out")
    if zero_bias and form == "ext":
        raise CheckpointError("--zero_bias is for stock form: the ext form keeps a softmax model as it is")
    if form == "ext":
        return config, False
    demanded = form == "native" or zero_bias
    stock = for_stock_classes(config, drop_projection=demanded, zero_bias=zero_bias)
    if native_config(stock) is not None:
        return stock, True
    if not demanded:
        return config, False
    if lacks_bias and native_config(for_stock_classes(config, drop_projection=True, zero_bias=True)) is not None:
        raise CheckpointError("stock form demands a logit bias, which this softmax model lacks: add --zero_bias")
    raise CheckpointError("the stock classes cannot express this model; leave --format out, or use --format ext")


def auto_class(config: AnyConfig, native: bool) -> str:
    """The class that `AutoModel` makes of a configuration in that form."""
    with torch.device("meta"):
        return type(AutoModel.from_config(native_config(config) if native else config)).__name__


def write_config(config: AnyConfig, folder: Path, dtype: str, native: bool, loss_type: str | None) -> None:
    """Write `config.json`.

    Args:
        loss_type: The loss the model was trained with. Stock form has no field for it; where it is not the sigmoid
            loss it is added, so that our classes and pipeline go by it and the stock ones pass it over.
    """
    one_tower = isinstance(config, SiglipExtVisionConfig)
    config.architectures = ["SiglipExtVisionModel" if one_tower else "SiglipExtModel"]
    config.dtype = dtype
    stock = native_config(config) if native and loss_type == "softmax" else None
    if stock is None:
        config.save_pretrained(folder, native=native)
    else:
        stock.loss_type = loss_type
        stock.save_pretrained(folder)


def model_shapes(folder: Path) -> tuple[str, dict[str, tuple[int, ...]]]:
    """The class that a folder's configuration stands for, and its tensors as they are called in the file."""
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.model_type.endswith("_vision_model"):
        shapes = {f"vision_model.{name.removeprefix('vision_model.')}": shape for name, shape in shapes.items()}
    return type(model).__name__, shapes


def verify_folder(folder: Path, plan: Plan, arrays: Arrays) -> tuple[dict[str, float], str]:
    """Compare a folder with the checkpoint behind a plan: the names and shapes that its class has, and every value.

    Returns:
        The largest difference of each tensor, and the name of the class.

    Raises:
        VerificationError: They disagree.
    """
    results = read_safetensors(folder)
    name, shapes = model_shapes(folder)
    wrong = {key for key in {*shapes, *results} if key not in shapes or key not in results}
    wrong |= {key for key in {*shapes} - wrong if shapes[key] != results[key].shape}
    if wrong:
        raise VerificationError(f"{name} has other tensors than the folder: {', '.join(sorted(wrong)[:5])}")
    return compare_tensors(plan, arrays, results), name
