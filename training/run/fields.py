"""The fields of a recipe beside those of the Trainer: the model, and the data."""

import difflib
import json
import math
from collections.abc import Collection
from dataclasses import dataclass, field, fields

from transformers import CONFIG_MAPPING, PreTrainedConfig

from modeling_siglip_ext.configuration_siglip_ext import SiglipExtTextConfig, SiglipExtVisionConfig
from modeling_siglip_ext.evaluation.data.sources import shards_of

from ..arguments import option
from ..components.initial_values import InitialValues
from ..data.lengths import check_lengths
from ..data.region_table import REGIONS
from ..data.scenes.settings import SceneSettings


EMOJI, SCENES = "emoji", "scenes"
BUNDLED = (EMOJI, SCENES)
SCENE_SETTINGS = [one.name for one in fields(SceneSettings)]
# Of a text tower from scratch they follow from its tokenizer.
OF_THE_TOKENIZER = {
    "vocab_size": "set vocab_size, or tokenizer_name_or_path",
    "pad_token_id": "it is the tokenizer's",
    "bos_token_id": "it is the tokenizer's",
    "eos_token_id": "it is the tokenizer's",
}


@dataclass
class ModelArguments:
    """The model: a released checkpoint to fine-tune, or the configuration of one to train from scratch."""

    _argument_group_name = "model"

    model_name_or_path: str | None = option(
        None, "Folder or Hub name of a SigLIP / SigLIP 2 checkpoint to start from. Without it: from scratch."
    )
    image_size: int | None = option(
        None, "With model_name_or_path: train at another resolution, in pixels, with resampled positions."
    )
    naflex: bool | None = option(
        None,
        "With model_name_or_path: true makes a checkpoint of fixed resolution NaFlex, for images of any shape; false "
        "makes a NaFlex one fixed, at the resolution of its position grid.",
    )
    vision_name_or_path: str | None = option(
        None,
        "Put towers together, as LiT does: folder or Hub name of a trained image tower, SigLIP or another "
        "image model of transformers. The text tower is text_name_or_path, or new from text_config.",
    )
    text_name_or_path: str | None = option(
        None, "With vision_name_or_path: a trained text tower, SigLIP or e.g. BERT."
    )
    vision_pooling: str | None = option(
        None, "How an image tower from elsewhere gives its vector: first, pooler, mean, max or last."
    )
    text_pooling: str | None = option(None, "The same of a text tower from elsewhere.")
    text_length: int | None = option(None, "Tokens per text for a text tower from elsewhere; 64 unless given.")
    vision_config: dict | str | None = field(
        default=None,
        metadata={"help": "From scratch: fields of SiglipExtVisionConfig. Also `--vision_config.hidden_size 64`."},
    )
    text_config: dict | str | None = field(
        default=None,
        metadata={"help": "From scratch: fields of SiglipExtTextConfig. Also `--text_config.hidden_size 64`."},
    )
    vocab_size: int = option(2000, "From scratch: size of the tokenizer trained on the training captions.")
    tokenizer_name_or_path: str | None = option(
        None, "From scratch: folder or Hub name whose tokenizer to use, in place of one trained on the captions."
    )
    loss_type: str = option("sigmoid", "From scratch: sigmoid (SigLIP) or softmax (CLIP).")
    logit_scale_init: float | None = option(None, "From scratch: initial log temperature; log 10 unless given.")
    logit_bias_init: float | None = option(None, "From scratch: initial bias; -10 unless given.")
    initial_values: dict | str | None = field(
        default=None,
        metadata={
            "help": "From scratch: other initial values of the image tower, with which tokens keep their place where "
            "training is short: position_std, patch_scale, residual_scale."
        },
    )
    license: str | None = option(
        None, "Licence of the trained weights, a Hub identifier such as apache-2.0, for the card."
    )
    attn_implementation: str | None = option(
        None, "eager, sdpa, flash_attention_2 or flex_attention; transformers' choice unless given."
    )

    def __post_init__(self):
        for name, own in (("vision_config", SiglipExtVisionConfig), ("text_config", SiglipExtTextConfig)):
            setattr(self, name, as_mapping(name, getattr(self, name)))
            check_keys(name, getattr(self, name) or {}, own)
        self.initial_values = as_mapping("initial_values", self.initial_values)
        for name in self.initial_values or {}:
            check_name("initial_values", name, [one.name for one in fields(InitialValues)])
        if self.model_name_or_path is not None and (self.vision_config or self.text_config):
            raise ValueError(
                "model_name_or_path brings its own configuration: leave out vision_config and text_config"
            )
        if self.image_size is not None and self.model_name_or_path is None:
            raise ValueError("image_size is for model_name_or_path; from scratch set vision_config.image_size")
        if self.naflex is not None and self.model_name_or_path is None:
            raise ValueError("naflex is for model_name_or_path; from scratch set vision_config.naflex")
        if self.naflex and self.image_size is not None:
            raise ValueError("naflex=true takes images of any size: leave out image_size")
        if self.vision_name_or_path is not None and (self.model_name_or_path is not None or self.vision_config):
            raise ValueError(
                "vision_name_or_path is the image tower: leave out model_name_or_path and vision_config, or it"
            )
        if self.text_name_or_path is not None and (self.vision_name_or_path is None or self.text_config):
            raise ValueError("text_name_or_path needs vision_name_or_path and excludes text_config")
        for name in ("image_size", "text_length", "vocab_size"):
            check_number(name, getattr(self, name), least=1)
        for name in ("logit_scale_init", "logit_bias_init"):
            check_number(name, getattr(self, name))


