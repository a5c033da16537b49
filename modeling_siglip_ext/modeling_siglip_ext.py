"""The SigLIP family as transformers models: towers, the dual model with its loss head, and an image classifier.

Parameter names and shapes equal those of the stock SigLIP classes wherever those have the parameter. The towers know
nothing of the loss; poolings and positions are modules of their own.
"""

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModel
from transformers import initialization as init
from transformers.configuration_utils import PreTrainedConfig
from transformers.conversion_mapping import PrefixChange, register_checkpoint_conversion_mapping
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput, can_return_tuple, logging
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_siglip_ext import (
    SiglipExtConfig,
    SiglipExtTextConfig,
    SiglipExtVisionConfig,
    is_foreign,
    sub_config,
)
from .embeddings import SiglipExtNaflexEmbeddings, SiglipExtTextEmbeddings, SiglipExtVisionEmbeddings
from .foreign import ForeignTowerAdapter, tower_arguments, tower_width
from .initialisation import initialise
from .layers import SiglipExtAttention, SiglipExtEncoder, SiglipExtEncoderLayer
from .loading import load_whole
from .losses import sigmoid_loss, softmax_loss
from .naflex import naflex_layout, valid_patches
from .packing import Layout, Packing, padded, unpadded
from .pooling import build_pooling
from .sentence_embedding import save_settings


logger = logging.get_logger(__name__)


@dataclass
class SiglipExtOutput(ModelOutput):
    """What [`SiglipExtModel`] returns.

    Args:
        loss: Contrastive loss, a scalar, where it was asked for.
        logits_per_image: Scores (images, texts) = cosine · exp(logit_scale) + logit_bias, where no loss was asked
            for. Their sigmoid is the probability of each pair.
        logits_per_text: The transpose, (texts, images).
        text_embeds: Normalised text embeddings (texts, D).
        image_embeds: Normalised image embeddings (images, D).
        text_model_output: Output of the text tower.
        vision_model_output: Output of the vision tower.
    """

    loss: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(v.to_tuple() if isinstance(v, ModelOutput) else v for v in self.values())


@dataclass
class PatchFeatures(ModelOutput):
    """Patch tokens for dense tasks and vision-language models.

    Args:
        features: Token states (B, N, D), row by row, without a class token.
        grid: Rows and columns of patches of each image, (B, 2), int64.
        mask: True for patches, False for padding, (B, N); None where nothing is padded.
    """

    features: torch.Tensor | None = None
    grid: torch.Tensor | None = None
    mask: torch.Tensor | None = None


class SiglipExtPreTrainedModel(PreTrainedModel):
    """What all models here share: initialisation, loading whole, and saving in stock form where that suffices."""

    config_class = SiglipExtConfig
    base_model_prefix = "siglip_ext"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True

    _no_split_modules = [
        "SiglipExtTextEmbeddings",
        "SiglipExtVisionEmbeddings",
        "SiglipExtNaflexEmbeddings",
        "SiglipExtEncoderLayer",
        "SiglipExtMultiheadAttentionPoolingHead",
    ]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": SiglipExtEncoderLayer, "attentions": SiglipExtAttention}
    # a pattern of the parameters that a checkpoint may lack, because they are trained from here on
    _new_on_load: str | None = None

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any
    ) -> Any:
        """As in transformers, but a tower is found within a larger model; `naflex=True` makes it NaFlex, False fixed.

        Raises:
            ValueError: The checkpoint lacks weights, has some of another shape, or a tower without the other form.
        """
        load = super().from_pretrained
        model, report = load_whole(load, pretrained_model_name_or_path, *args, new=cls._new_on_load, **kwargs)
        return (model, report) if output_loading_info else model

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # transformers takes code outside its tree for code that ignores its init functions, and then passes over every
        # module without parameters of its own: attention and MLP would keep the initialisation of a plain Linear
        super()._initialize_weights(module)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, SiglipExtModel):
            init.constant_(module.logit_scale, module.config.logit_scale_init)
            if module.logit_bias is not None and module.config.logit_bias_init is not None:
                init.constant_(module.logit_bias, module.config.logit_bias_init)
        elif isinstance(module, SiglipExtForImageClassification):
            std = module.config.vision_config.hidden_size**-0.5 * module.config.initializer_factor
            init.normal_(module.classifier.weight, std=std)
            init.zeros_(module.classifier.bias)
        else:
            initialise(module)

    def save_pretrained(
        self, save_directory: str | os.PathLike, *args: Any, native: bool | None = None, **kwargs: Any
    ) -> None:
        """Save weights and configuration; where the stock classes can express the model, in their form.

        Args:
            native: True demands the stock form (ValueError where it cannot express this model), False demands the
                `siglip_ext` form, None takes the stock form where possible.
        """
        # transformers calls `config.save_pretrained(directory)` and nothing else, so the choice travels on the config
        self.config.save_native = native
        try:
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            self.config.__dict__.pop("save_native", None)


