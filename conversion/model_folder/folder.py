"""The folder that `from_pretrained` loads: opened, the form it is written in, and the comparison with its source."""

from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModel

from modeling_siglip_ext import SiglipExtVisionConfig, native_config
from modeling_siglip_ext.hub.facts import CONFIGS
from modeling_siglip_ext.loading import some
from modeling_siglip_ext.stock import stock_family

from ..containers.arrays import Arrays, LazyArray
from ..containers.damage import read_mapping
from ..containers.safetensors_files import read_safetensors
from ..errors import CheckpointError, VerificationError
from ..plan import AnyConfig, Plan, for_stock_classes
from ..transfer import compare_tensors
from .report import ConversionReport, read_report


@dataclass(frozen=True)
class ModelFolder:
    """A folder for from_pretrained: its configuration in our form, its tensors, and its report if it has one."""

    path: Path
    config: AnyConfig
    tensors: dict[str, LazyArray]
    report: ConversionReport | None


def open_folder(path: str | Path) -> ModelFolder:
    """
    Raises:
        FileNotFoundError: No such folder.
        CheckpointError: Not a folder of a SigLIP model, or a damaged one.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path} does not exist or is not a folder")
    file = path / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{path} has no config.json: not a model folder")
    model_type = read_mapping(file).get("model_type")
    if model_type is None:
        raise CheckpointError(f"{file} is damaged: it has no model_type")
    if not isinstance(model_type, str) or model_type not in CONFIGS:
        raise CheckpointError(f"{file}: {model_type!r} is no SigLIP model; this converts {', '.join(CONFIGS)}")
    try:
        config = CONFIGS[model_type].from_pretrained(path)
    except (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{file} describes no model: {error}") from error
    return ModelFolder(path, config, read_safetensors(path), read_report(path))


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


def in_stock_form(folder: Path) -> bool:
    """Whether a folder that was just written is in stock form."""
    return stock_family(read_mapping(folder / "config.json")["model_type"]) is not None


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
        raise VerificationError(f"{name} has other tensors than the folder: {some(wrong, 5)}")
    return compare_tensors(plan, arrays, results), name