@dataclass
class DataArguments:
    """The images and captions."""

    _argument_group_name = "data"

    dataset: str = option(
        EMOJI,
        "`emoji` or `scenes` (bundled), a folder of images with captions, a Parquet, CSV, TSV, JSON or JSON lines "
        "file, the Hub name of a dataset, or WebDataset shards: `data/train-{0000..0127}.tar`, a glob, a folder, any "
        "fsspec URL.",
    )
    scenes: dict | str | None = field(
        default=None,
        metadata={
            "help": "Settings of the dataset scenes: names, variants, objects, size, emoji_size, backgrounds, count, "
            "held_out, seed. Also `--scenes.count 1000`."
        },
    )
    separator: str | None = option(
        None, "Of the values in a CSV file, such as `;`. Without it: the one found in its first line."
    )
    dataset_config: str | None = option(None, "Configuration of a Hub dataset.")
    train_split: str = option("train", "Split of a Hub dataset to train on.")
    eval_split: str | None = option(
        None,
        "Split of a Hub dataset to evaluate on. Without it: eval_fraction of train_split. Of scenes: validation "
        "unless given, or test, scenes of held-out emoji.",
    )
    eval_fraction: float = option(
        0.1, "Share of a dataset without evaluation split that is held out, by seed. 0: none."
    )
    image_column: str = option("image", "Column of images.")
    caption_column: list[str] = field(
        default_factory=lambda: ["caption"],
        metadata={
            "help": "Column of captions (strings or lists of strings), or several columns. One caption of an image is "
            "drawn per epoch; evaluation takes the first."
        },
    )
    streaming: bool = option(False, "Read a Hub dataset in order instead of downloading it first. Needs max_steps.")
    shuffle_buffer: int = option(1000, "Of a stream or shards: rows among which the next one is drawn at random.")
    image_embeddings: str | None = option(
        None, "Folder of `siglip-ext-train precompute`: train from its embeddings, with no image tower."
    )
    cache_gib: float = option(2.0, "Keep resized images in memory as uint8 if they fit in this many GiB.")
    naflex_lengths: list[int] | None = field(
        default=None,
        metadata={
            "help": "Of a NaFlex model: patches of an image at most, one of these numbers for each batch, as SigLIP 2 "
            "was trained with 128 256 576 784 1024. Without it: the image processor's max_num_patches."
        },
    )
    upscale: bool = option(
        True,
        "Of a NaFlex model: enlarge an image of fewer patches to as many as it may have, as SigLIP 2 does. Without, "
        "it keeps its own.",
    )
    region_column: str | None = option(
        None, "Column of regions for captioning: lists of {box, text, score}, boxes in shares of width and height."
    )
    regions_file: str | None = option(
        None,
        "Table with the regions in place of a column of the dataset: what `siglip-ext-train regions` wrote, or any "
        "file or folder that `dataset` may be, with a column `regions`. Row by row unless regions_key is set.",
    )
    regions_key: str | None = option(None, "Column of dataset and regions_file that says what belongs together.")
    pair_column: str | None = option(
        None,
        "Column of pair ids: images and texts with equal ids belong together and are no negatives of each other, in "
        "whatever batch and process they are. A row without one is a pair of its own.",
    )
    equal_captions_match: bool = option(
        False, "The same for equal captions, compared as tokens, which would be each other's false negatives."
    )
    group_column: str | None = option(
        None,
        "Column that says which rows are variants of one thing (a product in several colours). Variants "
        "then share a batch, as each other's hard negatives; group_size says how many.",
    )
    shuffle_captions: bool = option(
        False, "Control: train with the captions of other images. Held-out figures must be at chance."
    )

    def __post_init__(self):
        if isinstance(self.caption_column, str):
            self.caption_column = [self.caption_column]
        self.scenes = as_mapping("scenes", self.scenes)
        self.scene_settings()
        if self.image_embeddings is not None and self.is_stream:
            raise ValueError("image_embeddings belong to rows with an index: unset streaming, and use no shards")
        self._check_regions()
        if self.pair_column is not None and self.equal_captions_match:
            raise ValueError("pair_column and equal_captions_match both say what belongs together: set one of them")
        if self.pair_column is not None and self.shuffle_captions:
            raise ValueError("shuffle_captions gives images the captions of others, to which no pair_column applies")
        if not 0 <= self.eval_fraction < 1:
            raise ValueError(f"eval_fraction must be in [0, 1), got {self.eval_fraction}")
        check_number("shuffle_buffer", self.shuffle_buffer, least=1)
        check_number("cache_gib", self.cache_gib, least=0)
        check_lengths(self.naflex_lengths)

    def _check_regions(self) -> None:
        """
        Raises:
            ValueError: a table of regions beside a column of them, or for data whose rows it cannot know.
        """
        if self.regions_file is None:
            return
        if self.region_column not in (None, REGIONS):
            raise ValueError("region_column and regions_file both give the regions: set one of them")
        if self.is_stream or self.dataset in BUNDLED:
            raise ValueError(
                "regions_file is for rows with an index: samples of a stream or shards, and scenes, have regions of "
                "their own; set region_column"
            )
        self.region_column = REGIONS

    def scene_settings(self) -> SceneSettings:
        """What scenes look like.

        Raises:
            ValueError: an unknown setting, or one that `SceneSettings` refuses.
        """
        given = as_mapping("scenes", self.scenes) or {}
        for name in given:
            check_name("scenes", name, SCENE_SETTINGS)
        try:
            return SceneSettings(**given)
        except ValueError as error:
            raise ValueError(f"scenes.{error}") from error

    @property
    def is_stream(self) -> bool:
        """Whether the data is read in order and has no length."""
        return self.streaming or bool(shards_of(self.dataset, self.train_split))


