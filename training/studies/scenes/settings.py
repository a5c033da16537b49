"""All that distinguishes one run on scenes from another."""

from dataclasses import dataclass

from ...components.initial_values import InitialValues
from .data import DataSettings, shards_of


SIGLIP = InitialValues()
PLACE = InitialValues(position_std=0.7, residual_scale=0.2)
"""Those that the study `place` speaks for."""


@dataclass(frozen=True)
class SceneRun:
    """
    Args:
        seed: of initial values, the order of the scenes and every draw.
        steps: batches that are trained on.
        initial: of the image tower.
        contrastive, captioning, distillation, masking: weights of the objectives; 0 leaves one out.
        starts_at: share of training after which distillation and masking join.
        task_weights: of captions, referring expressions and grounded captions.
        parallel: share of the captions that are predicted in parallel.
        decoder_layers: of the captioning decoder.
        one_object: share of training that begins with one emoji a scene.
        views, momentum, prototypes: of self-distillation.
        shuffled: share of the captions that stand at another scene.
        score: by which half of twice as many examples is chosen; none by default.
        reference_steps: how long the reference of that score is trained, on right captions.
        quarters: measure retrieval and clean pairs after each quarter of training, and nothing else.
        probe_steps: of a fresh decoder on the frozen tower, at the end; 0 leaves that figure out.
    """

    seed: int = 0
    steps: int = 600
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    initial: InitialValues = PLACE
    contrastive: float = 1.0
    captioning: float = 0.0
    distillation: float = 0.0
    masking: float = 0.0
    starts_at: float = 0.0
    task_weights: tuple[float, ...] = (1 / 3, 1 / 3, 1 / 3)
    parallel: float = 0.5
    decoder_layers: int = 1
    one_object: float = 0.0
    objects: tuple[int, int] = (1, 3)
    box_scale: int = 24
    views: int = 4
    momentum: float = 0.99
    prototypes: int = 256
    shuffled: float = 0.0
    score: str | None = None
    reference_steps: int = 0
    quarters: bool = False
    probe_steps: int = 0

    def __post_init__(self) -> None:
        # JSON has lists and mappings
        object.__setattr__(self, "task_weights", tuple(self.task_weights))
        object.__setattr__(self, "objects", tuple(self.objects))
        if not isinstance(self.initial, InitialValues):
            object.__setattr__(self, "initial", InitialValues(**self.initial))

    @property
    def self_supervised(self) -> dict[str, float]:
        """Weights of distillation and masking, of those that count."""
        weights = {"distillation": self.distillation, "masking": self.masking}
        return {name: weight for name, weight in weights.items() if weight}

    @property
    def phases(self) -> list[tuple[DataSettings, int]]:
        """The scenes that are trained on, one kind after the other, and the steps with each."""
        first = round(self.one_object * self.steps)
        views = self.views if self.self_supervised else None
        kinds = (((1, 1), first), (self.objects, self.steps - first))
        return [(DataSettings(objects, self.box_scale, views), steps) for objects, steps in kinds if steps]

    @property
    def drawn(self) -> int:
        """Examples that are drawn for each step."""
        return self.batch_size * (1 if self.score is None else 2)

    def preparations(self) -> list[tuple[DataSettings, int]]:
        """Arguments of `make_shard` for all that the run reads."""
        wanted = [shard for settings, steps in self.phases for shard in shards_of(settings, steps * self.drawn)]
        plain = DataSettings(self.objects, self.box_scale)
        others = max(self.probe_steps, self.reference_steps if self.score else 0) * self.batch_size
        return list(dict.fromkeys(wanted + shards_of(plain, others)))
