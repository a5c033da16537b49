"""Training SigLIP-family models on the Hugging Face Trainer, with the loss over the global batch."""

if __name__ == "training":
    raise ImportError(
        "this room is imported as modeling_siglip_ext.training; run `pip install -e .` in the repository first"
    )

from .arguments import SiglipExtTrainingArguments
from .data.collator import ImageTextCollator
from .data.dataset import ImageTextDataset
from .data.folder import load_image_folder
from .data.image_embeddings import load_embeddings
from .data.locca import CaptioningCollator, CaptionTargets, CaptionTasks
from .data.streaming import ImageTextStream
from .data.tar_shards import TarShards
from .objectives.captioning import Captioning
from .run.precompute import precompute
from .run.prepare import prepare
from .run.recipe import parse_recipe
from .run.train import train
from .trainer import SiglipExtTrainer


__all__ = [
    "CaptionTargets",
    "CaptionTasks",
    "Captioning",
    "CaptioningCollator",
    "ImageTextCollator",
    "ImageTextDataset",
    "ImageTextStream",
    "SiglipExtTrainer",
    "SiglipExtTrainingArguments",
    "TarShards",
    "load_embeddings",
    "load_image_folder",
    "parse_recipe",
    "precompute",
    "prepare",
    "train",
]