def check_number(name: str, value: float | None, least: float = -math.inf) -> None:
    """
    Raises:
        ValueError: it is not finite, or too small.
    """
    if value is not None and not (math.isfinite(value) and value >= least):
        raise ValueError(f"{name} must be {'a number' if math.isinf(least) else f'at least {least}'}, got {value}")


def check_keys(name: str, given: dict, own: type[PreTrainedConfig]) -> None:
    """Whether a tower's configuration reads all that is given; transformers keeps any other key without using it.

    Raises:
        ValueError: for a key that it does not know, with the nearest, or that the tokenizer decides.
    """
    kind = given.get("model_type", own.model_type)
    if kind != own.model_type and kind not in CONFIG_MAPPING:
        raise ValueError(f"{name}.model_type={kind!r} is no model of transformers")
    config: type[PreTrainedConfig] = own if kind == own.model_type else CONFIG_MAPPING[kind]
    classes = [one for one in config.__mro__ if issubclass(one, PreTrainedConfig) and one is not PreTrainedConfig]
    known = {"model_type", *config.attribute_map, *(key for one in classes for key in one.__annotations__)}
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(sorted(known))}"
            raise ValueError(f"{name}: unknown field {key!r}; {hint}")
        if name == "text_config" and key in OF_THE_TOKENIZER:
            raise ValueError(f"text_config.{key} has no effect: {OF_THE_TOKENIZER[key]}")


def as_mapping(name: str, value: dict | str | None) -> dict | None:
    """The value of a field that is a mapping or, on the command line, JSON text.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"{name} must be a mapping or JSON text, got {value!r}") from error
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"{name} must be a mapping, got {value!r}")
    return value


def check_name(setting: str, name: str, known: Collection[str]) -> None:
    """
    Raises:
        ValueError: naming the nearest known name.
    """
    if name not in known:
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        raise ValueError(f"{setting}: unknown name {name!r}; {hint}")
