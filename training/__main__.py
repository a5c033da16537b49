"""`siglip-ext-train`: train or fine-tune from a recipe."""

import sys
from collections.abc import Sequence

from transformers.utils.logging import disable_progress_bar

from .run.fields import bundled_recipes, parse_recipe, recipe_parser


HELP = """\
usage: siglip-ext-train RECIPE [--FIELD VALUE ...]
       siglip-ext-train precompute --vision_name_or_path MODEL --dataset DATASET --output_dir FOLDER
       siglip-ext-train study NAME [--seeds N] [--workers N]

Train a SigLIP model. RECIPE is a bundled recipe ({recipes}) or a YAML file; every field of it can be overridden.

examples:
  # a small model from scratch on the bundled emoji, about four minutes on two CPU cores
  siglip-ext-train emoji --output_dir demo-output

  # the same in one minute, with another width
  siglip-ext-train emoji --output_dir demo-output --max_seconds 60 --vision_config.hidden_size 96

  # fine-tune a released checkpoint on your own folder of images with captions
  siglip-ext-train finetune --dataset my-images --output_dir my-siglip

  # LiT from embeddings: the locked image tower runs once, then only the text tower is trained
  siglip-ext-train precompute --vision_name_or_path facebook/dinov2-base --dataset my-images --output_dir embeddings
  siglip-ext-train siglit --dataset my-images --image_embeddings embeddings --output_dir my-lit

  # try any recipe on the bundled emoji in a minute: a tiny model and few steps, with the recipe's optimiser and loss
  siglip-ext-train siglip_b16 --smoke --output_dir smoke-output

  # several GPUs: the loss still runs over the global batch
  torchrun --nproc-per-node 4 -m modeling_siglip_ext.training my-recipe.yaml

`siglip-ext-train RECIPE --help` lists every field."""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `siglip-ext-train`."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(HELP.format(recipes=", ".join(bundled_recipes())))
        return
    name, overrides = words[0], words[1:]
    if name == "precompute":
        from .run.precompute import main as precompute

        status = precompute(overrides)
        if status:
            sys.exit(status)
        return
    if name == "study":
        from .studies.command import main as study

        study(overrides)
        return
    if "-h" in overrides or "--help" in overrides:
        recipe_parser(prog=f"siglip-ext-train {name}").print_help()
        return

    disable_progress_bar()  # of loading and saving; training shows its own
    try:
        smoke = "--smoke" in overrides
        recipe = parse_recipe(name, [word for word in overrides if word != "--smoke"], smoke)
        # torch, datasets and transformers' models load only now, so that a typo is reported at once.
        from .run.train import prepare, train

        if smoke:
            from .run.smoke_start import small_start

            small_start(recipe)
        run = prepare(recipe)
    except (ValueError, FileNotFoundError, ImportError) as error:
        sys.exit(f"siglip-ext-train: error: {error}")
    train(run)
    if run.trainer.is_world_process_zero():
        print(f"\nModel, card and pictures are in {run.trainer.args.output_dir}")
    run.trainer.end()


if __name__ == "__main__":
    main()
