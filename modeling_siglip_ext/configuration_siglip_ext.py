"""Configurations of the SigLIP family: one text tower, one vision tower, and the loss head between them.

Field names and defaults are those of transformers' `SiglipConfig` and `Siglip2Config`; every further field describes
something that big_vision's two-tower code can express and the stock classes cannot. `stock.py` translates between the
two forms.
"""

import math
from typing import TYPE_CHECKING, Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig

from .own_tokenizer import has_own_tokenizer, reads_texts
from .remote_code import add_remote_code
from .stock import from_stock, native_config, to_stock


IMAGE_POOLINGS = ("map", "mean", "max", "first", "cls", "none")
TEXT_POOLINGS = ("last", "first", "mean", "max", "map")
FOREIGN_POOLINGS = ("pooler", "first", "last", "mean", "max")
POSITIONS = ("learned", "sincos2d")
LOSSES = ("sigmoid", "softmax")
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_channels",
    "patch_size",
    "image_size",
    "num_patches",
    "max_position_embeddings",
    "projection_size",
    "token_embedding_size",
)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(choices)}")


def is_foreign(config: PreTrainedConfig) -> bool:
    """Whether a tower's configuration is from elsewhere."""
    return not config.model_type.startswith("siglip_ext")


def check_sizes(config: PreTrainedConfig) -> None:
    """Nothing has a negative size or none, and heads share the width; types are checked elsewhere, later."""
    for name in SIZES:
        value = getattr(config, name, None)
        if isinstance(value, int) and value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f"hidden_size={config.hidden_size} is not divisible by num_attention_heads={config.num_attention_heads}; "
            "choose a number of heads that divides the width"
        )


class StockReadable(PreTrainedConfig):
    """Reads the `config.json` of stock `siglip` / `siglip2` folders, and writes that form where it suffices."""

    # set where the package itself serves the pipeline: transformers would insist on the copy beside the model, and on
    # trust_remote_code for it
    packaged_pipeline = False

    @classmethod
    def get_config_dict(cls, *args, **kwargs) -> tuple[dict[str, Any], dict[str, Any]]:
        config_dict, kwargs = super().get_config_dict(*args, **kwargs)
        return from_stock(config_dict), kwargs

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs) -> PreTrainedConfig:
        if cls.packaged_pipeline:
            config_dict = {key: value for key, value in config_dict.items() if key != "custom_pipelines"}
        return super().from_dict(config_dict, **kwargs)

    def save_pretrained(self, save_directory, push_to_hub: bool = False, *, native: bool | None = None, **kwargs):
        """Write `config.json`; in stock form where the stock classes can express the model.

        Beside the `siglip_ext` form goes the code that `trust_remote_code` loads where this package is absent.

        Args:
            native: True demands the stock form (ValueError where it cannot express this model), False demands the
                `siglip_ext` form, None takes the stock form where possible.
        """
        native = self.__dict__.pop("save_native", native)
        if native is not False and reads_texts(to_stock(self.to_dict())):
            self.own_tokenizer = has_own_tokenizer(save_directory)
        stock = None if native is False else native_config(self)
        if stock is not None:
            stock.save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        elif native:
            tokenizer = ", or would lose its tokenizer" if getattr(self, "own_tokenizer", False) else ""
            raise ValueError(
                f"native=True, but the stock SigLIP classes cannot express this model{tokenizer}; leave native out"
            )
        else:
            add_remote_code(self, save_directory)
            super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)


