"""The studies of the SigLIP paper (arXiv 2303.15343): what each compares, and the paper's figures where it has any."""

import statistics
from dataclasses import replace
from typing import Any

from .experiment import Settings
from .noise import KINDS
from .some_negatives import CHOICES
from .study import LEARNING_RATES, Chart, Plan, Study, sweep


LOSSES = ("sigmoid", "softmax")
BATCH_SIZES = (32, 64, 256)
DRAWN_ONLY = "The paper draws its values and prints none."

BATCH_SIZE_PAPER = {
    "sigmoid": {"512": 51.5, "1k": 57.3, "2k": 62.1, "4k": 65.3, "8k": 68.6, "32k": 69.9, "98k": 69.5},
    "softmax": {"512": 47.7, "1k": 53.2, "2k": 59.3, "4k": 63.8, "8k": 66.6, "32k": 69.9, "98k": 69.7},
}

# label: temperature, bias, whether it is learnt; a bias None is -log(batch size), which the paper does not have
STARTS = {
    "no b, t = 10": (10.0, 0.0, False),
    "b = 0, t = 1": (1.0, 0.0, True),
    "b = 0, t = 10": (10.0, 0.0, True),
    "b = -10, t = 10": (10.0, -10.0, True),
    "b = -log B, t = 10": (10.0, None, True),
}
STARTS_PAPER = {"paper": {"no b, t = 10": 62.0, "b = 0, t = 1": 53.7, "b = 0, t = 10": 61.7, "b = -10, t = 10": 63.0}}

RATES = (5e-4, 2e-3, 8e-3)
DECAYS = (1e-4, 1e-2)

# label: optimizer, beta2, learning rates to begin with; Lion's steps have all the same size, so its rates are smaller
OPTIMIZERS = {
    "AdamW, β2 0.95": ("adamw", 0.95, LEARNING_RATES),
    "AdamW, β2 0.999": ("adamw", 0.999, LEARNING_RATES),
    "ScalingViT-Adafactor": ("scaling_vit_adafactor", 0.95, LEARNING_RATES),
    "Lion": ("lion", 0.95, (2.5e-4, 5e-4, 1e-3)),
}
OPTIMIZERS_PAPER = {"paper": {"AdamW, β2 0.95": 70.3, "ScalingViT-Adafactor": 70.1}}
OPTIMIZERS_PAPER_INTERVAL = {"paper": {"AdamW, β2 0.95": 0.1, "ScalingViT-Adafactor": 0.2}}

NOISE_SHARES = (0.0, 0.2, 0.4)

# More negatives to take away from than at the base batch size, and examples for as many steps as a batch of 64 has.
NEGATIVES_BASE = Settings(batch_size=256, examples=48_000)
NEGATIVES = NEGATIVES_BASE.batch_size - 1
NEGATIVES_KEPT = (NEGATIVES, 16, 1)

LANGUAGES = {"1 language": ("en",), "4 languages": ("en", "de", "ja", "ar")}
LANGUAGES_NOTE = (
    "Of a model of four languages the mean over them, on the 499 held-out images that are named in all four; training "
    "draws a language anew for each image, and the images are the same otherwise. Learning rate "
    "and temperature are those chosen with one language at that batch size. The paper reports XM3600: text to image "
    "and image to text 34.9 and 47.4 at a batch of 32k, and no gain above."
)


def changed(point: Settings | None, **fields: Any) -> Settings | None:
    """A point with other fields, once it is known."""
    return None if point is None else replace(point, **fields)


def batch_size(plan: Plan) -> list[Chart]:
    """Sigmoid against softmax over the batch size, of which the paper has seen 3 billion examples."""
    points = {loss: {str(size): plan.tuned(loss, size) for size in BATCH_SIZES} for loss in LOSSES}
    choices = [
        f"{loss} at {size} {one.learning_rate:g} and {one.temperature:g}"
        for loss, line in points.items()
        for size, one in line.items()
        if one is not None
    ]
    note = f"Chosen on validation, learning rate and initial temperature: {', '.join(choices)}." if choices else ""
    title = "ImageNet 0-shot, B/16, 3B examples seen"
    return [Chart("Batch size", "batch size", plan.recalls(points), title, BATCH_SIZE_PAPER, note=note)]


def initialisation(plan: Plan) -> list[Chart]:
    """Bias and temperature at the start, with the learning rate of the base sweep: the paper changes nothing else."""
    base = plan.tuned()
    points = {
        label: changed(base, temperature=temperature, bias=bias, learns_bias=learns)
        for label, (temperature, bias, learns) in STARTS.items()
    }
    return [
        Chart(
            "Bias and temperature at the start",
            "start",
            plan.recalls({"sigmoid": points}),
            "ImageNet 0-shot",
            STARTS_PAPER,
            note=f"Batch 32, learning rate {base.learning_rate:g}, chosen with b = -log B." if base else "",
            reference="b = 0, t = 10",
            categories=True,
        )
    ]


