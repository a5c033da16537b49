"""`siglip-ext-train precompute`: the embeddings of a locked image tower, once for all epochs and runs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import HfArgumentParser

from modeling_siglip_ext.command_line import Subparsers

from ..data.image_embeddings import precompute
from .fields import DataArguments
from .rows import every_row


NAME = "precompute"


@dataclass
class PrecomputeArguments(DataArguments):
    """Write image embeddings to train from with `--image_embeddings`. Run it again to continue where it stopped."""

    vision_name_or_path: str = field(
        default="", metadata={"help": "Folder or Hub name of the image tower, SigLIP or another image model."}
    )
    vision_pooling: str | None = field(
        default=None, metadata={"help": "How a tower from elsewhere gives its vector: first, pooler, mean, max, last."}
    )
    output_dir: str = field(default="image-embeddings", metadata={"help": "Folder of the shards."})
    batch_size: int = field(default=64, metadata={"help": "Images in one forward."})
    shard_size: int = field(default=10_000, metadata={"help": "Images in one file."})
    bf16: bool = field(default=False, metadata={"help": "Run the tower in bfloat16; embeddings are saved in float32."})
    max_bad_fraction: float = field(
        default=0.01, metadata={"help": "Largest share of images that may be unreadable. Training leaves them out."}
    )

    def __post_init__(self):
        super().__post_init__()
        if not self.vision_name_or_path:
            raise ValueError("vision_name_or_path is missing: which image tower?")
        for name in ("batch_size", "shard_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")


def register(commands: Subparsers) -> None:
    """List the command; `main` reads its words."""
    commands.add_parser(NAME, help="write the embeddings of a locked image tower, once for all epochs and runs")


def main(words: Sequence[str]) -> None:
    """Entry point of `siglip-ext-train precompute`; under torchrun each process embeds a share of the shards.

    Raises:
        FileNotFoundError, ValueError: naming the field and the remedy.
    """
    parser = HfArgumentParser(PrecomputeArguments, prog="siglip-ext-train precompute", allow_abbrev=False)
    (args,) = parser.parse_args_into_dataclasses(list(words), look_for_args_file=False)
    state = PartialState()
    precompute(
        args.vision_name_or_path,
        every_row(args),
        Path(args.output_dir),
        image_column=args.image_column,
        pooling=args.vision_pooling,
        batch_size=args.batch_size,
        shard_size=args.shard_size,
        device=state.device,
        dtype=torch.bfloat16 if args.bf16 else torch.float32,
        max_bad_fraction=args.max_bad_fraction,
        rank=state.process_index,
        world_size=state.num_processes,
    )
    if state.is_main_process:
        print(f"The embeddings are in {args.output_dir}")
