"""What a NaFlex model learns that was adapted from a fixed one: emoji, and compositions of them of any shape.

    python benchmarks/naflex_emoji.py                       # three seeds, some seventeen minutes of a core a seed
    python benchmarks/naflex_emoji.py --seeds 0             # one of them; the others keep their lines
    python benchmarks/naflex_emoji.py --validation --learning_rate 1e-3    # choose settings; printed only
    python benchmarks/naflex_emoji.py --validation --enlarge               # with small images enlarged, as by default

Three models a seed. `fixed` is the emoji recipe, from scratch, 64 x 64 pixels. `naflex` goes on from it at the lengths
below with emoji and compositions; `still fixed` goes on with the same examples for as many steps, but as it was: every
image squashed to 64 x 64. Images of fewer patches than a length keep their own (`upscale: false`): emoji have 64 x 64
pixels, and so 16 patches at every length from 16 on.

A composition has one to three emoji of the same split on a white strip; the ratio of its sides is drawn evenly in its
logarithm from 1 to 200, lying or standing; the caption is their names in order. Held out are the emoji set's held-out
pictures, and compositions of those. Bar: at its best length the adapted model is at least as good as the fixed one on
the emoji, at every seed. `--validation` trains and judges on parts of the training images; there the learning rate,
the steps and the number of compositions were chosen.

Results are kept in results/naflex_emoji.json; table and plot beside it are drawn from that.
"""

import argparse
import json
import random
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, Value, concatenate_datasets
from emoji import validation_emoji
from matplotlib.figure import Figure
from PIL import Image as PillowImage
from report import RESULTS, publish, store, stored, table, versions
from transformers import AutoProcessor

from modeling_siglip_ext import SiglipExtModel
from modeling_siglip_ext.evaluation import EvaluationData, evaluate
from modeling_siglip_ext.evaluation.pictures.style import ACCENT, MUTED, WRONG, quiet, save
from modeling_siglip_ext.training.run import rows
from modeling_siglip_ext.training.run.prepare import prepare
from modeling_siglip_ext.training.run.recipe import parse_recipe
from modeling_siglip_ext.training.run.train import train


LENGTHS = (16, 32, 64, 144)
JUDGED_AT = (8, 16, 32, 64, 100, 144, 256)
SIDE = 64
LONGEST_RATIO = 200.0
COMPOSITIONS = {"train": 1000, "test": 500}
# Of ratios up to; a part of the compositions each.
PARTS = (4.0, 20.0, LONGEST_RATIO)
MODELS = ("fixed", "still fixed", "naflex")
FEATURES = Features({"image": Image(), "caption": Value("string"), "ratio": Value("float64")})
Figures = dict[str, float]


def emoji_rows(emoji: Dataset) -> Dataset:
    """The emoji themselves, as rows of the same columns."""
    columns = {"image": list(emoji["image"]), "caption": list(emoji["en"]), "ratio": [1.0] * len(emoji)}
    return Dataset.from_dict(columns, FEATURES)


