"""What the emoji recipe reaches: held-out figures over seeds, beside controls that must be at chance.

    python benchmarks/emoji.py                         # all runs, about 27 minutes
    python benchmarks/emoji.py --runs seed0 --max_seconds 1e9    # all steps, however busy the machine is
    python benchmarks/emoji.py --validation --runs seed0 --group_from_epoch 8    # printed only

Settings are chosen with --validation: it trains on a part of the training images and judges on the rest, so that the
held-out images have no say.

The tone is asked for twice: tone_of_name chooses between an image's own caption and the same with another tone, tone
classifies by four prompts that are the same for all images ("person: dark skin tone").

Every run is added to `benchmarks/results/emoji.json`; `emoji.md` is rendered from all runs in it.
The controls: an untrained model, and one trained with every image's caption taken from another image. `siglip0` to
`siglip2` are what the recipe learns from SigLIP's own initial values, with which tokens lose their place.
"""

import argparse
import hashlib
import json
import os
import platform
import tempfile
import time

import torch
import transformers
from datasets import Dataset
from report import RESULTS, publish, store, stored, table

from modeling_siglip_ext.evaluation.metrics.retrieval import retrieval_ranks
from modeling_siglip_ext.training.data.emoji.loader import load_emoji
from modeling_siglip_ext.training.run import rows
from modeling_siglip_ext.training.run.prepare import Run, prepare
from modeling_siglip_ext.training.run.recipe import parse_recipe
from modeling_siglip_ext.training.run.train import train


RUNS = ("seed0", "seed1", "seed2", "shuffled", "untrained", "siglip0", "siglip1", "siglip2")
CONTROLS = ("shuffled", "untrained")
BARS = {"image_to_text_recall@1": 0.50, "image_to_text_recall@5": 0.85, "zero_shot_tone": 0.65}
CHANCE = {
    "image_to_text_recall@1": 1 / 502,
    "image_to_text_recall@5": 5 / 502,
    "text_to_image_recall@1": 1 / 502,
    "text_to_image_recall@5": 5 / 502,
    "zero_shot_tone_of_name": 1 / 5,
    "zero_shot_tone": 1 / 5,
    "zero_shot_gender": 1 / 2,
    "zero_shot_role": 1 / 76,
    "zero_shot_group": 1 / 9,
    "zero_shot_subgroup": 1 / 99,
}


