"""`siglip-ext-train RECIPE`: train from a recipe, whose fields are the options."""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.utils.logging import disable_progress_bar

from modeling_siglip_ext.command_line import Subparsers, refused
from modeling_siglip_ext.hub.calls import PublishError

from ..components.card import output_folder
from ..components.run_folder import checkpoints
from ..data.samples import BAD_SAMPLE, TooManyBadSamples
from .prepare import prepare
from .recipe import bundled_recipes, field_parser, parse_recipe, recipe_text
from .smoke import shrunk, small_start
from .train import UnfinishedRunError, train


SMOKE = "--smoke"
# The user's to mend, also in the middle of training: bad data, a rate too high, a full disk, the Hub.
ALSO_LATER = (*BAD_SAMPLE, TooManyBadSamples, FloatingPointError, OSError, PublishError, UnfinishedRunError)


class FirstStep(TrainerCallback):
    """Knows whether training has begun: what fails before is its user's to mend."""

    def __init__(self):
        self.begun = False

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.begun = True


def register(commands: Subparsers) -> None:
    """List the bundled recipes, to be found in the help and by a mistyped name; `run_recipe` reads the words."""
    for name in bundled_recipes():
        summary = recipe_text(name).partition("\n")[0].removeprefix("# ").partition(". ")[0]
        commands.add_parser(name, help=summary.rstrip(".").replace("%", "%%"))


def run_recipe(prog: str, name: str, overrides: Sequence[str]) -> int:
    """Train; what the user can mend is one line, a crash in the middle of training a traceback."""
    if {"-h", "--help"} & set(overrides):
        parser = field_parser(prog=f"{prog} {name}")
        parser.add_argument(SMOKE, action="store_true", help="A tiny model and few steps on the bundled emoji.")
        parser.print_help()
        return 0
    disable_progress_bar()  # of loading and saving; training shows its own
    first = FirstStep()
    smoke = SMOKE in overrides
    try:
        recipe = parse_recipe(name, [word for word in overrides if word != SMOKE], shrunk if smoke else None)
        if smoke:
            small_start(recipe)
        run = prepare(recipe)
        run.trainer.add_callback(first)
        train(run)
    except torch.OutOfMemoryError as error:
        return refused(prog, ValueError(f"{error} Lower per_device_train_batch_size, or set mini_batch_size"))
    except ALSO_LATER as error:
        status = refused(prog, error)
        there = checkpoints(output_folder(recipe.training)) if first.begun else []
        if there and not isinstance(error, UnfinishedRunError):
            print(f"{there[-1]} is there: go on from it with --resume_from_checkpoint true", file=sys.stderr)
        return status
    except (ValueError, ImportError) as error:
        if first.begun:
            raise
        return refused(prog, error)
    if run.trainer.is_world_process_zero():
        print(f"\nModel, card and pictures are in {run.folder}")
    run.trainer.end()
    return 0