class SiglipExtTextModel(SiglipExtPreTrainedModel):
    """The text tower. Texts are padded to `max_position_embeddings`, and padding is attended to, as in training."""

    config: SiglipExtTextConfig
    input_modalities = "text"
    base_model_prefix = "text_model"
    _keys_to_ignore_on_load_unexpected = [r"^vision_model\.", r"^logit_"]  # the rest of a full checkpoint
    _input_embed_layer = "token_embedding"

    def __init__(self, config: SiglipExtTextConfig):
        super().__init__(config)
        assert config.projection_size is not None, "given or set in __post_init__"
        self.embeddings = SiglipExtTextEmbeddings(config)
        self.encoder = SiglipExtEncoder(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.pooling = cast(nn.Module, build_pooling(config))  # only images may have none
        self.head = nn.Linear(config.hidden_size, config.projection_size) if config.use_head else None
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        r"""
        Args:
            input_ids: Token ids (B, max_position_embeddings), int64.
            attention_mask: Ignored: SigLIP's text towers attend to padding. It is accepted because tokenizers give it.
            position_ids: Positions (B, L) other than 0 … L−1.

        Returns:
            `last_hidden_state` (B, L, D) and `pooler_output` (B, projection_size), not normalised.

        Raises:
            ValueError: The texts are not padded to the tower's length, or longer than it.
        """
        if input_ids is None:
            raise ValueError("input_ids is missing")
        length = self.config.max_position_embeddings
        if input_ids.shape[-1] != length:
            padding = 'padding="max_length", ' if input_ids.shape[-1] < length else ""
            raise ValueError(
                f"input_ids has {input_ids.shape[-1]} tokens, this tower takes exactly {length} (SigLIP attends to "
                f"its padding): tokenize with {padding}max_length={length}, truncation=True"
            )
        if self.training and attention_mask is not None and not torch.compiler.is_compiling():
            logger.warning_once(
                "attention_mask has no effect on this tower, and stock classes would apply it: let the tokenizer give "
                "none, with modeling_siglip_ext.fit_tokenizer(tokenizer, model.config.text_config)"
            )
        hidden_states = self.embeddings(input_ids, position_ids)
        hidden_states = self.final_layer_norm(self.encoder(hidden_states, **kwargs))
        pooled = self.pooling(hidden_states)
        if self.head is not None:
            pooled = self.head(pooled)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=pooled)


