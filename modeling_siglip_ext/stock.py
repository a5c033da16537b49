"""What the stock `siglip` and `siglip2` classes of transformers can express, and the translation there and back.

`native_config` is the one place that decides in which form a model is saved: a model that the stock classes can
express is written as theirs, so that anybody loads it with plain `AutoModel`.
"""

import logging
from typing import Any

from transformers.configuration_utils import PreTrainedConfig


# Fields that mean the same in both, so only these decide whether stock can express a tower.
TEXT_DEFAULTS = {"pooling": "last", "use_head": True, "token_embedding_size": None}
VISION_DEFAULTS = {"projection_size": None, "pre_logits": False, "position_embedding_type": "learned"}
# Of the dual model: the initial values only matter before training, the others are for towers from elsewhere and for
# tokenizers that the stock form would lose.
PAIR_FIELDS = (
    "loss_type",
    "logit_scale_init",
    "logit_bias_init",
    "text_pooling",
    "text_projection_size",
    "vision_pooling",
    "vision_projection_size",
    "own_tokenizer",
)
ARCHITECTURES = {
    "SiglipExtModel": "Model",
    "SiglipExtTextModel": "TextModel",
    "SiglipExtVisionModel": "VisionModel",
    "SiglipExtForImageClassification": "ForImageClassification",
}
STOCK_TYPES = ("siglip", "siglip2")
SUB_CONFIGS = ("text_config", "vision_config")


def is_no_false_alarm(record: logging.LogRecord) -> bool:
    """Whether a record of transformers' is another than that the ids of stock SigLIP's defaults, 49406 and 49407, lie
    beyond the default vocabulary: it makes the defaults whenever it shows or writes any configuration, to compare."""
    message = record.getMessage()
    return not ("between 0 and 31999" in message and ("got 49406" in message or "got 49407" in message))


logging.getLogger("transformers.configuration_utils").addFilter(is_no_false_alarm)


def stock_family(model_type: str) -> str | None:
    """ "siglip" or "siglip2" for a stock model type (towers included), None for any other."""
    family = model_type.removesuffix("_text_model").removesuffix("_vision_model")
    return family if family in STOCK_TYPES else None


def from_stock(config: dict[str, Any]) -> dict[str, Any]:
    """The `siglip_ext` form of a stock configuration's dict; of any other dict its towers are translated."""
    model_type = config.get("model_type", "")
    family = stock_family(model_type)
    if family is None:
        # a vision-language model with a stock tower
        towers = {key: from_stock(config[key]) for key in SUB_CONFIGS if isinstance(config.get(key), dict)}
        return {**config, **towers}
    config = dict(config)
    config["model_type"] = model_type.replace(family, "siglip_ext", 1)
    names = {stock_architecture(ours, family): ours for ours in ARCHITECTURES}
    classifier = stock_architecture("SiglipExtForImageClassification", family)
    mean_pooled = classifier in (config.get("architectures") or ())
    if config.get("architectures"):
        config["architectures"] = [names.get(name, name) for name in config["architectures"]]
    if model_type.endswith("_vision_model"):
        config.setdefault("naflex", family == "siglip2")
        # the stock towers write `vision_use_head` only where it differs from its default, True
        config.setdefault("pooling", "map" if config.pop("vision_use_head", True) else "none")
    elif model_type == family:
        for key, tower in (("text_config", "text_model"), ("vision_config", "vision_model")):
            config[key] = from_stock({"model_type": f"{family}_{tower}", **(config.get(key) or {})})
        if mean_pooled:  # the stock classifier averages the tokens and leaves the MAP head unused
            config["vision_config"]["pooling"] = "mean"
    return config


def to_stock(config: dict[str, Any]) -> dict[str, Any] | None:
    """The stock form of a complete `siglip_ext` dict (as `to_dict()` gives it), None where stock cannot express it."""
    kind = config.get("model_type", "")
    if kind == "siglip_ext_text_model":
        return stock_text(config, "siglip")
    if kind == "siglip_ext_vision_model":
        return stock_vision(config, classifier=False)
    if kind == "siglip_ext":
        return stock_pair(config)
    return None


def stock_text(config: dict[str, Any], family: str) -> dict[str, Any] | None:
    if any(config[key] != value for key, value in TEXT_DEFAULTS.items()):
        return None
    return rename({k: v for k, v in config.items() if k not in TEXT_DEFAULTS}, family)


def stock_vision(config: dict[str, Any], *, classifier: bool) -> dict[str, Any] | None:
    # the stock classifier averages the tokens whatever the head; the others know the MAP head or no pooling at all
    poolings = {"mean": False} if classifier else {"map": True, "none": False}
    if config["pooling"] not in poolings or any(config[key] != value for key, value in VISION_DEFAULTS.items()):
        return None
    family = "siglip2" if config["naflex"] else "siglip"
    unused = {*VISION_DEFAULTS, "pooling", "naflex", "image_size" if config["naflex"] else "num_patches"}
    stock = rename({k: v for k, v in config.items() if k not in unused}, family)
    if not poolings[config["pooling"]]:
        stock["vision_use_head"] = False
    return stock


def stock_pair(config: dict[str, Any]) -> dict[str, Any] | None:
    towers = config["text_config"], config["vision_config"]
    ours = [tower["model_type"] for tower in towers] == ["siglip_ext_text_model", "siglip_ext_vision_model"]
    if not ours or config["loss_type"] != "sigmoid":
        return None
    family = "siglip2" if towers[1]["naflex"] else "siglip"
    if family == "siglip2" and config["own_tokenizer"]:
        return None
    classifier = (config.get("architectures") or [None])[0] == "SiglipExtForImageClassification"
    text, vision = stock_text(towers[0], family), stock_vision(towers[1], classifier=classifier)
    if text is None or vision is None:
        return None
    stock = rename({k: v for k, v in config.items() if k not in PAIR_FIELDS}, family)
    return {**stock, "text_config": text, "vision_config": vision}


def rename(config: dict[str, Any], family: str) -> dict[str, Any]:
    """The dict with stock names for its model type and architectures."""
    stock = {**config, "model_type": config["model_type"].replace("siglip_ext", family, 1)}
    for key in ("auto_map", "custom_pipelines"):  # of a folder in our form that it was loaded from
        stock.pop(key, None)
    if config.get("architectures"):
        stock["architectures"] = [stock_architecture(name, family) for name in config["architectures"]]
    return stock


def stock_architecture(name: str, family: str) -> str:
    return family.capitalize() + ARCHITECTURES[name] if name in ARCHITECTURES else name


def native_config(config: PreTrainedConfig) -> PreTrainedConfig | None:
    """The stock configuration of the same model, or None where the stock classes cannot express it.

    `config.architectures` is consulted too: the stock image classifier averages tokens, the stock dual model does not.

    Example:

    ```python
    >>> from modeling_siglip_ext import SiglipExtConfig, native_config
    >>> native_config(SiglipExtConfig()).model_type
    'siglip'
    >>> native_config(SiglipExtConfig(loss_type="softmax")) is None
    True

    ```"""
    from transformers import CONFIG_MAPPING

    stock = to_stock(config.to_dict())
    if stock is None:
        return None
    return CONFIG_MAPPING[stock.pop("model_type")].from_dict(stock)
