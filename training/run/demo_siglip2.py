"""All that SigLIP 2 is trained for, on scenes of emoji, and a sheet of what came of it: `make demo-siglip2`.

    python -m modeling_siglip_ext.training.run.demo_siglip2 demo-siglip2-output

Trains the recipe `scenes` and writes the model with its decoder, and `before_and_after.png`: scenes, what their
captions and the box of a phrase are found to be, and the tokens of patches as colors, before training and after.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin
from transformers.utils.logging import disable_progress_bar

from modeling_siglip_ext.captioning import Box, CaptionDecoder, caption, locate_all
from modeling_siglip_ext.captioning.images import encoded_batches
from modeling_siglip_ext.encoding import evaluating
from modeling_siglip_ext.evaluation.metrics.dense import box_iou
from modeling_siglip_ext.evaluation.pictures.boxes import DrawnBox, box_sheet
from modeling_siglip_ext.evaluation.pictures.features import feature_colors
from modeling_siglip_ext.memory import keep_freed_memory

from ..components.towers import core_model
from ..data.scenes import Scenes, SceneSettings
from ..objectives.captioning import Captioning
from .fields import as_mapping
from .prepare import Run, prepare
from .recipe import parse_recipe
from .train import DECODER, train


SHOWN = 6
SECONDS = 330
SIDE = 216


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder to write, that is not there yet")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of training")
    arguments = parser.parse_args()
    folder, seconds = arguments.folder, str(arguments.seconds)
    keep_freed_memory()
    disable_progress_bar()
    run = prepare(parse_recipe("scenes", ["--output_dir", str(folder / "model"), "--max_seconds", seconds]))
    scenes = Scenes(SceneSettings(**(as_mapping("scenes", run.recipe.data.scenes) or {})), "validation")
    before = look(run, scenes)
    train(run)
    after = look(run, scenes)
    draw(folder / "before_and_after.png", scenes, before, after)
    print(f"""
{report(scenes, after)}

Look at
  {folder / "before_and_after.png"}   scenes, captions, boxes and features, before training and after

Next
  {locating(folder / "model", scenes[0]["regions"][0]["text"])}
  siglip-ext-train study siglip2   the objectives one by one
""")


def locating(model: Path, phrase: str) -> str:
    """The command that finds a phrase in the first of the held-out images that stand in the model's folder."""
    image = min((model / "held_out").glob("*.png"))
    return f'''siglip-ext-eval locate --model {model} --decoder {model / DECODER} \\
      --image {image} --phrases "{phrase}"'''


@dataclass(frozen=True)
class Seen:
    """What a model makes of scenes: a caption, the box of the first phrase in pixels, and the tokens."""

    captions: list[str]
    boxes: list[Box | None]
    tokens: torch.Tensor


def decoder_of(run: Run) -> CaptionDecoder:
    return cast(Captioning, run.trainer.parts["captioning"]).decoder


def look(run: Run, scenes: Scenes) -> Seen:
    model = cast(PreTrainedModel, core_model(run.trainer.model))
    decoder, processor = decoder_of(run), cast(ProcessorMixin, run.trainer.processing_class)
    rows = scenes[:SHOWN]
    images, phrases = [row["image"] for row in rows], [row["regions"][0]["text"] for row in rows]
    with evaluating(model):
        tokens = torch.cat([some for some, *_ in encoded_batches(model, processor, images, SHOWN)])
    return Seen(
        caption(model, decoder, processor, images), locate_all(model, decoder, processor, images, phrases), tokens
    )


def draw(path: Path, scenes: Scenes, before: Seen, after: Seen) -> None:
    """A row a scene: what it is, what was found before and after, and both features as colors."""
    cells: list[tuple[Image.Image, str, list[DrawnBox]]] = []
    colors = [feature_colors(one.tokens, SIDE) for one in (before, after)]
    for number, row in enumerate(scenes[:SHOWN]):
        image = row["image"].resize((SIDE, SIDE), Image.Resampling.NEAREST)
        truth = [DrawnBox(scaled(region["box"], SIDE), region["text"], right=True) for region in row["regions"][:1]]
        cells.append((image, row["caption"], truth))
        for name, seen, colored in zip(("before", "after"), (before, after), colors):
            box = seen.boxes[number]
            drawn = [] if box is None else [DrawnBox(scaled(box, SIDE / row["image"].width), truth[0].text)]
            cells.append((image, f"{name}: {seen.captions[number] or 'nothing'}", drawn))
            cells.append((colored[number], f"tokens {name}", []))
    images, words, boxes = zip(*cells)
    box_sheet(
        path, images, words, boxes, columns=5, title="Scenes never trained on: captions, a phrase's box, features"
    )


def scaled(box: Sequence[float], factor: float) -> tuple[float, float, float, float]:
    left, top, right, bottom = (side * factor for side in box)
    return left, top, right, bottom


def report(scenes: Scenes, seen: Seen) -> str:
    """How the scenes of the sheet came out, in a line each."""
    lines = []
    for row, words, box in zip(scenes[:SHOWN], seen.captions, seen.boxes):
        region, width = row["regions"][0], row["image"].width
        found = 0.0 if box is None else box_iou(np.array([box]) / width, np.array([region["box"]]))[0]
        lines.append(f"{row['caption']!r} was called {words!r}; box of {region['text']!r}: IoU {found:.2f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