class SiglipExtVisionModel(SiglipExtPreTrainedModel):
    """The vision tower, fixed resolution or NaFlex."""

    config: SiglipExtVisionConfig
    main_input_name = "pixel_values"
    input_modalities = "image"
    base_model_prefix = "vision_model"
    _keys_to_ignore_on_load_unexpected = [r"^text_model\.", r"^logit_"]  # the rest of a full checkpoint
    _input_embed_layer = "patch_embedding"

    def __init__(self, config: SiglipExtVisionConfig):
        super().__init__(config)
        self.embeddings = SiglipExtNaflexEmbeddings(config) if config.naflex else SiglipExtVisionEmbeddings(config)
        self.encoder = SiglipExtEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        # `head` is the stock name of the MAP head; the other poolings have no parameters
        self.head = build_pooling(config)
        width, embedding_width = config.hidden_size, config.projection_size
        self.pre_logits = nn.Linear(width, width) if config.pre_logits else None
        self.projection = None if embedding_width is None else nn.Linear(width, embedding_width)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        unpadded_output: bool = False,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        r"""
        NaFlex images of different sizes are computed in one row, without padding (`packing.py`). They stay padded
        where hidden states or attentions of the layers are asked for, and while tracing (`torch.compile` of the whole
        tower, `torch.export`, ONNX). Layers may be compiled one by one, `layer.compile(dynamic=True)`, and get rows.

        Args:
            pixel_values: Images (B, 3, H, W), or for NaFlex patches (B, L, p·p·3); values in [-1, 1].
            pixel_attention_mask: 1 for patches, 0 for padding, (B, L); made from `spatial_shapes` if not given.
                NaFlex only.
            spatial_shapes: Rows and columns of patches of each image, (B, 2). NaFlex only.
            interpolate_pos_encoding: Take images of another size and interpolate the positions (bicubic).
            unpadded_output: Give [`UnpaddedOutput`] instead: tokens (T, D) of all images, image after image.

        Returns:
            `last_hidden_state` (B, N, D) after the last norm and `pooler_output` (B, E), not normalised. With pooling
            "none" the latter is None, or (B, N, projection_size) where the config has a projection. States of NaFlex
            padding mean nothing: they are zero, or what the stock class has there.

        Raises:
            ValueError: The image size is not the tower's, or NaFlex inputs are missing or contradict each other.
        """
        if pixel_values is None:
            raise ValueError("pixel_values is missing")
        recorded = ("output_hidden_states", "output_attentions")
        recording = any(kwargs.get(name, getattr(self.config, name, False)) for name in recorded)
        layout = self._layout(pixel_values, pixel_attention_mask, spatial_shapes, recording)
        packing = {"packing": layout} if isinstance(layout, Packing) else {}
        hidden_states = self.embeddings(pixel_values, spatial_shapes, interpolate_pos_encoding, **packing)
        mask = layout
        if isinstance(layout, torch.Tensor):
            mask = create_bidirectional_mask(self.config, hidden_states, layout)
        hidden_states = self.post_layernorm(self.encoder(hidden_states, mask, **kwargs))
        arrange = unpadded if unpadded_output else padded
        return arrange(hidden_states, self._pool(hidden_states, layout), layout, pooled_tokens=self.head is None)

    def _layout(
        self, patches: torch.Tensor, mask: torch.Tensor | None, spatial_shapes: torch.Tensor | None, recording: bool
    ) -> Layout:
        if not self.config.naflex:
            if mask is not None or spatial_shapes is not None:
                raise ValueError("pixel_attention_mask and spatial_shapes are for NaFlex; this tower's size is fixed")
            return None
        patch_values = self.config.num_channels * self.config.patch_size**2
        return naflex_layout(patches, mask, spatial_shapes, patch_values, keep_padding=recording)

    def _pool(self, hidden_states: torch.Tensor, layout: Layout) -> torch.Tensor | None:
        if self.head is None and self.pre_logits is None and self.projection is None:
            return None
        pooled = hidden_states if self.head is None else self.head(hidden_states, layout)
        if self.pre_logits is not None:
            pooled = torch.tanh(self.pre_logits(pooled))
        return pooled if self.projection is None else self.projection(pooled)

    def get_patch_features(
        self,
        pixel_values: torch.Tensor,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        *,
        layer: int = -1,
        post_norm: bool = True,
    ) -> PatchFeatures:
        """Patch tokens of one layer with their grid.

        Args:
            layer: Index into the hidden states: 0 the embeddings, 1 the first layer's output, -1 the last one's.
            post_norm: Whether to apply the tower's last norm, whichever layer is taken.

        Raises:
            IndexError: The tower has no such layer.
        """
        inputs = pixel_values, pixel_attention_mask, spatial_shapes, interpolate_pos_encoding
        hidden_states = self(*inputs, output_hidden_states=True, return_dict=True).hidden_states
        if not -len(hidden_states) <= layer < len(hidden_states):
            raise IndexError(f"layer={layer}, but the tower has hidden states 0 to {len(hidden_states) - 1}")
        features = hidden_states[layer]
        if self.config.pooling == "cls":
            features = features[:, 1:]
        if post_norm:
            features = self.post_layernorm(features)
        if spatial_shapes is not None:
            mask = valid_patches(spatial_shapes, features.shape[1]).to(features.device)
            return PatchFeatures(features=features, grid=spatial_shapes, mask=mask)
        grid = torch.tensor([size // self.config.patch_size for size in pixel_values.shape[-2:]])
        return PatchFeatures(features=features, grid=grid.to(features.device).expand(features.shape[0], -1))


def embedding_size(config: SiglipExtConfig, kind: str) -> int:
    """Width of the embedding of one tower, "vision" or "text"."""
    tower = getattr(config, f"{kind}_config")
    projection_size = getattr(config, f"{kind}_projection_size") if is_foreign(tower) else tower.projection_size
    return tower_width(tower) if projection_size is None else projection_size


TOWERS = {"vision": (SiglipExtVisionConfig, SiglipExtVisionModel), "text": (SiglipExtTextConfig, SiglipExtTextModel)}


def check_embeddings(config: SiglipExtConfig) -> None:
    """Both towers give embeddings, and of one width."""
    if getattr(config.vision_config, "pooling", None) == "none":
        raise ValueError(
            'vision_config.pooling="none" gives no image embedding; choose another pooling, as '
            'SiglipExtVisionModel.from_pretrained(folder, pooling="mean") does with a tower that has no head'
        )
    sizes = embedding_size(config, "vision"), embedding_size(config, "text")
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"the image embedding has {sizes[0]} dimensions, the text embedding {sizes[1]}: set projection_size of "
            "one tower to the other's"
        )


def build_tower(config: SiglipExtConfig, kind: str) -> PreTrainedModel:
    """One tower, ours or one from elsewhere, as the configuration says."""
    tower = getattr(config, f"{kind}_config")
    if is_foreign(tower):
        return AutoModel.from_config(tower, **tower_arguments(tower, getattr(config, f"{kind}_pooling")))
    return TOWERS[kind][1]._from_config(tower)


def build_adapter(config: SiglipExtConfig, kind: str, tower: PreTrainedModel) -> ForeignTowerAdapter | None:
    """The adapter that a tower from elsewhere needs; our own towers need none."""
    if not is_foreign(getattr(config, f"{kind}_config")):
        return None
    pooling, projection_size = getattr(config, f"{kind}_pooling"), getattr(config, f"{kind}_projection_size")
    return ForeignTowerAdapter(tower, kind, pooling, projection_size)


def source_config(source: str | PreTrainedModel, kind: str) -> PreTrainedConfig:
    """The configuration of one tower of a model; a SigLIP one in our form."""
    config = source.config if isinstance(source, PreTrainedModel) else AutoConfig.from_pretrained(source)
    # a copy: making it part of another configuration resets the attention backend that a live model has chosen
    config = copy.deepcopy(getattr(config, f"{kind}_config", config))
    return sub_config(config, TOWERS[kind][0])


def load_tower(config: SiglipExtConfig, kind: str, source: str | PreTrainedModel) -> PreTrainedModel:
    tower = getattr(config, f"{kind}_config")
    if isinstance(source, PreTrainedModel):
        model = getattr(source, f"{kind}_model") if hasattr(source.config, f"{kind}_config") else source
        if is_foreign(tower) or isinstance(model, SiglipExtPreTrainedModel):
            return model
        ours = build_tower(config, kind)
        ours.load_state_dict(model.state_dict())
        return ours
    if is_foreign(tower):
        arguments: dict[str, Any] = tower_arguments(tower, getattr(config, f"{kind}_pooling"))
        return load_whole(AutoModel.from_pretrained, source, config=tower, **arguments)[0]
    return TOWERS[kind][1].from_pretrained(source, config=tower)


LOSSES: dict[str, Callable[..., torch.Tensor]] = {"sigmoid": sigmoid_loss, "softmax": softmax_loss}


class SiglipExtModel(SiglipExtPreTrainedModel):
    """The dual model with its loss head.

    In train mode the loss is that of the global batch: the ranks of `loss_group` (None: all ranks of
    torch.distributed, if it runs) share their embeddings. In eval mode nothing is communicated.

    Example:

    ```python
    >>> import torch
    >>> from modeling_siglip_ext import SiglipExtConfig, SiglipExtModel
    >>> tiny = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    >>> config = SiglipExtConfig(vision_config={**tiny, "image_size": 32}, text_config={**tiny, "vocab_size": 100})
    >>> model = SiglipExtModel(config).eval()
    >>> output = model(input_ids=torch.ones(2, 64, dtype=torch.long), pixel_values=torch.zeros(3, 3, 32, 32))
    >>> output.logits_per_image.shape
    torch.Size([3, 2])

    ```"""

    config: SiglipExtConfig
    loss_group: torch.distributed.ProcessGroup | None = None

    def __init__(
        self,
        config: SiglipExtConfig,
        vision_model: PreTrainedModel | None = None,
        text_model: PreTrainedModel | None = None,
    ):
        super().__init__(config)
        check_embeddings(config)
        self.text_model = build_tower(config, "text") if text_model is None else text_model
        self.vision_model = build_tower(config, "vision") if vision_model is None else vision_model
        self.text_adapter = build_adapter(config, "text", self.text_model)
        self.vision_adapter = build_adapter(config, "vision", self.vision_model)
        self.logit_scale = nn.Parameter(torch.empty(1))
        self.logit_bias = None if config.logit_bias_init is None else nn.Parameter(torch.empty(1))
        self.post_init()
        # it has gathered its towers' own, for which the other one is the rest of a full checkpoint
        self._keys_to_ignore_on_load_unexpected = {r"\.position_ids$"}

    @classmethod
    def from_vision_text_pretrained(
        cls,
        vision: str | PreTrainedModel,
        text: str | PreTrainedModel,
        *,
        vision_pooling: str | None = None,
        text_pooling: str | None = None,
        projection_size: int | None = None,
        **config_fields,
    ) -> "SiglipExtModel":
        """A dual model of two trained towers: SigLIP ones, or any image and text models of transformers.

        Args:
            vision, text: Each a model, or the name or folder of one.
            vision_pooling, text_pooling: How a tower from elsewhere gives its vector; see [`SiglipExtConfig`].
            projection_size: Width of the embedding: towers from elsewhere get a new linear head to it. Without it
                only a text tower from elsewhere gets one, to the width of the image embedding, as in LiT.
            config_fields: Further fields of [`SiglipExtConfig`], e.g. `loss_type="softmax", logit_bias_init=None`.

        Raises:
            ValueError: A tower takes other inputs or lacks the output that its pooling needs, or the two embeddings
                have different widths.

        Example:

        ```python
        model = SiglipExtModel.from_vision_text_pretrained("facebook/dinov2-base", "google-bert/bert-base-uncased")
        ```"""
        sources = {"vision": vision, "text": text}
        poolings = {"vision": vision_pooling, "text": text_pooling}
        configs = {kind: source_config(source, kind) for kind, source in sources.items()}
        fields: dict[str, Any] = {f"{kind}_config": config for kind, config in configs.items()}
        fields |= {f"{kind}_pooling": pooling for kind, pooling in poolings.items()} | config_fields
        if is_foreign(configs["vision"]):
            fields["vision_projection_size"] = projection_size
        config = SiglipExtConfig(**fields)
        if is_foreign(configs["text"]):
            config.text_projection_size = projection_size or embedding_size(config, "vision")
        check_embeddings(config)
        models = {f"{kind}_model": load_tower(config, kind, source) for kind, source in sources.items()}
        return cls(config, **models)

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        # before the weights, so that what `push_to_hub` uploads at the end is complete
        if kwargs.get("is_main_process", True):
            save_settings(self.config, save_directory)
        super().save_pretrained(save_directory, *args, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple | BaseModelOutputWithPooling:
        """The text tower's output; `pooler_output` (B, D) is the embedding before normalisation.

        `token_type_ids` reach no tower: a text is one segment. BERT's tokenizers give them.
        """
        if self.text_adapter is not None:
            kwargs.update(attention_mask=attention_mask, position_ids=position_ids)
            return self.text_adapter(self.text_model, input_ids, **kwargs)
        return self.text_model(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **kwargs)

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Any,
    ) -> tuple | BaseModelOutputWithPooling:
        """The vision tower's output; `pooler_output` (B, D) is the embedding before normalisation."""
        if self.vision_adapter is not None:
            if pixel_attention_mask is not None or spatial_shapes is not None:
                raise ValueError("pixel_attention_mask and spatial_shapes are for SigLIP's NaFlex towers")
            kwargs["interpolate_pos_encoding"] = interpolate_pos_encoding
            return self.vision_adapter(self.vision_model, pixel_values, **kwargs)
        return self.vision_model(
            pixel_values=pixel_values,
            pixel_attention_mask=pixel_attention_mask,
            spatial_shapes=spatial_shapes,
            interpolate_pos_encoding=interpolate_pos_encoding,
            **kwargs,
        )

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        return_loss: bool | None = None,
        interpolate_pos_encoding: bool = False,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        pair_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> SiglipExtOutput:
        r"""
        Args:
            input_ids: Texts (texts, max_position_embeddings).
            pixel_values: Images (images, 3, H, W), or NaFlex patches with `pixel_attention_mask`, `spatial_shapes`.
            return_loss: True for the loss, False for the logits, None for the loss in train mode and the logits in
                eval mode. With the loss the matrix of all pairs is not built, so there are no logits.
            pair_ids: For the loss: which images and texts belong together, (B,) int64; see [`sigmoid_loss`].

        Raises:
            ValueError: An input is missing or malformed, or a loss was asked for and images and texts differ in
                number.
        """
        vision_outputs = self.get_image_features(
            pixel_values, pixel_attention_mask, spatial_shapes, interpolate_pos_encoding, return_dict=True, **kwargs
        )
        text_outputs = self.get_text_features(input_ids, attention_mask, position_ids, return_dict=True, **kwargs)
        image_embeds = nn.functional.normalize(vision_outputs.pooler_output, dim=-1)
        text_embeds = nn.functional.normalize(text_outputs.pooler_output, dim=-1).to(image_embeds.device)
        loss = logits = None
        if self.training if return_loss is None else return_loss:
            loss = self.contrastive_loss(image_embeds, text_embeds, pair_ids)
        else:
            logits = self.logits(image_embeds, text_embeds)
        # in one call: an output keeps the order in which its fields are set; tuples, pytrees and exporters go by it
        return SiglipExtOutput(
            loss=loss,
            logits_per_image=logits,
            logits_per_text=None if logits is None else logits.t(),
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=text_outputs,
            vision_model_output=vision_outputs,
        )

    def logits(self, image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
        """Scores (images, texts) of normalised embeddings, in the loss head's precision whatever autocast says."""
        scale, bias = self._loss_head(image_embeds.device)
        with torch.autocast(image_embeds.device.type, enabled=False):
            logits = image_embeds.to(scale.dtype) @ text_embeds.to(scale.dtype).t() * scale.exp()
            return logits if bias is None else logits + bias

    def contrastive_loss(
        self, image_embeds: torch.Tensor, text_embeds: torch.Tensor, pair_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The loss of `config.loss_type` over normalised embeddings (B, D); over all ranks while training."""
        scale, bias = self._loss_head(image_embeds.device)
        # an evaluation may run on one rank alone, where a collective would wait forever
        options = {
            "pair_ids": pair_ids,
            "group": self.loss_group,
            "distribution": "auto" if self.training else "none",
        }
        return LOSSES[self.config.loss_type](image_embeds, text_embeds, scale, bias, **options)

    def _loss_head(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.logit_scale.to(device), None if self.logit_bias is None else self.logit_bias.to(device)


class SiglipExtForImageClassification(SiglipExtPreTrainedModel):
    """The vision tower with a linear classifier on its pooled vector (the stock class always averages tokens)."""

    config: SiglipExtConfig
    main_input_name = "pixel_values"
    input_modalities = "image"
    _new_on_load = r"^classifier\."

    def __init__(self, config: SiglipExtConfig):
        super().__init__(config)
        if is_foreign(config.vision_config):
            raise ValueError(
                f"vision_config is a {config.vision_config.model_type!r} model: load it with its own image "
                "classification class"
            )
        if config.vision_config.pooling == "none":
            raise ValueError('vision_config.pooling="none" gives nothing to classify; choose "map" or "mean"')
        assert config.num_labels is not None, "transformers counts id2label"
        self.num_labels = config.num_labels
        self.vision_model = SiglipExtVisionModel._from_config(config.vision_config)
        self.classifier = nn.Linear(embedding_size(config, "vision"), config.num_labels)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.vision_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.vision_model.set_input_embeddings(value)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Any,
    ) -> ImageClassifierOutput:
        r"""
        Args:
            labels: Class indices (B,), or regression targets / multi-label rows as `config.problem_type` says.
        """
        outputs = self.vision_model(
            pixel_values=pixel_values,
            pixel_attention_mask=pixel_attention_mask,
            spatial_shapes=spatial_shapes,
            interpolate_pos_encoding=interpolate_pos_encoding,
            **kwargs,
        )
        logits = self.classifier(outputs.pooler_output)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


# A tower alone reads its part of a full checkpoint, and is written as the stock tower classes write theirs.
for _, tower_class in TOWERS.values():
    prefix = PrefixChange(prefix_to_remove=tower_class.base_model_prefix)
    register_checkpoint_conversion_mapping(tower_class.__name__, [prefix], overwrite=True)
