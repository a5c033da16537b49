"""The command `siglip-ext-train`: train or fine-tune from a recipe, and what goes before and beside it."""

import sys
from collections.abc import Sequence

import torch

from modeling_siglip_ext import command_line
from modeling_siglip_ext.memory import keep_freed_memory

from .run import precompute, recipe_command, regions
from .run.recipe import is_recipe
from .studies import command as study


PROG = "siglip-ext-train"
DESCRIPTION = """Train a SigLIP model: siglip-ext-train RECIPE|FILE.yaml [--FIELD VALUE ...]

COMMAND is a bundled recipe or a YAML file, every field of which can be overridden, or one of the other commands."""
EXAMPLES = """examples:
  # a small model from scratch on the bundled emoji, about four minutes on two CPU cores
  siglip-ext-train emoji --output_dir demo-output

  # the same in one minute, with another width
  siglip-ext-train emoji --output_dir demo-output --max_seconds 60 --vision_config.hidden_size 96

  # fine-tune a released checkpoint on your own folder of images with captions
  siglip-ext-train finetune --dataset my-images --output_dir my-siglip

  # LiT from embeddings: the locked image tower runs once, then only the text tower is trained
  siglip-ext-train precompute --vision_name_or_path facebook/dinov2-base --dataset my-images --output_dir embeddings
  siglip-ext-train siglit --dataset my-images --image_embeddings embeddings --output_dir my-lit

  # choose what to train on by a reference model, which runs once
  siglip-ext-train precompute --reference_name_or_path google/siglip2-so400m-patch16-256 --dataset my-images \
      --output_dir my-reference
  siglip-ext-train finetune --dataset my-images --curation.reference_embeddings my-reference --output_dir my-siglip

  # try any recipe on the bundled emoji in a minute: a tiny model and few steps, with the recipe's optimiser and loss
  siglip-ext-train siglip_b16 --smoke --output_dir smoke-output

  # several GPUs: the loss still runs over the global batch
  torchrun --nproc-per-node 4 -m modeling_siglip_ext.training my-recipe.yaml

`siglip-ext-train RECIPE --help` lists every field. Bad input ends with exit status 2."""
COMMANDS = (precompute, regions, study, recipe_command)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `siglip-ext-train`; returns the exit status."""
    if argv is None and not torch.accelerator.is_available():  # a process of its own, that trains on the CPU
        keep_freed_memory()
    words = command_line.underscored(sys.argv[1:] if argv is None else argv)
    if words and words[0] not in ("precompute", "regions", "study") and is_recipe(words[0]):
        return recipe_command.run_recipe(PROG, words[0], words[1:])
    return command_line.main(command_line.command_line(PROG, DESCRIPTION, COMMANDS, EXAMPLES), words)


if __name__ == "__main__":
    sys.exit(main())