@strict
class SiglipExtTextConfig(StockReadable):
    r"""The text tower: a bidirectional transformer over texts padded to `max_position_embeddings`, without a mask.

    Args:
        pooling: Which token state becomes the text vector: "last" (SigLIP; usually a padding position), "first",
            "mean", "max" or "map" (attention pooling with a learned probe).
        use_head: Whether a linear layer maps the pooled state to `projection_size`. Without it the pooled state is
            the embedding.
        projection_size: Width of the embedding; `hidden_size` unless given.
        token_embedding_size: mSigLIP's bottleneck K (SigLIP paper, section 4.3): a V x K table followed by a K x W
            projection. None for the plain V x W table.

    Example:

    ```python
    >>> from modeling_siglip_ext import SiglipExtTextConfig
    >>> SiglipExtTextConfig(hidden_size=768, num_attention_heads=12, pooling="last").projection_size
    768

    ```"""

    model_type = "siglip_ext_text_model"
    base_config_key = "text_config"

    vocab_size: int = 32000
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 64
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    attention_dropout: float | int = 0.0
    pad_token_id: int | None = 1
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = 1
    projection_size: int | None = None
    pooling: str = "last"
    use_head: bool = True
    token_embedding_size: int | None = None

    def __post_init__(self, **kwargs):
        check_choice("text pooling", self.pooling, TEXT_POOLINGS)
        check_sizes(self)
        if self.projection_size is None:
            self.projection_size = self.hidden_size
        if not self.use_head and self.projection_size != self.hidden_size:
            raise ValueError(
                f"projection_size={self.projection_size} needs use_head=True: without a head the text embedding has "
                f"the tower's width {self.hidden_size}"
            )
        super().__post_init__(**kwargs)


@strict
class SiglipExtVisionConfig(StockReadable):
    r"""The vision tower, for one fixed image size or (`naflex=True`) for any aspect ratio and sequence length.

    Args:
        image_size: Side of the square input in pixels (fixed resolution only; 224 unless given).
        naflex: Take patches with a mask and the grid of each image (SigLIP 2, section 2.4.2) instead of images.
        num_patches: Size of the learned position grid, a square number (NaFlex only; 256 unless given).
        pooling: How tokens become the image vector: "map" (attention pooling, SigLIP), "mean", "max", "first", "cls"
            (an added class token) or "none" (no vector: a feature tower).
        projection_size: Width of a linear image head; None for none, as in SigLIP. With pooling "none" it is applied
            to every token, as in PaliGemma.
        pre_logits: Whether a dense layer with tanh stands between pooling and head (big_vision's `rep_size`).
        position_embedding_type: "learned", or the fixed "sincos2d" of big_vision's ViT.

    Example:

    ```python
    >>> from modeling_siglip_ext import SiglipExtVisionConfig
    >>> SiglipExtVisionConfig(image_size=256, patch_size=16).grid_size
    16

    ```"""

    model_type = "siglip_ext_vision_model"
    base_config_key = "vision_config"

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int | None = None
    patch_size: int = 16
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    attention_dropout: float | int = 0.0
    naflex: bool = False
    num_patches: int | None = None
    pooling: str = "map"
    projection_size: int | None = None
    pre_logits: bool = False
    position_embedding_type: str = "learned"

    def __post_init__(self, **kwargs):
        check_choice("image pooling", self.pooling, IMAGE_POOLINGS)
        check_choice("position_embedding_type", self.position_embedding_type, POSITIONS)
        check_sizes(self)
        if self.naflex:
            self._check_naflex()
        else:
            self._check_fixed()
        if self.position_embedding_type == "sincos2d" and self.hidden_size % 4:
            raise ValueError(f"sincos2d positions need a hidden_size divisible by 4, not {self.hidden_size}")
        super().__post_init__(**kwargs)

    def _check_naflex(self) -> None:
        if self.image_size is not None:
            raise ValueError("naflex=True takes images of any size: leave image_size out and set num_patches instead")
        self.num_patches = 256 if self.num_patches is None else self.num_patches
        if math.isqrt(self.num_patches) ** 2 != self.num_patches:
            raise ValueError(f"num_patches={self.num_patches} must be a square number: it is a position grid")
        if self.pooling == "cls" or self.position_embedding_type != "learned":
            raise ValueError('naflex=True needs learned positions and a pooling other than "cls"')

    def _check_fixed(self) -> None:
        if self.num_patches is not None:
            raise ValueError("num_patches belongs to naflex=True; a fixed-resolution tower is set by image_size")
        self.image_size = 224 if self.image_size is None else self.image_size
        if self.image_size < self.patch_size:
            raise ValueError(f"image_size={self.image_size} is smaller than patch_size={self.patch_size}")

    @property
    def grid_size(self) -> int:
        """Patches along one side of the learned position grid."""
        if self.naflex:
            assert self.num_patches is not None, "given or set in __post_init__"
            return math.isqrt(self.num_patches)
        assert self.image_size is not None, "given or set in __post_init__"
        return self.image_size // self.patch_size


if TYPE_CHECKING:
    TowerConfig = Any  # a configuration with the fields of its own class, whatever was given