def compositions(emoji: Dataset, count: int, seed: int) -> Dataset:
    """Strips of one to three different emoji, at places drawn evenly, with their names from left or top."""
    draw = random.Random(seed)
    images, names = [image.convert("RGB") for image in emoji["image"]], list(emoji["en"])
    found = {"image": [], "caption": [], "ratio": []}
    for _ in range(count):
        ratio = LONGEST_RATIO ** draw.random()
        long = round(SIDE * ratio)
        chosen = draw.sample(range(len(images)), min(draw.randint(1, 3), long // SIDE))
        # the room that is left, cut at random places
        cuts = sorted(draw.randint(0, long - SIDE * len(chosen)) for _ in chosen)
        lies = draw.random() < 0.5
        canvas = PillowImage.new("RGB", (long, SIDE) if lies else (SIDE, long), "white")
        for place, (cut, one) in enumerate(zip(cuts, chosen)):
            start = cut + place * SIDE
            canvas.paste(images[one].resize((SIDE, SIDE)), (start, 0) if lies else (0, start))
        found["image"].append(canvas)
        found["caption"].append(", ".join(names[one] for one in chosen))
        found["ratio"].append(long / SIDE)
    return Dataset.from_dict(found, FEATURES)


def train_recipe(name: str, fields: Mapping[str, Any]) -> None:
    words = []
    for field, value in fields.items():
        words += [f"--{field}", *map(str, value if isinstance(value, tuple) else [value])]
    train(prepare(parse_recipe(name, words)))


def recall(folder: str, data: Dataset, length: int | None, upscale: bool) -> float:
    """recall@1 of retrieval, the mean of both ways."""
    model, processor = SiglipExtModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    images = [image.convert("RGB") for image in data["image"]]
    selected = EvaluationData(images=images, captions=[[caption] for caption in data["caption"]])
    sizes = {"max_num_patches": length, "upscale": upscale, "progress": False}
    metrics = evaluate(model.eval(), processor, selected, **sizes).metrics
    return (metrics["image_to_text_recall@1"] + metrics["text_to_image_recall@1"]) / 2


def judge(
    folder: str, parts: Mapping[str, Dataset], lengths: tuple[int | None, ...] = (None,), upscale: bool = True
) -> dict[str, Figures]:
    return {
        name: {str(length): round(recall(folder, data, length, upscale), 5) for length in lengths}
        for name, data in parts.items()
    }


def measure(seed: int, steps: int, learning_rate: float, enlarge: bool) -> dict:
    """Train the three models of a seed, and judge them."""
    emoji = {split: rows.load_emoji(split, "en") for split in COMPOSITIONS}
    made = {split: compositions(emoji[split], count, seed) for split, count in COMPOSITIONS.items()}
    parts = {"emoji": emoji_rows(emoji["test"])}
    for low, high in zip((0.0, *PARTS), PARTS):
        own = [row for row, ratio in enumerate(made["test"]["ratio"]) if low < ratio <= high]
        parts[f"strips up to 1:{high:.0f}"] = made["test"].select(own)
    found: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as folder:
        fixed, mixed = f"{folder}/fixed", f"{folder}/mixed"
        # as the recipe was when this was measured
        initial = {"initial_values": "none"}
        train_recipe("emoji", {"output_dir": fixed, "seed": seed, "max_seconds": 1e9, **initial})
        found["fixed"] = judge(fixed, parts)
        examples = concatenate_datasets([emoji_rows(emoji["train"]), made["train"]])
        examples.select_columns(["image", "caption"]).to_parquet(f"{mixed}/train.parquet")
        common = {
            "dataset": mixed, "model_name_or_path": fixed, "seed": seed, "max_steps": steps,
            "per_device_train_batch_size": 128, "learning_rate": learning_rate, "weight_decay": 1.0,
            "eval_fraction": 0, "eval_strategy": "no", "save_strategy": "no", "dataloader_pin_memory": "false",
        }  # fmt: skip
        train_recipe("finetune", {**common, "output_dir": f"{folder}/still"})
        found["still fixed"] = judge(f"{folder}/still", parts)
        own = {"naflex": "true", "naflex_lengths": LENGTHS, "upscale": str(enlarge).lower()}
        train_recipe("finetune", {**common, **own, "output_dir": f"{folder}/naflex"})
        found["naflex"] = judge(f"{folder}/naflex", parts, JUDGED_AT, enlarge)
    return {"steps": steps, "learning_rate": learning_rate, "enlarged": enlarge, "recall@1": found}


def best(figures: Figures) -> float:
    return max(figures.values())


def render(runs: Mapping[str, dict]) -> list[str]:
    found = [run["recall@1"] for run in runs.values()]
    lines = []
    for part in found[0]["naflex"]:
        for seed, one in zip(runs, found):
            cells = [one[name][part]["None"] for name in MODELS[:2]]
            cells += [best(one["naflex"][part]), *one["naflex"][part].values()]
            lines.append([part, seed, *(f"{100 * cell:.1f}" for cell in cells)])
    run = next(iter(runs.values()))
    lengths = [f"{length}:" for length in JUDGED_AT]
    small = "enlarged to them" if run["enlarged"] else "left their own patches"
    return [
        "# NaFlex, adapted from a fixed model, on emoji and strips of them",
        "",
        f"recall@1 among held-out pictures, the mean of both ways, in percent. {run['steps']} steps of 128 from the "
        f"emoji recipe's model, learning rate {run['learning_rate']:g}, at {', '.join(map(str, LENGTHS))} patches in "
        f"training. Smaller images are {small}.",
        "",
        *table(["pictures", "seed:", "fixed:", "still fixed:", "NaFlex, best:", *lengths], lines),
        "",
        "![the same by length](naflex_emoji.png)",
        "",
        versions("float32"),
    ]


def draw(runs: Mapping[str, dict], path: Path) -> None:
    found = [run["recall@1"] for run in runs.values()]
    parts = list(found[0]["naflex"])
    figure = Figure(figsize=(4.2 * len(parts), 3.8), layout="constrained")
    for axes, part in zip(figure.subplots(1, len(parts), squeeze=False)[0], parts):
        for name, color in (("fixed", MUTED), ("still fixed", WRONG)):
            values = [100 * one[name][part]["None"] for one in found]
            axes.axhspan(min(values), max(values), color=color, alpha=0.15)
            axes.axhline(sum(values) / len(values), color=color, linestyle="--", label=name)
        for one in found:
            axes.plot(
                JUDGED_AT, [100 * one["naflex"][part][str(length)] for length in JUDGED_AT], color=ACCENT, alpha=0.4
            )
        means = [100 * sum(one["naflex"][part][str(length)] for one in found) / len(found) for length in JUDGED_AT]
        axes.plot(JUDGED_AT, means, color=ACCENT, linewidth=2, marker="o", label="NaFlex")
        axes.set_xscale("log", base=2)
        axes.set_xticks(JUDGED_AT, [str(length) for length in JUDGED_AT])
        axes.set_xticks([], minor=True)
        axes.set_title(part, fontsize=10)
        axes.set_xlabel("patches of an image at most")
        axes.set_ylim(bottom=0)
        quiet(axes)
    axes = figure.axes[0]
    axes.set_ylabel("recall@1, %")
    axes.legend(frameon=False, fontsize=9)
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--learning_rate", type=float, default=8e-4)
    parser.add_argument("--enlarge", action="store_true", help="small images to the length of the batch")
    parser.add_argument("--validation", action="store_true", help="judge on a part of the training images; print only")
    parser.add_argument("--render", action="store_true", help="only draw what is stored")
    arguments = parser.parse_args()
    if arguments.validation:
        rows.load_emoji = validation_emoji
    kept = RESULTS / "naflex_emoji.json"
    for seed in [] if arguments.render else arguments.seeds:
        measured = measure(seed, arguments.steps, arguments.learning_rate, arguments.enlarge)
        print(json.dumps(measured, indent=1), flush=True)
        if not arguments.validation:
            store(kept, {**stored(kept), f"{seed}": measured})
    if not arguments.validation:
        runs = stored(kept)
        publish(kept.with_suffix(".md"), render(runs))
        draw(runs, kept.with_suffix(".png"))


if __name__ == "__main__":
    main()
