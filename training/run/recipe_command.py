"""`siglip-ext-train RECIPE`: train from a recipe, whose fields are the options."""

from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback
from transformers.utils.logging import disable_progress_bar

from modeling_siglip_ext.command_line import Subparsers, refused

from .prepare import prepare
from .recipe import bundled_recipes, field_parser, parse_recipe, recipe_text
from .smoke import shrunk, small_start
from .train import train


SMOKE = "--smoke"


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
    """Train; what is wrong before the first step is one line, a crash after it a traceback."""
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
    except (ValueError, OSError, ImportError) as error:
        if first.begun:
            raise
        return refused(prog, error)
    if run.trainer.is_world_process_zero():
        print(f"\nModel, card and pictures are in {run.folder}")
    run.trainer.end()
    return 0
