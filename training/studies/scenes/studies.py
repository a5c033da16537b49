"""The studies on scenes: what each compares, and what SigLIP 2's paper says of it."""

from dataclasses import replace

from ..study import Chart, Experiment, Plan, Study
from .choosing import best_of
from .data import make_shard
from .run import train_and_evaluate
from .settings import PLACE, SIGLIP, SceneRun


SCENES = Experiment(
    SceneRun,
    train_and_evaluate,
    "scene_runs.jsonl",
    "small towers from scratch on scenes of one to three of 26 emoji, 72 pixels, 36 patches. On 500 held-out scenes "
    "that settings were not chosen on, ± 95 % interval over seeds.",
    devices=("cpu", "cuda"),
    needs=SceneRun.preparations,
    prepare=make_shard,
)

# Each of the three changes of initial values, and all ways to put them together.
CHANGES = {"positions": "position_std", "patches": "patch_scale", "blocks": "residual_scale"}
INITIAL = {
    " + ".join(name for name, on in zip(CHANGES, places) if on) or "SigLIP's": replace(
        SIGLIP, **{field: getattr(PLACE, field) for field, on in zip(CHANGES.values(), places) if on}
    )
    for places in ((a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1))
}
PLACE_FIGURES = {
    "position_r2": ("A token's own position at the output", "R², %"),
    "miou": ("Linear segmentation from tokens", "mIoU, %"),
    "miou_pooled": ("Linear segmentation from tokens and pooled vector", "mIoU, %"),
    "one_referring": ("Boxes of phrases, one emoji a scene", "right at IoU 0.5, %"),
    "names": ("Captions", "names found, %"),
    "recall@1": ("Retrieval", "recall@1, %"),
}


def place(plan: Plan) -> list[Chart]:
    """Which initial values let tokens keep their place."""
    points = {label: SceneRun(captioning=1.0, initial=values) for label, values in INITIAL.items()}
    charts = []
    for figure, (title, unit) in PLACE_FIGURES.items():
        line = {label: plan.figures(point, f"held_out_{figure}") for label, point in points.items()}
        charts.append(
            Chart(title, "initial values", {"ours": line}, categories=True, y_label=unit, reference="SigLIP's")
        )
    return charts


REFERRING = SceneRun(steps=2500, captioning=1.0)
REFERRING_ARMS = {
    "as captions are learnt": REFERRING,
    "twice as long": replace(REFERRING, steps=5000),
    "one emoji a scene at first": replace(REFERRING, one_object=0.3),
    "boxes weigh 3/5": replace(REFERRING, task_weights=(0.2, 0.6, 0.2)),
    "two decoder layers": replace(REFERRING, decoder_layers=2),
    "all three": replace(REFERRING, one_object=0.3, task_weights=(0.2, 0.6, 0.2), decoder_layers=2),
    "learning rate doubled": replace(REFERRING, learning_rate=2e-3),
    "captions in order only": replace(REFERRING, parallel=0.0),
    "integers up to 500": replace(REFERRING, box_scale=500),
    "600 steps": replace(REFERRING, steps=600),
}
REFERRING_FIGURES = {
    "more_referring": "right at IoU 0.5",
    "more_referring_wrong": "on the image of another scene",
    "more_referring_other": "the box of another emoji of the scene",
    "one_referring": "one emoji a scene",
    "one_referring_wrong": "one emoji a scene, on the image of another",
    "names": "names found in captions",
}


def referring(plan: Plan) -> list[Chart]:
    """What lets a decoder tell two or three emoji apart by name."""
    lines = {
        label: {arm: plan.figures(point, f"held_out_{figure}") for arm, point in REFERRING_ARMS.items()}
        for figure, label in REFERRING_FIGURES.items()
    }
    return [Chart("Phrases among two or three emoji", "settings", lines, categories=True, y_label="%")]


