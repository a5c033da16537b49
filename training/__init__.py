"""Training SigLIP-family models on the Hugging Face Trainer, with the loss over the global batch."""

if __name__ == "training":
    raise ImportError(
        "this room is imported as modeling_siglip_ext.training; run `pip install -e .` in the repository first"
    )

from .arguments import SiglipExtTrainingArguments
from .data.dataset import ImageTextCollator, ImageTextDataset, load_image_folder
from .trainer import SiglipExtTrainer


__all__ = [
    "ImageTextCollator",
    "ImageTextDataset",
    "SiglipExtTrainer",
    "SiglipExtTrainingArguments",
    "load_image_folder",
]
