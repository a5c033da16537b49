"""Which emoji scenes are made of: classes for segmentation, names for captions, and pictures of each name.

Classes are subgroups of Unicode's list. A name is the English one without skin tones; of roles it is the role, of men
and women alike. Only hands and people are held out by picture: their tones, and one gender of some roles. Of these two
classes all names have held-out pictures; the other classes have none.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from datasets import Dataset, Image

from ..emoji.loader import load_split


# In this order names are dealt out.
CLASSES = {
    "hand": ("hand-fingers-open", "hand-fingers-partial", "hand-single-finger", "hand-fingers-closed"),
    "person": ("person", "person-role", "person-fantasy"),
    "face": ("face-smiling", "face-tongue", "face-unwell", "face-concerned", "face-hat", "face-glasses"),
    "animal": ("animal-mammal", "animal-bird", "animal-reptile", "animal-marine", "animal-bug"),
    "food": ("food-fruit", "food-vegetable", "food-prepared", "food-sweet"),
    "vehicle": ("transport-ground", "transport-water", "transport-air"),
    "plant": ("plant-flower", "plant-other"),
    "building": ("place-building", "place-religious"),
    "clothing": ("clothing",),
    "instrument": ("musical-instrument",),
    "sport": ("sport", "award-medal"),
}
HELD_OUT_CLASSES = ("hand", "person")
_ROLES = ("person-role", "person-fantasy")
# In subgroups of things of a kind, what is not of that kind or hardly a thing.
_NO_THINGS = {
    "bus stop", "station", "motorway", "wheel", "seat", "anchor", "rosette", "wood", "rock", "brick", "feather",
    "wing", "wedding", "coral", "microbe", "ring buoy", "salt", "goal net", "stop sign", "construction", "tree",
    "fuel pump", "horizontal traffic light", "vertical traffic light", "railway track", "oil drum", "houses",
    "police car light", "empty nest", "nest with eggs", "paw prints", "spiral shell", "spider web",
    "airplane departure", "airplane arrival", "building construction", "breast-feeding", "feeding baby", "with veil",
    "wearing turban", "in tuxedo", "middle finger", "cooking", "lipstick", "gem stone", "flag in hole",
}  # fmt: skip
# White ones, most of which goes with the white ground.
_WHITE = {"cook", "volleyball", "baseball", "ice hockey", "hospital", "factory", "skis"}
# Names with these would read like what captions say of places.
_PLACES = ("left", "right")


@dataclass(frozen=True)
class Name:
    """A name, its class, and its pictures.

    Args:
        text: lower case, as in captions and regions.
        label: number of the class in pixel labels; 0 is the background.
        pictures: encoded images of one split, at most as many as asked for.
    """

    text: str
    label: int
    pictures: tuple[bytes, ...]


def choose_names(names: int, variants: int, held_out: bool) -> list[Name]:
    """So many names, in turn from each class; they and their pictures follow from the bundled emoji alone.

    Args:
        held_out: pictures of the test split in place of those of the training split, and of these names those that
            have any.

    Raises:
        ValueError: more names than there are.
    """
    train, test = _pictures("train"), _pictures("test")
    candidates = []
    for kind in CLASSES:
        known = [name for name in train[kind] if kind not in HELD_OUT_CLASSES or name in test[kind]]
        # Short names first, so that captions are short; among equals at random.
        candidates.append([(kind, name) for name in sorted(known, key=lambda name: (len(name.split()), _rank(name)))])
    most = sum(map(len, candidates))
    if names > most:
        raise ValueError(f"names must be at most {most}, which is how many the bundled emoji have, got {names}")
    labels = {kind: label for label, kind in enumerate(CLASSES, start=1)}
    source = test if held_out else train
    return [
        Name(name, labels[kind], tuple(sorted(source[kind][name], key=_rank)[:variants]))
        for kind, name in list(_in_turn(candidates))[:names]
        if name in source[kind]
    ]


def _pictures(split: str) -> dict[str, dict[str, list[bytes]]]:
    """Encoded pictures by class and name."""
    rows: Dataset = load_split(split).cast_column("image", Image(decode=False))
    kinds = {subgroup: kind for kind, subgroups in CLASSES.items() for subgroup in subgroups}
    found: dict[str, dict[str, list[bytes]]] = {kind: defaultdict(list) for kind in CLASSES}
    for image, subgroup, base, role in zip(rows["image"], rows["subgroup"], rows["base"], rows["role"]):
        name = (role if role and subgroup in _ROLES else base).lower()
        unfit = name in _NO_THINGS or name in _WHITE or any(part in name for part in (":", ",", *_PLACES))
        if subgroup in kinds and not unfit:
            found[kinds[subgroup]][name].append(image["bytes"])
    return found


def _in_turn(lists: list[list[tuple[str, str]]]) -> Iterator[tuple[str, str]]:
    for place in range(max(map(len, lists))):
        yield from (some[place] for some in lists if place < len(some))


def _rank(value: str | bytes) -> str:
    return hashlib.sha256(value.encode() if isinstance(value, str) else value).hexdigest()
