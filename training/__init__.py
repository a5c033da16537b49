"""Training SigLIP-family models on the Hugging Face Trainer, with the loss over the global batch."""

if __name__ == "training":
    raise ImportError(
        "this room is imported as modeling_siglip_ext.training; run `pip install -e .` in the repository first"
    )

from .arguments import SiglipExtTrainingArguments
from .data.dataset import ImageTextCollator, ImageTextDataset, load_image_folder
from .data.image_embeddings import load_embeddings, precompute
from .run.prepare import prepare
from .run.recipe import parse_recipe
from .run.train import train
from .trainer import SiglipExtTrainer


__all__ = [
    "ImageTextCollator",
    "ImageTextDataset",
    "SiglipExtTrainer",
    "SiglipExtTrainingArguments",
    "load_embeddings",
    "load_image_folder",
    "parse_recipe",
    "precompute",
    "prepare",
    "train",
]