def robustness(plan: Plan) -> list[Chart]:
    """Learning rate × weight decay: how much a loss forgives."""
    base = {loss: plan.tuned(loss) for loss in LOSSES}
    panels = []
    for decay in DECAYS:
        points = {
            loss: {f"{rate:g}": changed(base[loss], learning_rate=rate, weight_decay=decay) for rate in RATES}
            for loss in LOSSES
        }
        panels.append(Chart(f"Weight decay {decay:g}", "learning rate", plan.recalls(points), note=DRAWN_ONLY))
    return [*panels, forgiven(panels)]


def forgiven(panels: list[Chart]) -> Chart:
    """What is left of a loss's best point in the mean over the grid, seed by seed: the higher, the more it forgives.

    The best point is that with the highest mean over seeds.
    """
    ours: dict[str, dict[str, list[float]]] = {loss: {} for loss in LOSSES}
    for loss in LOSSES:
        grid = [values for panel in panels for values in panel.ours[loss].values() if values]
        if len(grid) == len(RATES) * len(DECAYS) and len({len(values) for values in grid}) == 1:
            best = max(grid, key=statistics.fmean)
            ours[loss]["grid"] = [100 * statistics.fmean(seed) / top for *seed, top in zip(*grid, best) if top > 0]
    note = "The best point is chosen on the figures shown, alike for both losses."
    return Chart("Mean of the grid", "", ours, note=note, categories=True, y_label="% of the best point")


def optimizers(plan: Plan) -> list[Chart]:
    """ScalingViT-Adafactor against AdamW, the second moment's decay, and Lion.

    The learning rate of each is swept at the temperature that the base sweep chose.
    """
    base = plan.tuned()
    points, choices = {}, []
    for label, (optimizer, beta2, rates) in OPTIMIZERS.items():
        if base is None:
            break
        found = sweep(plan.runs, replace(base, optimizer=optimizer, beta2=beta2), "learning_rate", rates)
        points[label] = chosen = plan.chosen(found)
        if chosen is not None:
            tried = sorted({one.learning_rate for one in found[0]})
            choices.append(f"{label} {chosen.learning_rate:g} (of {tried[0]:g} to {tried[-1]:g})")
    return [
        Chart(
            "Optimisers",
            "optimiser",
            plan.recalls({"sigmoid": points}),
            "ImageNet 0-shot",
            OPTIMIZERS_PAPER,
            OPTIMIZERS_PAPER_INTERVAL,
            f"Learning rates chosen on validation: {'; '.join(choices)}." if choices else "",
            reference=next(iter(OPTIMIZERS)),
            categories=True,
        )
    ]


def label_noise(plan: Plan) -> list[Chart]:
    """Five kinds of label noise."""
    base = {loss: plan.tuned(loss) for loss in LOSSES}

    def noisy(loss: str, kind: str, share: float) -> Settings | None:
        return changed(base[loss], noise=kind, noise_share=share) if share > 0 else base[loss]

    panels = []
    for kind in KINDS:
        points = {loss: {f"{share:.1f}": noisy(loss, kind, share) for share in NOISE_SHARES} for loss in LOSSES}
        title = f"Noise: {kind.replace('_', ', ')}"
        panels.append(Chart(title, "probability", plan.recalls(points), note=DRAWN_ONLY))
    return panels


def negatives(plan: Plan) -> list[Chart]:
    """What negative pairs contribute: a share of them, chosen in three ways (section 4.7).

    The learning rate is chosen with all negatives; the temperature is the paper's, as these runs are long.
    """
    base = plan.chosen(sweep(plan.runs, NEGATIVES_BASE, "learning_rate", LEARNING_RATES))

    def thinned(way: str, kept: int) -> Settings | None:
        return base if kept == NEGATIVES else changed(base, negatives=way, negatives_share=kept / NEGATIVES)

    points = {way: {f"1:{kept}": thinned(way, kept) for kept in NEGATIVES_KEPT} for way in CHOICES}
    note = f"Batch {NEGATIVES_BASE.batch_size}, {NEGATIVES_BASE.examples:,} examples seen. {DRAWN_ONLY}"
    if base is not None:
        note += f" Learning rate, chosen with all negatives: {base.learning_rate:g}."
    ours = plan.recalls(points)
    return [Chart("Negatives to a positive", "ratio", ours, note=note, reference=f"1:{NEGATIVES}")]


def languages(plan: Plan) -> list[Chart]:
    """Languages × batch size (section 4.3)."""
    base = {size: plan.tuned(batch_size=size) for size in BATCH_SIZES}
    points = {
        label: {str(size): changed(one, languages=codes) for size, one in base.items()}
        for label, codes in LANGUAGES.items()
    }
    return [Chart("Languages and batch size", "batch size", plan.recalls(points), note=LANGUAGES_NOTE)]


STUDIES = {
    study.name: study
    for study in (
        Study("batch-size", "sigmoid and softmax over the batch size", batch_size),
        Study("initialisation", "bias and temperature at the start", initialisation),
        Study("robustness", "learning rate × weight decay", robustness),
        Study("optimizers", "AdamW, ScalingViT-Adafactor and Lion", optimizers),
        Study("label-noise", "five kinds of label noise", label_noise),
        Study("negatives", "a share of the negative pairs, chosen in three ways", negatives),
        Study("languages", "one and four languages over the batch size", languages),
    )
}
