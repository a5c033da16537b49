"""Languages × batch size (arXiv 2303.15343, section 4.3)."""

from dataclasses import replace

from .experiment import Settings
from .runs import Runs
from .study import Figure, Study, base_sweep, recall, seeded


BATCH_SIZES = (32, 64, 256)
NOTE = "The paper reports XM3600: text to image and image to text 34.9 and 47.4 at a batch of 32k, and no gain above."
LANGUAGES = {"1 language": ("en",), "4 languages": ("en", "de", "ja", "ar")}


def settings_of(runs: Runs, languages: tuple[str, ...], batch_size: int) -> Settings | None:
    _, chosen = base_sweep(runs, "sigmoid", batch_size)
    return None if chosen is None else replace(chosen, languages=languages)


def wanted(runs: Runs, seeds: int) -> list[Settings]:
    settings = [one for size in BATCH_SIZES for one in base_sweep(runs, "sigmoid", size)[0]]
    for size in BATCH_SIZES:
        for languages in LANGUAGES.values():
            one = settings_of(runs, languages, size)
            settings += [] if one is None else seeded(one, seeds)
    return settings


def figures(runs: Runs, seeds: int) -> list[Figure]:
    ours: dict[str, dict[str, list[float]]] = {label: {} for label in LANGUAGES}
    for label, languages in LANGUAGES.items():
        for size in BATCH_SIZES:
            one = settings_of(runs, languages, size)
            if one is not None:
                ours[label][str(size)] = recall(runs, one, seeds)
    return [Figure("Languages and batch size", "batch size", ours, note=NOTE)]


STUDY = Study("languages", "one and four languages over the batch size", wanted, figures)
