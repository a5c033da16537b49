"""What SigLIP 2's objectives cost: a step of the studies' small towers with them, against the sigmoid loss alone.

    python benchmarks/objectives.py     # some five minutes on one core

A step is forward, backward, clipping, optimiser and teacher, of 64 scenes of 72 pixels (36 patches), in one thread;
both sides take the same batch in turn. Captions have three targets, of 24 tokens as in the studies and cut to 14;
views are one large and four of a quarter of its tokens. Bars: captioning at most 1.35 times, all objectives at most
3.7 times the step of the sigmoid loss; where none is wanted 1.00 +- 0.02, in no more memory. Memory is the peak of
anonymous memory of a process of its own over ten steps. Results are kept in results/objectives.json; the table beside
it is drawn from that.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import torch
from conversion_worker import measure
from report import RESULTS, publish, store, stored, table, versions
from timing import Ratio, alternate
from torch import nn

from modeling_siglip_ext.captioning import TASKS
from modeling_siglip_ext.memory import keep_freed_memory
from modeling_siglip_ext.threads import one_thread
from modeling_siglip_ext.training.objectives.model import ObjectiveModel
from modeling_siglip_ext.training.studies.scenes.data import DataSettings, TrainingScenes
from modeling_siglip_ext.training.studies.scenes.settings import SceneRun
from modeling_siglip_ext.training.studies.scenes.training import PARALLEL, build_model, on_device, optimizer_of


SIGMOID = SceneRun()
CAPTIONS = replace(SIGMOID, captioning=1.0)
VIEWS = replace(SIGMOID, distillation=0.5, masking=0.5)
SHORT = 14
PAIRS, VIEWED = SIGMOID.batch_size, SIGMOID.views


def batch_of(settings: SceneRun, length: int | None) -> dict[str, torch.Tensor]:
    """All that the settings read of the first scenes, labels of captions cut to a length."""
    names = ["pixels", "input_ids"]
    if settings.captioning:
        names += ["caption_labels", "caption_weights"]
    if settings.self_supervised:
        names += ["global_view", "local_views", "hidden_patches"]
    scenes = TrainingScenes(DataSettings(views=VIEWED), PAIRS, seed=0)
    batch = on_device(scenes.batch(0, PAIRS, tuple(names)), torch.device("cpu"))
    batch |= {name: values[..., :length] for name, values in batch.items() if name.startswith("caption_")}
    if settings.captioning:  # half of the captions, as in the studies
        batch[PARALLEL] = torch.zeros(PAIRS, len(TASKS), dtype=torch.bool)
        batch[PARALLEL][: PAIRS // 2, 0] = True
    return batch


def step_of(
    settings: SceneRun, length: int | None = None, bare: bool = False, waiting: bool = False
) -> Callable[[], None]:
    """A step of training with these objectives.

    Args:
        length: of the labels, in tokens.
        bare: the dual model itself, not within `ObjectiveModel`.
        waiting: the objectives have not joined yet.
    """
    torch.manual_seed(0)
    model = build_model(settings).train()
    trained: nn.Module = model.model if bare else model
    optimizer, rates = optimizer_of(trained, settings)
    for group, rate in zip(optimizer.param_groups, rates):
        group["lr"] = 0.01 * rate  # the same batch again and again
    weights = {"captioning": settings.captioning, **settings.self_supervised}
    if waiting:
        for part in model.parts.values():
            part.starts_at = 1.0
    model.begin(0.0)
    model.activate(0.0)
    batch = batch_of(SIGMOID if waiting else settings, length)
    switch = {} if bare else {"objectives": True}

    def step() -> None:
        outputs = trained(return_loss=True, **switch, **batch)
        total = outputs.loss
        if not bare:
            for name, loss in outputs.objective_losses.items():
                total = total + weights[name] * loss
        total.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if isinstance(trained, ObjectiveModel):
            trained.after_step()

    return step


ALONE = "no objective: within the module that holds them, against the model alone"
COMPARED: dict[str, Callable[[], tuple[Callable[[], None], Callable[[], None]]]] = {
    f"captioning, three targets of {SHORT} tokens": lambda: (step_of(CAPTIONS, SHORT), step_of(SIGMOID)),
    "captioning, three targets of 24 tokens": lambda: (step_of(CAPTIONS), step_of(SIGMOID)),
    "masked prediction": lambda: (step_of(replace(SIGMOID, masking=0.5)), step_of(SIGMOID)),
    f"self-distillation with {VIEWED} views, masked prediction": lambda: (step_of(VIEWS), step_of(SIGMOID)),
    f"all, captions of {SHORT} tokens": lambda: (step_of(replace(VIEWS, captioning=1.0), SHORT), step_of(SIGMOID)),
    "all, captions of 24 tokens": lambda: (step_of(replace(VIEWS, captioning=1.0)), step_of(SIGMOID)),
    "all, before they join": lambda: (step_of(replace(VIEWS, captioning=1.0), waiting=True), step_of(SIGMOID)),
    ALONE: lambda: (step_of(SIGMOID), step_of(SIGMOID, bare=True)),
}
SIDES = ("within", "alone")


def peak(side: str) -> float:
    """Bytes of ten steps, above what there was with the model."""
    run = step_of(SIGMOID, bare=side == "alone")
    return measure(lambda: [run() for _ in range(10)])["bytes"]


def memory() -> dict[str, float]:
    found = {}
    for side in SIDES:
        command = [sys.executable, __file__, "--memory_of", side]
        found[side] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


def render(results: dict[str, dict]) -> list[str]:
    rows = [
        [name, f"{ratio.seconds_a:.3f}", f"{ratio.seconds_b:.3f}", str(ratio)]
        for name, ratio in ((name, Ratio(**found)) for name, found in results.items() if name != "memory")
    ]
    lines = [
        "# Objectives",
        "",
        f"{versions('one thread', 'float32')}. A step of {PAIRS} scenes with the objectives named, against one of the "
        "sigmoid loss alone: medians of alternating pairs with 95 % intervals.",
        "",
        *table(("objectives", "step, s:", "sigmoid, s:", "ratio"), rows),
    ]
    if "memory" in results:
        within, alone = (results["memory"][side] / 1e6 for side in SIDES)
        lines += [
            "",
            f"Anonymous memory of ten steps without an objective: {within:.0f} MB within the module that holds them, "
            f"{alone:.0f} MB of the model alone.",
        ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="alternating pairs")
    parser.add_argument("--memory_of", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    keep_freed_memory()  # as the command that trains does
    with one_thread():
        if args.memory_of:
            return print(json.dumps(peak(args.memory_of)))
        path = RESULTS / "objectives.json"
        for name, sides in COMPARED.items():
            store(path, stored(path) | {name: vars(alternate(*sides(), rounds=args.rounds))})
        store(path, stored(path) | {"memory": memory()})
        publish(path.with_suffix(".md"), render(stored(path)))
    return None


if __name__ == "__main__":
    main()
