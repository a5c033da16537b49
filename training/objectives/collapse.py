"""What a collapse of self-distillation looks like, and the warning that says so.

The teacher's distributions must differ between images: the entropy of their mean minus the mean of their entropies is
what they say about an image. Both near 0: all images at one prototype. Both near ln K: nothing is said at all.
"""

import logging
import math
from collections.abc import Mapping


logger = logging.getLogger(__name__)

# Fresh heads say little at first.
GRACE = 200


def sign_of_collapse(figures: Mapping[str, float], rows: int, prototypes: int) -> str | None:
    """What is wrong, in words.

    Args:
        figures: `teacher_entropy` and `mean_teacher_entropy` in nats, `feature_spread` between 0 and 1.
        rows: of the teacher that the figures are of.
        prototypes: K.
    """
    entropy, of_the_mean, spread = (
        figures[name] for name in ("teacher_entropy", "mean_teacher_entropy", "feature_spread")
    )
    most = math.log(min(rows, prototypes))
    if rows < 2:
        return None
    if spread < 1e-4:
        return f"the teacher's features are nearly the same for everything (spread {spread:.1e})"
    if of_the_mean < 0.05 * most:
        return f"the teacher puts everything at the same prototype (entropy of the mean {of_the_mean:.2f} nats)"
    if of_the_mean - entropy < 0.01 * most:
        return (
            f"the teacher says the same about everything (entropy {entropy:.2f} nats, of the mean {of_the_mean:.2f}, "
            f"of {math.log(prototypes):.2f})"
        )
    return None


class CollapseWarning:
    """Warns of a collapse, once.

    Args:
        name: of the objective.
    """

    def __init__(self, name: str):
        self.name = name
        self.steps = 0
        """Of the optimizer in this run, to be counted by the owner; the first ones are not judged."""
        self._given = False

    def look(self, figures: Mapping[str, float], rows: int, prototypes: int) -> None:
        if self._given or self.steps < GRACE:
            return
        sign = sign_of_collapse(figures, rows, prototypes)
        if sign is not None:
            self._given = True
            logger.warning(
                "%s: collapse? %s. A slower teacher (momentum), a lower teacher_temperature, a smaller weight or a "
                "later start may help",
                self.name,
                sign,
            )
