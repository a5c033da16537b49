"""The study `siglip2`: the sigmoid loss alone, with captions and boxes, with self-distillation, and with all of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ..study import Chart, Plan
from .choosing import best_of
from .experiment import chart_of
from .settings import SceneRun


# Three to six and a half minutes on one core. Shorter runs say little of captions, longer ones little of what
# objectives add: towers of this size then know most of what these scenes have.
STEPS = 900
FEWER, MORE = 600, 1200
SIGMOID = SceneRun(steps=STEPS)
# Of 0.3, 1 (the paper's), 2 and 4 by the sigmoid loss on validation: benchmarks/results/studies/scenes.md.
CAPTIONING = 2.0
# Weights of distillation and masking, the share of training after which they join, and the teacher's momentum.
CANDIDATES = (
    (0.5, 0.5, 0.0, 0.99),
    (0.25, 1.0, 0.0, 0.99),
    (0.0, 0.25, 0.0, 0.966),
    (0.0, 0.25, 0.0, 0.99),
    (0.0, 1.0, 0.0, 0.99),
    (0.0, 2.0, 0.0, 0.99),
    (0.0, 0.5, 0.5, 0.99),
    (0.0, 0.5, 0.0, 0.99),
    (0.0, 0.5, 0.0, 0.997),
    (0.0, 0.5, 0.0, 0.999),
    (0.0, 0.5, 0.0, 0.9999),
)
SELF_SUPERVISED = {
    f"{first:g} and {second:g}, from {start:.0%} of training, momentum {momentum:g}": replace(
        SIGMOID, steps=FEWER, distillation=first, masking=second, starts_at=start, momentum=momentum
    )
    for first, second, start, momentum in CANDIDATES
}
PROBE_STEPS = 1000
ALONE, CAPTIONS, VIEWS, ALL = "sigmoid", "+ captions", "+ self-distillation", "all"


@dataclass(frozen=True)
class Shown:
    """A chart of the study.

    Args:
        figures: held-out ones, and the names of their lines.
        decoded: only of models with a decoder.
        comparable: two figures of one kind.
        paper_title, paper: what the paper has beside it.
    """

    title: str
    figures: Mapping[str, str]
    y_label: str
    decoded: bool = False
    comparable: bool = False
    scale: float = 100.0
    paper_title: str = ""
    paper: Mapping[str, float] = field(default_factory=dict)


def ours(figure: str) -> dict[str, str]:
    return {f"held_out_{figure}": "ours"}


# Published: arXiv 2502.14786, its tables of retrieval, dense probes and RefCOCO, with SigLIP beside SigLIP 2.
SHOWN = (
    Shown(
        "Retrieval", ours("recall@1"), "recall@1, %", paper_title="COCO R@1, both ways, B/16-256",
        paper={ALONE: 56.25, ALL: 61.45},
    ),
    Shown(
        "Name of one emoji, zero-shot", ours("one_name"), "right, %", paper_title="ImageNet 0-shot, B/16-256",
        paper={ALONE: 76.7, ALL: 79.1},
    ),
    Shown(
        "Linear segmentation from tokens and pooled vector", ours("miou_pooled"), "mIoU, %",
        paper_title="PASCAL, So/14-224", paper={ALONE: 72.0, ALL: 77.1},
    ),
    Shown("Linear segmentation from tokens", ours("miou"), "mIoU, %"),
    Shown(
        "Fresh decoder on frozen tokens, two or three emoji", ours("probe_more_referring"), "right at IoU 0.5, %",
        paper_title="RefCOCO val, B/16-256", paper={ALONE: 64.05, ALL: 83.76},
    ),
    Shown("Fresh decoder on frozen tokens, one emoji", ours("probe_one_referring"), "right at IoU 0.5, %"),
    Shown("Sigmoid loss on held-out scenes", ours("sigmoid_loss"), "batches of 50", scale=1.0),
    Shown(
        "Caption loss on held-out scenes",
        {"held_out_caption_loss": "own image", "held_out_caption_loss_wrong": "image of another scene"},
        "nats a token", decoded=True, comparable=True, scale=1.0,
    ),
    Shown(
        "Captions", {"held_out_names": "names found", "held_out_exact": "word for word"}, "%", decoded=True,
    ),
    Shown(
        "Boxes of phrases, by the decoder trained along",
        {"held_out_one_referring": "one emoji", "held_out_one_referring_wrong": "one emoji, image of another scene",
         "held_out_more_referring": "two or three", "held_out_more_referring_wrong": "two or three, another scene"},
        "right at IoU 0.5, %", decoded=True,
    ),
)  # fmt: skip


BY_STEPS = (
    ("Sigmoid loss on held-out scenes", "held_out_sigmoid_loss", "batches of 50", 1.0),
    ("Linear segmentation from tokens", "held_out_miou", "mIoU, %", 100.0),
    ("Retrieval", "held_out_recall@1", "recall@1, %", 100.0),
)


def siglip2(plan: Plan) -> list[Chart]:
    """Four sets of objectives at equal steps, with the same scenes in the same order."""
    label, chosen = best_of(plan, SELF_SUPERVISED, "validation_miou")
    views = None if chosen is None else replace(chosen, steps=STEPS)
    with_captions = replace(SIGMOID, captioning=CAPTIONING)
    points = {
        ALONE: SIGMOID,
        CAPTIONS: with_captions,
        VIEWS: views,
        ALL: None if views is None else replace(views, captioning=CAPTIONING),
    }
    points = {name: one and replace(one, probe_steps=PROBE_STEPS) for name, one in points.items()}
    note = f"Distillation and masking, chosen on validation by mIoU after {FEWER} steps: {label}." if label else ""
    by_steps = [
        Chart(
            f"{title}, by steps",
            "steps",
            {
                name: {
                    f"{steps:,}": plan.figures(replace(one, steps=steps, probe_steps=probed), figure, scale)
                    for steps, probed in ((FEWER, 0), (STEPS, PROBE_STEPS), (MORE, PROBE_STEPS))
                }
                for name, one in ((ALONE, SIGMOID), (CAPTIONS, with_captions), (VIEWS, views))
                if one is not None
            },
            y_label=unit,
            digits=1 if scale == 100 else 3,
            note=note,
        )
        for title, figure, unit, scale in BY_STEPS
    ]
    return [
        chart_of(
            plan,
            shown.title,
            {name: one for name, one in points.items() if not shown.decoded or name in (CAPTIONS, ALL)},
            shown.figures,
            x_label="objectives",
            y_label=shown.y_label,
            scale=shown.scale,
            digits=1 if shown.scale == 100 else 3,
            reference="" if shown.decoded else ALONE,
            comparable=shown.comparable,
            note=note,
            paper_title=shown.paper_title,
            paper=shown.paper or None,
        )
        for shown in SHOWN
    ] + by_steps
