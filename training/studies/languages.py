"""Languages × batch size (arXiv 2303.15343, section 4.3)."""

from dataclasses import replace

from .experiment import Settings
from .runs import Runs
from .study import Chart, Study, recall, seed_by_seed, tuned_loss


BATCH_SIZES = (32, 64, 256)
NOTE = (
    "Of a model of four languages the mean over them, on the 499 held-out images that are named in all four; training "
    "draws a language anew for each image, and the images are the same otherwise. Learning rate "
    "and temperature are those chosen with one language at that batch size. The paper reports XM3600: text to image "
    "and image to text 34.9 and 47.4 at a batch of 32k, and no gain above."
)
LANGUAGES = {"1 language": ("en",), "4 languages": ("en", "de", "ja", "ar")}


def settings_of(runs: Runs, languages: tuple[str, ...], batch_size: int) -> Settings | None:
    _, chosen = tuned_loss(runs, batch_size=batch_size)
    return None if chosen is None else replace(chosen, languages=languages)


def wanted(runs: Runs, seeds: int) -> list[Settings]:
    sweeps = [one for size in BATCH_SIZES for one in tuned_loss(runs, batch_size=size)[0]]
    points = [settings_of(runs, languages, size) for size in BATCH_SIZES for languages in LANGUAGES.values()]
    return sweeps + seed_by_seed(points, seeds)


def charts(runs: Runs, seeds: int) -> list[Chart]:
    ours: dict[str, dict[str, list[float]]] = {label: {} for label in LANGUAGES}
    for label, languages in LANGUAGES.items():
        for size in BATCH_SIZES:
            one = settings_of(runs, languages, size)
            if one is not None:
                ours[label][str(size)] = recall(runs, one, seeds)
    return [Chart("Languages and batch size", "batch size", ours, note=NOTE)]


STUDY = Study("languages", "one and four languages over the batch size", wanted, charts)