else:
    TowerConfig = dict | PreTrainedConfig | None


def sub_config(value: dict | PreTrainedConfig | None, own_class: type[PreTrainedConfig]) -> PreTrainedConfig:
    """A tower's configuration from what the user gave: ours by default, or any other that transformers knows."""
    if isinstance(value, PreTrainedConfig):
        if not value.model_type.startswith("siglip"):
            return value
        value = value.to_dict()
    value = from_stock(dict(value or {}))
    model_type = value.pop("model_type", own_class.model_type)
    if model_type == own_class.model_type:
        return own_class(**value)
    if model_type.startswith("siglip"):
        raise ValueError(f"{own_class.base_config_key} cannot be a {model_type!r} configuration")
    return AutoConfig.for_model(model_type, **value)


@strict
class SiglipExtConfig(StockReadable):
    r"""Two towers and the loss head.

    Args:
        text_config: A [`SiglipExtTextConfig`], a dict of its fields, or any transformers text configuration.
        vision_config: A [`SiglipExtVisionConfig`], a dict of its fields, or any transformers vision configuration.
        loss_type: "sigmoid" (SigLIP) or "softmax" (CLIP, LiT).
        logit_scale_init: Initial value of the stored log temperature t' (SigLIP paper, Algorithm 1: log 10).
        logit_bias_init: Initial value of b (Algorithm 1: -10). None builds a model without a bias, as softmax models
            are.
        initializer_factor: Scale of the classification head's initialisation.
        text_pooling, vision_pooling: For a tower from elsewhere only: "pooler" (its own pooled output), "first"
            (the class token), "last" (the last token that is not padding), "mean" or "max". "first" unless given.
        text_projection_size, vision_projection_size: For a tower from elsewhere only: width of a linear head on the
            pooled output; None for none.
        own_tokenizer: For NaFlex only: the tokenizer is not of Gemma's kind. transformers would read it as Gemma's
            beside a model in stock form, so the model is saved in ours. Set where model and processor are saved.

    Example:

    ```python
    >>> from modeling_siglip_ext import SiglipExtConfig
    >>> config = SiglipExtConfig(vision_config={"image_size": 256}, text_config={"vocab_size": 256000})
    >>> config.vision_config.grid_size
    16

    ```"""

    model_type = "siglip_ext"
    sub_configs = {"text_config": AutoConfig, "vision_config": AutoConfig}

    text_config: TowerConfig = None
    vision_config: TowerConfig = None
    loss_type: str = "sigmoid"
    logit_scale_init: float = math.log(10)
    logit_bias_init: float | int | None = -10.0
    initializer_factor: float = 1.0
    text_pooling: str | None = None
    text_projection_size: int | None = None
    vision_pooling: str | None = None
    vision_projection_size: int | None = None
    own_tokenizer: bool = False

    def __post_init__(self, **kwargs):
        check_choice("loss_type", self.loss_type, LOSSES)
        if self.loss_type == "sigmoid" and self.logit_bias_init is None:
            raise ValueError("the sigmoid loss needs a bias: set logit_bias_init (the paper's value is -10)")
        self.text_config = sub_config(self.text_config, SiglipExtTextConfig)
        self.vision_config = sub_config(self.vision_config, SiglipExtVisionConfig)
        self._check_foreign("text")
        self._check_foreign("vision")
        super().__post_init__(**kwargs)

    def _check_foreign(self, kind: str) -> None:
        tower = getattr(self, f"{kind}_config")
        pooling, projection_size = getattr(self, f"{kind}_pooling"), getattr(self, f"{kind}_projection_size")
        if not is_foreign(tower):
            if pooling is not None or projection_size is not None:
                raise ValueError(
                    f"{kind}_pooling and {kind}_projection_size are for towers from elsewhere; for a SigLIP tower "
                    f"set pooling and projection_size in {kind}_config"
                )
            return
        if getattr(tower, "is_encoder_decoder", False):
            raise ValueError(f"{kind}_config: a {tower.model_type!r} model has a decoder; a tower is an encoder alone")
        if pooling is None:  # convolutional towers have no class token and bring their own pooling
            setattr(self, f"{kind}_pooling", "pooler" if getattr(tower, "hidden_sizes", None) else "first")
        else:
            check_choice(f"{kind}_pooling", pooling, FOREIGN_POOLINGS)
