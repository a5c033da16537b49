"""What an evaluation needs of a dataset in one value: images, what is right for each, and where they are from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..metrics.zero_shot import Task


@dataclass(frozen=True)
class Provenance:
    """Where rows are from.

    Args:
        source: a name on the Hub, a file or a folder.
        benchmark: the name of the known benchmark that they are.
        config, split: which part of the source.
        rows: how many.
        fingerprint: `datasets`' own, of these rows.
        columns: what was read from which column.
    """

    source: str
    benchmark: str | None = None
    config: str | None = None
    split: str | None = None
    rows: int | None = None
    fingerprint: str | None = None
    columns: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For a heading: the benchmark, or the last part of the source."""
        return self.benchmark or Path(self.source.rstrip("/")).name


@dataclass(frozen=True)
class Classes:
    """The classes that a model chooses from.

    Args:
        names: one a class, as people write them.
        templates: texts with "{}" for the name; several are averaged.
        names_from, templates_from: where they are from, for the result.
        central_crop: whether the benchmark's images are cropped, as big_vision does for ImageNet.
    """

    names: Sequence[str]
    templates: Sequence[str] = ("{}",)
    names_from: str = "given"
    templates_from: str = "given"
    central_crop: bool = False


@dataclass(frozen=True)
class EvaluationData:
    """Rows to evaluate a model on; `select` makes it, or you do.

    Args:
        images: (N,) whatever `encode_images` takes; None where embeddings are given instead.
        image_column: the images' column, where `images` is a dataset of `datasets`.
        captions: the captions of each image, for retrieval; an image without any takes no part.
        labels: the right classes of each image, for classification; an image without any takes no part.
        classes: what the labels mean.
        label_names: the dataset's own names of its labels, where it has any.
        tasks: further classification tasks over rows of the images.
        provenance: where the rows are from.

    Raises:
        ValueError: captions or labels of another number of rows.
    """

    images: Any = None
    image_column: str | None = None
    captions: Sequence[Sequence[str]] | None = None
    labels: Sequence[Sequence[int]] | None = None
    classes: Classes | None = None
    label_names: Sequence[str] | None = None
    tasks: Sequence[Task] = ()
    provenance: Provenance | None = None

    def __post_init__(self) -> None:
        counts = {
            name: len(value)
            for name, value in (("images", self.images), ("captions", self.captions), ("labels", self.labels))
            if value is not None and not isinstance(value, (str, Path)) and hasattr(value, "__len__")
        }
        if len(set(counts.values())) > 1:
            shown = ", ".join(f"{count} {name}" for name, count in counts.items())
            raise ValueError(f"captions and labels are one entry an image, got {shown}")

    @property
    def texts(self) -> list[str]:
        """All captions, row after row."""
        return [text for own in self.captions or () for text in own]
