"""Images and captions on their way to a batch."""

from .collator import ImageTextCollator
from .dataset import ImageTextDataset
from .folder import load_image_folder
from .image_embeddings import load_embeddings
from .streaming import ImageTextStream
from .tar_shards import TarShards


__all__ = [
    "ImageTextCollator",
    "ImageTextDataset",
    "ImageTextStream",
    "TarShards",
    "load_embeddings",
    "load_image_folder",
]
