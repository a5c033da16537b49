"""Languages × batch size (arXiv 2303.15343, section 4.3)."""

from .experiment import Settings
from .runs import Runs
from .study import Figure, Study, choice, recall, seed_by_seed, tuned


BATCH_SIZES = (32, 64, 256)
NOTE = "The paper reports XM3600: text to image and image to text 34.9 and 47.4 at a batch of 32k, and no gain above."
LANGUAGES = {"1 language": ("en",), "4 languages": ("en", "de", "ja", "ar")}


def tuned_languages(runs: Runs, label: str, batch_size: int) -> tuple[list[Settings], Settings | None]:
    return tuned(runs, Settings(batch_size=batch_size, languages=LANGUAGES[label]))


def wanted(runs: Runs, seeds: int) -> list[Settings]:
    found = [tuned_languages(runs, label, size) for size in BATCH_SIZES for label in LANGUAGES]
    sweeps = [one for candidates, _ in found for one in candidates]
    return sweeps + seed_by_seed((chosen for _, chosen in found), seeds)


def figures(runs: Runs, seeds: int) -> list[Figure]:
    ours: dict[str, dict[str, list[float]]] = {label: {} for label in LANGUAGES}
    choices = []
    for label in LANGUAGES:
        for size in BATCH_SIZES:
            _, chosen = tuned_languages(runs, label, size)
            if chosen is not None:
                ours[label][str(size)] = recall(runs, chosen, seeds)
                choices.append(f"{label} at {size} {choice(chosen)}")
    note = f"{NOTE} Here a mean over the languages of the model, trained on a language drawn anew for each image."
    if choices:
        note += f" Chosen on validation, learning rate and initial temperature: {', '.join(choices)}."
    return [Figure("Languages and batch size", "batch size", ours, note=note)]


STUDY = Study("languages", "one and four languages over the batch size", wanted, figures)
