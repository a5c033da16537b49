"""Load the bundled emoji dataset: 3641 images with their names in 34 languages."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, NamedSplit
from datasets.table import InMemoryTable

from .split import without_tones


PARQUET = Path(__file__).with_name("emoji.parquet")

# The languages of XM3600 (Crossmodal-3600) in which CLDR names nearly every emoji; Maori and Quechua are too sparse.
# fmt: off
LANGUAGES = (
    "ar", "bn", "cs", "da", "de", "el", "en", "es", "fa", "fi", "fil", "fr", "he", "hi", "hr", "hu", "id", "it",
    "ja", "ko", "nl", "no", "pl", "pt", "ro", "ru", "sv", "sw", "te", "th", "tr", "uk", "vi", "zh",
)
# fmt: on
SPLITS = ("train", "test")


def load_emoji(
    split: str | None = None, languages: str | Sequence[str] = "en", data_file: str | Path = PARQUET
) -> Dataset | DatasetDict:
    """The emoji dataset, read into memory (about 10 MB; nothing is cached on disk).

    Columns: `image` (64 x 64 RGB PIL image), one caption column a language (named by its code, e.g. "en"), `emoji`
    (the character), `group` and `subgroup` of Unicode's emoji list, `split`, `held_out` ("A" unseen skin tone,
    "B" unseen gender of a role, "C" other recombination, None for training), and what the name says: `tone`, `gender`,
    `role` (None where it does not), and `base`, the English name without skin tones, which variants of an emoji share.

    Args:
        split: "train" (3139 rows), "test" (the 502 held-out rows), or None for a DatasetDict of both.
        languages: caption columns to keep: one code of `LANGUAGES`, several, or "all". Rows without a name in one of
            them are kept with None (31 emoji of 2022 have names in English only; Indonesian lacks one more).
        data_file: another Parquet file written by `build`.

    Raises:
        ValueError: unknown split or language.

    Example:
        >>> emoji = load_emoji("train", languages=["en", "de"])
        >>> emoji[0]["en"]
        'grinning face'
    """
    if split is not None:
        return load_split(split, languages, data_file)
    return DatasetDict({name: load_split(name, languages, data_file) for name in SPLITS})


def load_split(split: str, languages: str | Sequence[str] = "en", data_file: str | Path = PARQUET) -> Dataset:
    """One split of the dataset, as `load_emoji` gives it."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS} or None, not {split!r}")
    if languages == "all":
        wanted = LANGUAGES
    else:
        wanted = (languages,) if isinstance(languages, str) else tuple(languages)
    unknown = [language for language in wanted if language not in LANGUAGES]
    if unknown:
        raise ValueError(f"no captions in {unknown}; choose from {', '.join(LANGUAGES)} or 'all'")
    columns = [name for name in pq.read_schema(data_file).names if name in wanted or name not in LANGUAGES]
    table = pq.read_table(data_file, columns=[*dict.fromkeys(["en", *columns])], filters=[("split", "=", split)])
    table = table.append_column("base", [[without_tones(name) for name in table["en"].to_pylist()]])
    table = table.select([*columns, "base"])
    return Dataset(InMemoryTable(table), split=NamedSplit(split))
