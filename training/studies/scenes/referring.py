"""The study `referring`: what it takes to find the box of a phrase, alone and among others."""

from dataclasses import replace

from ..study import Chart, Plan
from .experiment import chart_of
from .settings import SIGLIP, SceneRun


BASE = SceneRun(steps=2500, captioning=1.0)
BOXES_FIRST = (0.2, 0.6, 0.2)
ARMS = {
    "as captions are learnt": BASE,
    "600 steps": replace(BASE, steps=600),
    "twice as long": replace(BASE, steps=5000),
    "SigLIP's initial values": replace(BASE, initial=SIGLIP),
    "one emoji a scene at first": replace(BASE, one_object=0.3),
    "boxes weigh 3/5": replace(BASE, task_weights=BOXES_FIRST),
    "one at first, boxes 3/5": replace(BASE, one_object=0.3, task_weights=BOXES_FIRST),
    "two decoder layers": replace(BASE, decoder_layers=2),
    "all three": replace(BASE, one_object=0.3, task_weights=BOXES_FIRST, decoder_layers=2),
    "no sigmoid loss": replace(BASE, contrastive=0.0),
}
AMONG_OTHERS = {
    "held_out_more_referring": "right at IoU 0.5",
    "held_out_more_referring_wrong": "on the image of another scene",
    "held_out_more_referring_other": "the box of another emoji",
}
ALONE = {
    "held_out_one_referring": "right at IoU 0.5",
    "held_out_one_referring_wrong": "on the image of another scene",
}


def referring(plan: Plan) -> list[Chart]:
    """Training alike but for a setting."""
    return [
        chart_of(plan, "Phrases among two or three emoji", ARMS, AMONG_OTHERS),
        chart_of(plan, "Phrases of one emoji a scene", ARMS, ALONE),
        chart_of(plan, "Captions", ARMS, {"held_out_names": "names found", "held_out_exact": "word for word"}),
    ]
