"""The loss and the held-out figures of a run over its steps."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure as Canvas

from .style import ACCENT, INK, MUTED, RIGHT, quiet, save


RECALL = {f"eval_image_to_text_recall@{k}": f"image → text R@{k}" for k in (1, 5)}


def loss_curve(
    path: str | Path,
    log_history: Sequence[Mapping[str, float]],
    *,
    metrics: Mapping[str, str] = RECALL,
    title: str = "Training",
) -> Path:
    """Draw the training loss and the evaluation figures of a run over its steps.

    Args:
        path: PNG file to write.
        log_history: as in Trainer's `trainer_state.json`: mappings with "step" and some of "loss", "eval_loss", ...
        metrics: which metrics, shares between 0 and 1, to draw, and their labels; by default image-to-text Recall@1
            and @5. Those that the history lacks are left out.
        title: heading.

    Returns:
        `path`.

    Raises:
        ValueError: the history has no training loss.
    """

    def series(key: str) -> tuple[list[float], list[float]]:
        points = [(entry["step"], entry[key]) for entry in log_history if key in entry and "step" in entry]
        return [step for step, _ in points], [value for _, value in points]

    steps, losses = series("loss")
    if not steps:
        raise ValueError("log_history has no entry with 'step' and 'loss'")
    curves = [(label, *series(key)) for key, label in metrics.items()]
    curves = [curve for curve in curves if curve[1]]

    figure = Canvas(figsize=(9.6 if curves else 5.6, 3.9), layout="constrained")
    panels = figure.subplots(1, 2 if curves else 1, squeeze=False)[0]
    figure.suptitle(title, x=0.012, ha="left", fontsize=13, fontweight="bold", color=INK)

    panels[0].plot(steps, losses, color=ACCENT, linewidth=1.8, label="training")
    eval_steps, eval_losses = series("eval_loss")
    if eval_steps:
        panels[0].plot(
            eval_steps, eval_losses, color="#d9822b", linewidth=1.4, marker="o", markersize=4, label="held out"
        )
        panels[0].legend(frameon=False, fontsize=9, labelcolor=INK)
    if min(losses + eval_losses) > 0:
        panels[0].set_yscale("log")
        panels[0].yaxis.set_major_formatter("{x:g}")
        panels[0].yaxis.set_minor_formatter("{x:g}" if max(losses) < 20 * min(losses) else "")
    panels[0].set_title("loss", fontsize=10.5, color=INK, loc="left")

    for panel in panels[1:]:
        colours = (RIGHT, "#6fb58f", "#d9822b", "#a3417c", ACCENT)
        for (label, xs, ys), colour in zip(curves, colours):
            percent = [100 * y for y in ys]
            panel.plot(xs, percent, color=colour, linewidth=1.8, marker="o", markersize=4)
            panel.annotate(
                f"{percent[-1]:.0f} %  {label}",
                (xs[-1], percent[-1]),
                xytext=(7, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
                color=colour,
                annotation_clip=False,
            )
        panel.set(ylim=(0, 100), xlim=(0, max(steps[-1], max(curve[1][-1] for curve in curves))))
        panel.yaxis.set_major_formatter("{x:g} %")
        panel.set_title("held out", fontsize=10.5, color=INK, loc="left")
    for panel in panels:
        panel.set_xlabel("step", fontsize=9.5, color=MUTED)
        panel.tick_params(labelsize=9, which="both")
        quiet(panel, "both")
    return save(figure, path)
