"""The bundled dataset: its size, its split, what its names say, and the zero-shot tasks on it."""

import hashlib
import re
from collections import Counter

import numpy as np
import pytest
from datasets import load_dataset
from huggingface_hub import DatasetCard

from modeling_siglip_ext.training.data.emoji import LANGUAGES, load_emoji, load_split
from modeling_siglip_ext.training.data.emoji.loader import PARQUET
from modeling_siglip_ext.training.data.emoji.split import attributes, held_out_kinds, words
from modeling_siglip_ext.training.data.emoji.tasks import emoji_tasks


@pytest.fixture(scope="module")
def emoji():
    return load_emoji(languages="all")


def test_sizes_of_the_split_and_of_its_kinds(emoji):
    assert (len(emoji["train"]), len(emoji["test"])) == (3139, 502)
    assert Counter(emoji["test"]["held_out"]) == {"A": 339, "B": 103, "C": 60}
    assert set(emoji["train"]["held_out"]) == {None}
    assert set(emoji["train"]["split"]) == {"train"}


def test_its_page_is_a_card_that_the_hub_reads():
    card = DatasetCard.load(PARQUET.with_name("README.md")).data
    assert sorted(card.language) == sorted(LANGUAGES)
    assert card.configs == [{"config_name": "default", "data_files": PARQUET.name}]
    assert card.license_name
    assert card.license_link


def test_every_held_out_word_is_seen_in_training_but_no_held_out_name(emoji):
    seen = {word for name in emoji["train"]["en"] for word in words(name)}
    assert {word for name in emoji["test"]["en"] for word in words(name)} <= seen
    assert not set(emoji["test"]["en"]) & set(emoji["train"]["en"])


def test_no_two_images_are_equal_and_all_decode(emoji):
    pixels = [hashlib.sha256(np.asarray(image).tobytes()).digest() for image in emoji["test"]["image"]]
    assert len(set(pixels)) == 502
    image = emoji["train"][0]["image"]
    assert (image.size, image.mode) == ((64, 64), "RGB")
    # Corners are background: white up to compression.
    assert min(np.asarray(image)[0, 0]) > 250


def test_captions_identify_images_in_every_language(emoji):
    assert len(LANGUAGES) == 34
    for language in LANGUAGES:
        names = [name for split in emoji.values() for name in split[language]]
        present = [name for name in names if name is not None]
        assert len(names) - len(present) == {"en": 0, "id": 32}.get(language, 31)
        assert len(set(present)) == len(present)
        assert all(name == name.strip() and name for name in present)
        assert not any(re.search("[\u200e\u200f\u202a-\u202e\u2066-\u2069↑]", name) for name in present)


def test_names_mean_what_they_say_in_other_languages(emoji):
    row = next(row for row in emoji["train"].remove_columns("image") if row["en"] == "dog")
    assert (row["de"], row["fr"], row["ja"], row["emoji"]) == ("Hund", "chien", "イヌ", "🐕")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("woman scientist: medium-dark skin tone", ("medium-dark", "woman", "scientist")),
        ("man scientist", (None, "man", "scientist")),
        ("scientist: light skin tone", ("light", None, "scientist")),
        ("man: dark skin tone, beard", ("dark", "man", "beard")),
        ("men holding hands: light skin tone, dark skin tone", (None, "man", "holding hands")),
        ("deaf woman: medium skin tone", ("medium", "woman", "deaf")),
        ("woman: light skin tone", ("light", None, None)),
        ("woman’s boot", (None, None, None)),
        ("raised hand: light skin tone", ("light", None, None)),
    ],
)
def test_attributes_of_names(emoji, name, expected):
    row = next(row for part in emoji.values() for row in part.remove_columns("image") if row["en"] == name)
    assert (row["tone"], row["gender"], row["role"]) == expected


def test_kind_b_leaves_out_a_gender_as_a_whole_and_keeps_the_other(emoji):
    held_out = {
        (row["role"], row["gender"]) for row in emoji["test"].remove_columns("image") if row["held_out"] == "B"
    }
    assert len(held_out) == 18
    train = Counter(zip(emoji["train"]["role"], emoji["train"]["gender"]))
    for role, gender in held_out:
        assert train[role, gender] == 0
        assert train[role, {"man": "woman", "woman": "man"}[gender]] > 0


def test_the_split_does_not_depend_on_the_order_of_rows(emoji):
    rows = [row for part in emoji.values() for row in part.remove_columns("image")]
    rows.sort(key=lambda row: row["en"][::-1])
    kinds = held_out_kinds([row["en"] for row in rows], [row["group"] for row in rows])
    assert kinds == [row["held_out"] for row in rows]
    facts = attributes([row["en"] for row in rows])
    assert all(fact[key] == row[key] for fact, row in zip(facts, rows) for key in fact)


def test_columns_follow_the_languages_asked_for():
    assert {"image", "en", "group", "split"} <= set(load_emoji("test").column_names)
    assert "de" not in load_emoji("test").column_names
    two = load_emoji("test", languages=["de", "ja"]).column_names
    assert "de" in two
    assert "ja" in two
    assert "en" not in two
    with pytest.raises(ValueError, match="'xx'"):
        load_emoji(languages="xx")
    with pytest.raises(ValueError, match="validation"):
        load_emoji("validation")
    assert load_split("test", languages=["de", "ja"]).column_names == two


def test_the_file_is_understood_without_this_package(tmp_path):
    plain = load_dataset("parquet", data_files=str(PARQUET), split="train", cache_dir=str(tmp_path))
    assert len(plain) == 3641
    assert plain[0]["image"].size == (64, 64)


def test_zero_shot_tasks_on_the_held_out_images():
    dataset = load_emoji("test")
    tasks = {task.name: task for task in emoji_tasks(dataset)}
    sizes = {name: (len(task.class_names), len(task.rows)) for name, task in tasks.items()}
    assert sizes == {
        "tone_of_name": (5, 372),
        "tone": (5, 372),
        "gender": (2, 238),
        "role": (76, 313),
        "group": (9, 502),
        "subgroup": (99, 502),
    }
    choice = tasks.pop("tone_of_name")
    for row, label, texts in zip(choice.rows, choice.labels, choice.choices):
        assert texts[label] == dataset["en"][row]
    for task in tasks.values():
        assert len({tuple(prompts) for prompts in task.prompts}) == len(task.class_names)
    tone, names = tasks["tone"], dataset["en"]
    for row, label in zip(tone.rows, tone.labels):
        assert f" {tone.class_names[label]} skin tone" in names[row]
    # Role prompts are in the words of the captions, so that zero-shot means unseen images, not an unseen style.
    captions = {caption for split in load_emoji().values() for caption in split["en"]}
    plural = {"with bunny ears", "wrestling", "holding hands"}
    for role, prompts in zip(tasks["role"].class_names, tasks["role"].prompts):
        assert role in plural or set(prompts[1:]) <= captions
    assert tasks["role"].class_names == sorted(set(tasks["role"].class_names))