def validation_emoji(split: str, languages: str) -> Dataset:
    """`load_emoji` for choosing settings: the training images alone, split once more by hashes of their names.

    Held out for validation are, as in the test set, one skin tone in five of every emoji and one gender of some roles.
    """

    def rank(text: str) -> str:
        return hashlib.sha256(f"validation: {text}".encode()).hexdigest()

    emoji = load_emoji("train", languages)
    variants: dict[str, list[int]] = {}
    genders: dict[str, dict[str, list[int]]] = {}
    for i, (name, base, role, gender) in enumerate(zip(emoji["en"], emoji["base"], emoji["role"], emoji["gender"])):
        if name != base:
            variants.setdefault(base, []).append(i)
        if gender is not None:
            genders.setdefault(role, {}).setdefault(gender, []).append(i)
    chosen = {
        i
        for found in variants.values()
        for i in sorted(found, key=lambda i: rank(emoji["en"][i]))[: -(-len(found) // 5)]
    }
    both = sorted((role for role, found in genders.items() if len(found) == 2), key=rank)[:15]
    chosen.update(i for n, role in enumerate(both) for i in genders[role][("man", "woman")[n % 2]])
    return emoji.select([i for i in range(len(emoji)) if (i in chosen) == (split == "test")])


def measure(name: str, overrides: list[str]) -> dict:
    """Train (or not) and evaluate one run."""
    if name.startswith("seed"):
        overrides = [*overrides, "--seed", name.removeprefix("seed")]
    elif name.startswith("siglip"):
        overrides = [*overrides, "--seed", name.removeprefix("siglip"), "--initial_values", "none"]
    elif name == "shuffled":
        overrides = [*overrides, "--shuffle_captions", "true"]
    with tempfile.TemporaryDirectory() as folder:
        run = prepare(parse_recipe("emoji", ["--output_dir", f"{folder}/emoji", *overrides]))
        wall, cpu = time.monotonic(), time.process_time()
        if name != "untrained":
            train(run)
        wall, cpu = time.monotonic() - wall, time.process_time() - cpu
        output = run.trainer.predict(run.trainer.eval_dataset)
    figures = {key.removeprefix("test_"): value for key, value in output.metrics.items()}
    figures = {key: value for key, value in figures.items() if key in CHANCE}
    return {
        "steps": run.trainer.state.global_step,
        "epochs": round(run.trainer.state.epoch or 0, 2),
        "seconds": round(wall, 1),
        "cpu_seconds": round(cpu, 1),
        "figures": figures,
        "recall@1 by part": recall_by_part(run, *output.predictions),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
    }


def recall_by_part(run: Run, image_embeds, text_embeds) -> dict[str, float]:
    """Image→text R@1 among all captions, for each part of the held-out set."""
    ranks, _ = retrieval_ranks(torch.from_numpy(image_embeds), torch.from_numpy(text_embeds))
    parts = [part or "validation" for part in run.rows.held_out["held_out"]]
    return {
        part: sum(int(rank) == 0 for rank, own in zip(ranks, parts) if own == part) / parts.count(part)
        for part in sorted(set(parts))
    }


def render(runs: dict[str, dict]) -> list[str]:
    """The table, from every stored run."""
    seeds, own = ([run for name, run in sorted(runs.items()) if name.startswith(kind)] for kind in ("seed", "siglip"))
    controls = [runs[name] for name in CONTROLS if name in runs]
    columns = [
        "bar", f"mean of {len(seeds)} seeds", "min", "max", *(name for name in CONTROLS if name in runs), "chance",
        f"SigLIP's initial values, mean of {len(own)}", "min", "max",
    ]  # fmt: skip
    figures = []

    def row(label: str, kind: str, key: str, bar: float | None, chance: float) -> None:
        def spread(some: list[dict]) -> list[float | None]:
            values = [run[kind][key] for run in some]
            return [sum(values) / len(values), min(values), max(values)] if values else [None] * 3

        cells = [bar, *spread(seeds), *(run[kind][key] for run in controls), chance, *spread(own)]
        figures.append([label, *("" if cell is None else f"{100 * cell:.1f}" for cell in cells)])

    for key, chance in CHANCE.items():
        row(key, "figures", key, BARS.get(key), chance)
    for part in "ABC":
        row(f"image→text R@1, part {part}", "recall@1 by part", part, None, 1 / 502)
    costs = [
        [name, str(run["steps"]), f"{run['epochs']:.1f}", f"{run['seconds']:.0f}", f"{run['cpu_seconds']:.0f}"]
        for name, run in sorted(runs.items())
    ]
    run = next(iter(runs.values()))
    return [
        "# The emoji recipe: held-out figures",
        "",
        "`siglip-ext-train emoji`, 502 held-out pairs; equal scores count as misses. In percent.",
        "",
        *table(["figure", *(f"{column}:" for column in columns)], figures),
        "",
        *table(("run", "steps:", "epochs:", "seconds:", "CPU seconds:"), costs),
        "",
        f"torch {run['torch']}, transformers {run['transformers']}, {run['cores']} cores ({run['machine']}), float32. "
        "Seconds include the evaluations during training, the final one and the pictures. Parts: A unseen skin tone, "
        "B unseen gender of a role, C other recombinations.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--render", action="store_true", help="only render emoji.md from the stored runs")
    parser.add_argument("--validation", action="store_true", help="judge on a part of the training images; print only")
    arguments, overrides = parser.parse_known_args()
    if arguments.validation:
        rows.load_emoji = validation_emoji
        for name in arguments.runs:
            print(name, overrides, json.dumps(measure(name, overrides), indent=1))
        return
    kept = RESULTS / "emoji.json"
    for name in [] if arguments.render else arguments.runs:
        measured = measure(name, overrides)
        # Read again: another process may have stored a run meanwhile.
        store(kept, {**stored(kept), name: measured})
        print(name, json.dumps(measured["figures"]))
    publish(kept.with_suffix(".md"), render(stored(kept)))


if __name__ == "__main__":
    main()