# With self-distillation fifteen minutes on one core.
STEPS = 1200
SIGMOID = SceneRun(steps=STEPS)
SELF_SUPERVISED = {
    f"{distillation:g} and {masking:g}, {when}": replace(
        SIGMOID, distillation=distillation, masking=masking, starts_at=starts_at
    )
    for distillation, masking, starts_at, when in (
        (0.5, 0.5, 0.0, "from the start"),
        (0.25, 0.25, 0.0, "from the start"),
        (0.25, 1.0, 0.0, "from the start"),
        (1.0, 0.25, 0.0, "from the start"),
        (0.5, 0.5, 0.5, "from half-way"),
        (0.25, 0.0625, 0.0, "from the start"),
    )
}
FIGURES = {
    "recall@1": ("Retrieval", "recall@1, %"),
    "one_name": ("Name of one emoji, zero-shot", "right, %"),
    "names": ("Captions", "names found, %"),
    "one_referring": ("Boxes of phrases, one emoji a scene", "right at IoU 0.5, %"),
    "more_referring": ("Boxes of phrases, two or three emoji", "right at IoU 0.5, %"),
    "miou": ("Linear segmentation from tokens", "mIoU, %"),
    "miou_pooled": ("Linear segmentation from tokens and pooled vector", "mIoU, %"),
    "probe_one_referring": ("Fresh decoder on frozen tokens, one emoji", "right at IoU 0.5, %"),
    "probe_more_referring": ("Fresh decoder on frozen tokens, two or three", "right at IoU 0.5, %"),
}
DECODED = ("names", "one_referring", "more_referring")


def siglip2(plan: Plan) -> list[Chart]:
    """The sigmoid loss alone, with captions and boxes, with self-distillation and masking, and with all."""
    label, own = best_of(plan, SELF_SUPERVISED, "validation_miou")
    with_captions = replace(SIGMOID, captioning=1.0)
    points = {
        "sigmoid": SIGMOID,
        "+ captions": with_captions,
        "+ self-distillation": own,
        "all": own and replace(own, captioning=1.0),
    }
    points = {name: point and replace(point, probe_steps=1000) for name, point in points.items()}
    note = f"Weights of distillation and masking, chosen on validation by mIoU: {label}." if label else ""
    charts = []
    for figure, (title, unit) in FIGURES.items():
        some = {name: one for name, one in points.items() if figure not in DECODED or (one and one.captioning)}
        line = {name: plan.figures(point, f"held_out_{figure}") for name, point in some.items()}
        charts.append(Chart(title, "objectives", {"ours": line}, categories=True, y_label=unit, note=note))
    return charts


SHUFFLED = (0.0, 0.2, 0.4)
SCORES = {"all pairs": None, "learnability": "learnability", "easy reference": "easy_reference"}


def curation(plan: Plan) -> list[Chart]:
    """What is chosen of pairs of which some are wrong, and what that does to recall."""
    charts = []
    for share in SHUFFLED:
        points = {
            label: SceneRun(shuffled=share, score=score, reference_steps=1200 if score else 600)
            for label, score in SCORES.items()
        }
        for figure, title in (("clean", "clean pairs among those trained on"), ("held_out_recall@1", "recall@1")):
            lines = {
                label: {f"{25 * k} %": plan.figures(point, f"{figure}_{k}") for k in range(1, 5)}
                for label, point in points.items()
                if share or figure != "clean"
            }
            heading = f"{share:.0%} of the captions shuffled: {title}"
            charts.append(Chart(heading, "share of training", lines, y_label="%"))
    return charts


STUDIES = {
    study.name: study
    for study in (
        Study("place", "initial values with which tokens keep their place", place, SCENES),
        Study("referring", "what it takes to find a phrase among others", referring, SCENES),
        Study("siglip2", "SigLIP 2's objectives, together and apart", siglip2, SCENES),
        Study("curation", "a choice of examples where some captions are wrong", curation, SCENES),
    )
}
