"""Training SigLIP-family models on the Hugging Face Trainer, with the loss over the global batch."""

if __name__ == "training":
    raise ImportError(
        "this room is imported as modeling_siglip_ext.training; run `pip install -e .` in the repository first"
    )

from .arguments import SiglipExtTrainingArguments
from .data import ImageTextCollator, ImageTextDataset, ImageTextStream, TarShards, load_embeddings, load_image_folder
from .run.precompute import precompute
from .run.prepare import prepare
from .run.recipe import parse_recipe
from .run.train import train
from .trainer import SiglipExtTrainer


__all__ = [
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
