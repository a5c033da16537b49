"""Scenes of emoji: the same everywhere, and captions, boxes and labels that are true of the pixels."""

import hashlib
import io
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from modeling_siglip_ext.captioning import CaptionDecoderConfig, TextFormat
from modeling_siglip_ext.tokenization_siglip_ext import train_tokenizer
from modeling_siglip_ext.training.data.emoji.loader import load_split
from modeling_siglip_ext.training.data.locca import CaptionTargets
from modeling_siglip_ext.training.data.regions import as_regions
from modeling_siglip_ext.training.data.scenes import Scenes, SceneSettings, load_scenes
from modeling_siglip_ext.training.data.scenes.classes import CLASSES, HELD_OUT_CLASSES, choose_names
from modeling_siglip_ext.training.data.scenes.draws import mixed
from modeling_siglip_ext.training.data.scenes.sprites import cut_out


MANY = SceneSettings(names=105, objects=(1, 4), count=300, held_out=60)
WIDE = SceneSettings(size=(50, 200), objects=(2, 4), emoji_size=(20, 50), count=60)
TALL = SceneSettings(size=(400, 41), objects=(1, 4), emoji_size=(8, 41), count=60)
LARGE = SceneSettings(size=224, emoji_size=(60, 120), count=8)
KINDS = pytest.mark.parametrize("settings", [SceneSettings(count=200), MANY, WIDE, TALL, LARGE])

DIGEST = """
import hashlib
from modeling_siglip_ext.training.data.scenes import Scenes, SceneSettings
digest = hashlib.sha256()
for split in ("train", "validation", "test"):
    scenes = Scenes(SceneSettings(seed=3), split)
    for index in (7, 0, 130):
        row = scenes[index]
        digest.update(row["image"].tobytes() + repr((row["caption"], row["regions"])).encode())
        digest.update(scenes.labels(index).tobytes())
print(digest.hexdigest())
"""


def pixel_boxes(scenes: Scenes, row: dict) -> list[tuple[int, ...]]:
    """Left, top, right, bottom in pixels."""
    height, width = scenes.settings.canvas
    boxes = [[side * (width, height)[k % 2] for k, side in enumerate(one["box"])] for one in row["regions"]]
    assert all(abs(side - round(side)) < 1e-9 for box in boxes for side in box)
    return [tuple(round(side) for side in box) for box in boxes]


@pytest.mark.long
def test_another_process_draws_the_same(capsys):
    exec(DIGEST, {})
    there = subprocess.run([sys.executable, "-c", DIGEST], capture_output=True, text=True, check=True).stdout
    assert there.strip() == capsys.readouterr().out.strip()


def test_draws_are_those_of_splitmix():
    state, expected = 1234567, []
    for _ in range(3):  # the reference implementation, in Python's whole numbers
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        one = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        one = (one ^ (one >> 27)) * 0x94D049BB133111EB % 2**64
        expected.append(one ^ (one >> 31))
    states = (1234567 + 0x9E3779B97F4A7C15 * np.arange(1, 4, dtype=object)) % 2**64
    assert mixed(states.astype(np.uint64)).tolist() == expected


def test_a_scene_depends_on_nothing_but_seed_split_and_index():
    scenes = Scenes(SceneSettings(count=600))
    rows = list(scenes.rows([599, 3, 300, 3]))
    assert [row["caption"] for row in rows] == [scenes[index]["caption"] for index in (599, 3, 300, 3)]
    assert rows[1]["image"].tobytes() == scenes[3]["image"].tobytes() == scenes[:4][3]["image"].tobytes()
    assert scenes[-1] == scenes[599]
    # as spawned workers of a DataLoader get them
    assert pickle.loads(pickle.dumps(scenes))[3] == scenes[3]
    others = Scenes(SceneSettings(count=600, seed=1)), Scenes(SceneSettings(held_out=600), "validation")
    for other in others:
        assert [row["caption"] for row in other[:50]] != [row["caption"] for row in scenes[:50]]
    with pytest.raises(IndexError, match="no scene 600 of 600"):
        scenes[600]


@KINDS
def test_boxes_are_where_pixels_change(settings):
    """One emoji is drawn on two grounds: what differs from both is the emoji, what is equal in a place is its own."""
    scenes = Scenes(settings)
    height, width = settings.canvas
    for scene in scenes.plans(range(min(60, len(scenes)))):
        for one in scene.objects:
            mask = np.zeros((height, width), bool)
            sprite = scenes._sprites.scaled(one.sprite, one.box[3], one.box[2])[0]
            for color in ("black", "white"):
                canvas = Image.new("RGB", (width, height), color)
                canvas.paste(sprite, one.box[:2], sprite)
                mask |= (np.asarray(canvas) != (0 if color == "black" else 255)).any(axis=-1)
            (rows, columns), *_ = ndimage.find_objects(mask.astype(int))
            left, top, box_width, box_height = one.box
            assert (columns.start, rows.start) == (left, top)
            assert (columns.stop, rows.stop) == (left + box_width, top + box_height)
            shorter, longer = sorted(one.box[2:])
            assert settings.emoji_size[0] <= longer <= settings.emoji_size[1]
            assert shorter >= 1


@KINDS
def test_images_differ_from_their_ground_only_inside_boxes(settings):
    scenes = Scenes(settings)
    for index in range(min(40, len(scenes))):
        row, labels = scenes[index], scenes.labels(index)
        scene = next(scenes.plans([index]))
        bare = np.asarray(scenes._draw(type(scene)(scene.ground, scene.ground_draws, scene.objects, ())))
        image = np.asarray(row["image"])
        assert image.shape == (*settings.canvas, 3)
        inside = np.zeros(settings.canvas, bool)
        for left, top, right, bottom in pixel_boxes(scenes, row):
            inside[top:bottom, left:right] = True
        assert np.array_equal(image[~inside], bare[~inside])
        assert not labels[~inside].any()
        assert (image != bare).any(axis=-1)[labels > 0].mean() > 0.9


@KINDS
def test_labels_fill_boxes_with_the_class_of_their_name(settings):
    scenes = Scenes(settings)
    chosen = choose_names(settings.names, settings.variants, held_out=False)
    kinds = {name.text: scenes.class_names[name.label] for name in chosen}
    assert scenes.class_names == ("background", *CLASSES)
    for index in range(min(60, len(scenes))):
        row, labels = scenes[index], scenes.labels(index)
        assert (labels.dtype, labels.shape) == (np.uint8, settings.canvas)
        shown = {scenes.class_names[label] for label in np.unique(labels)} - {"background"}
        assert shown == {kinds[region["text"]] for region in row["regions"]}
        boxes = pixel_boxes(scenes, row)
        for place, (left, top, right, bottom) in enumerate(boxes):
            alone = np.zeros(settings.canvas, bool)
            alone[top:bottom, left:right] = True
            for other in boxes[:place] + boxes[place + 1 :]:
                alone[other[1] : other[3], other[0] : other[2]] = False
            seen = {scenes.class_names[label] for label in np.unique(labels[alone])} - {"background"}
            assert seen == {kinds[row["regions"][place]["text"]]}
            if alone.sum() == (right - left) * (bottom - top):  # nothing in front: up to all sides
                rows, columns = np.nonzero((labels > 0) & alone)
                found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
                fringe = 1 + max(right - left, bottom - top) // 20
                assert abs(found - [left, top, right, bottom]).max() <= fringe


@KINDS
def test_captions_are_true_of_the_boxes(settings):
    scenes = Scenes(settings)
    relations = set()
    for row in scenes.rows(range(len(scenes))):
        texts = [region["text"] for region in row["regions"]]
        assert len(set(texts)) == len(texts)
        boxes = pixel_boxes(scenes, row)
        rest = row["caption"].removeprefix(texts[0])
        for (left, top, right, bottom), (left2, top2, right2, bottom2), text in zip(boxes, boxes[1:], texts[1:]):
            across, down = (left2 + right2) - (left + right), (top2 + bottom2) - (top + bottom)
            assert across >= 0
            said = next(word for word in ("left of", "above", "below") if rest.startswith(f" {word} {text}"))
            assert {"left of": across >= abs(down), "above": down > across, "below": -down > across}[said]
            relations.add(said)
            rest = rest.removeprefix(f" {said} {text}")
        assert not rest
        assert row["caption"] == row["caption"].lower()
    assert len(scenes) < 200 or relations == {"left of", "above", "below"}


@KINDS
def test_no_two_boxes_overlap_by_more_than_a_tenth(settings):
    scenes, counts, overlapping = Scenes(settings), set(), 0
    for row in scenes.rows(range(len(scenes))):
        boxes = pixel_boxes(scenes, row)
        counts.add(len(boxes))
        for place, one in enumerate(boxes):
            assert 0 <= one[0] < one[2] <= settings.canvas[1]
            assert 0 <= one[1] < one[3] <= settings.canvas[0]
            for other in boxes[:place]:
                across = max(0, min(one[2], other[2]) - max(one[0], other[0]))
                down = max(0, min(one[3], other[3]) - max(one[1], other[1]))
                area = min((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
                assert across * down <= area / 10
                overlapping += across * down > 0
    fewest, most = settings.objects
    assert len(scenes) < 50 or counts == set(range(fewest, most + 1))
    assert len(scenes) < 200 or overlapping


def test_splits_share_no_picture_and_the_test_split_no_new_name():
    train, test = choose_names(105, 1000, held_out=False), choose_names(105, 1000, held_out=True)
    pictures = {picture for name in train for picture in name.pictures}
    held_out = {picture for name in test for picture in name.pictures}
    assert not pictures & held_out
    rows = {split: load_split(split).with_format("arrow")["image"].to_pylist() for split in ("train", "test")}
    assert pictures < {image["bytes"] for image in rows["train"]}
    assert held_out < {image["bytes"] for image in rows["test"]}
    assert {name.text for name in test} < {name.text for name in train}
    assert {name.label for name in test} == {1 + list(CLASSES).index(kind) for kind in HELD_OUT_CLASSES}
    assert len(train) == len({name.text for name in train}) == 105
    assert all(name.pictures for name in [*train, *test])
    assert all(len(name.pictures) <= 2 for name in choose_names(105, 2, held_out=False))
    names = [name.text for name in choose_names(26, 1, held_out=False)]
    assert names == [name.text for name in train][:26]  # more names are more of them, not others


def test_cut_outs_are_the_ground_that_pillow_fills():
    pictures = [name.pictures[0] for name in choose_names(40, 1, held_out=False)]
    for picture, image in zip(pictures, cut_out(pictures)):
        original = Image.open(io.BytesIO(picture)).convert("RGB")
        white = Image.fromarray(((np.asarray(original) >= 232).all(axis=-1) * 255).astype(np.uint8))
        framed = Image.new("L", (original.width + 2, original.height + 2), 255)
        framed.paste(white, (1, 1))
        ImageDraw.floodfill(framed, (0, 0), 128)
        ground = np.asarray(framed)[1:-1, 1:-1] == 128
        (rows, columns), *_ = ndimage.find_objects((~ground).astype(int))
        assert np.array_equal(np.asarray(image)[..., 3] == 0, ground[rows, columns])
        assert np.array_equal(np.asarray(image)[..., :3], np.asarray(original)[rows, columns])


def test_as_a_dataset():
    settings = SceneSettings(count=20, held_out=10)
    dataset = load_scenes(settings=settings)
    assert {split: len(rows) for split, rows in dataset.items()} == {"train": 20, "validation": 10, "test": 10}
    for split, rows in dataset.items():
        assert rows.column_names == ["image", "caption", "regions"]
        for index, (row, drawn) in enumerate(zip(rows, Scenes(settings, split))):
            assert row["image"].tobytes() == drawn["image"].tobytes(), index
            assert (row["caption"], row["regions"]) == (drawn["caption"], drawn["regions"])
            assert [region.text for region in as_regions(row["regions"])] == [one["text"] for one in row["regions"]]
    assert load_scenes("test", settings)[:3]["caption"] == dataset["test"][:3]["caption"]
    with pytest.raises(ValueError, match="split must be one of train, validation, test, not 'all'"):
        load_scenes("all")


def test_captions_and_boxes_are_what_captioning_writes():
    rows = Scenes(SceneSettings(count=50))[:]
    tokenizer = train_tokenizer([row["caption"] for row in rows], vocab_size=500)
    config = CaptionDecoderConfig(
        vocab_size=len(tokenizer), encoder_hidden_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, max_length=64, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    targets = CaptionTargets(tokenizer, config)
    for number, row in enumerate(rows):
        caption, referring, _ = targets.of_example(row["caption"], as_regions(row["regions"]), f"0/0/{number}")
        assert tokenizer.decode(caption.ids[caption.given : -1]).strip() == row["caption"]
        text, _, box = tokenizer.decode(referring.ids[referring.given : -1]).rpartition(" : ")
        region = next(region for region in row["regions"] if region["text"] == text.strip())
        assert np.allclose(TextFormat().read_box(box), region["box"], atol=0.5 / 500 + 1e-9)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": (2, 400)}, "emoji_size: emoji of 45 pixels do not fit a canvas of 2 x 400"),
        ({"size": 40}, "emoji_size: emoji of 45 pixels do not fit a canvas of 40 x 40"),
        ({"size": 45, "objects": (1, 2)}, "emoji_size: 2 emoji of 24 pixels do not fit side by side"),
        ({"size": 72.5}, "size must be a whole number of at least 1, got 72.5"),
        ({"size": [72]}, "size must be two whole numbers"),
        ({"size": "72"}, "size must be a whole number"),
        ({"objects": (3, 1)}, r"objects must be the lowest and the highest, got \[3, 1\]"),
        ({"objects": (1, 5)}, "objects must be at most 4"),
        ({"objects": (0, 2)}, "objects must be a whole number of at least 1, got 0"),
        ({"objects": 2}, "objects must be two whole numbers, got 2"),
        ({"names": 2}, "objects must be at most 4, and at most names"),
        ({"names": True}, "names must be a whole number"),
        ({"count": 0}, "count must be a whole number of at least 1"),
        ({"seed": -1}, "seed must be a whole number of at least 0"),
        ({"backgrounds": ["plain", "photo"]}, "backgrounds must be some of plain, gradient, stripes, blocks"),
        ({"backgrounds": []}, "backgrounds must be some of"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        SceneSettings(**settings)


def test_more_names_or_held_out_objects_than_there_are():
    with pytest.raises(ValueError, match=r"names must be at most \d+, which is how many the bundled emoji have"):
        Scenes(SceneSettings(names=10_000))
    Scenes(SceneSettings(names=11))
    with pytest.raises(ValueError, match="only 2 of 11 names have held-out ones; raise names, or lower objects"):
        Scenes(SceneSettings(names=11), "test")


def test_a_canvas_of_two_hundred_to_one():
    scenes = Scenes(SceneSettings(size=(8, 1600), emoji_size=(6, 8), objects=(4, 4), count=20))
    for index in range(20):
        assert len(scenes[index]["regions"]) == 4
        assert scenes.labels(index).shape == (8, 1600)


def test_a_full_canvas_is_filled_on_a_grid():
    settings = SceneSettings(size=50, emoji_size=(25, 50), objects=(4, 4), count=40)
    assert {len(row["regions"]) for row in Scenes(settings)} == {4}


def test_backgrounds_are_of_the_kinds_asked_for():
    for kind, most in (("plain", 1), ("stripes", 2), ("blocks", 4), ("gradient", 200)):
        scenes = Scenes(SceneSettings(backgrounds=(kind,), count=30))
        assert {scene.ground for scene in scenes.plans(range(30))} == {kind}
        for index in range(30):
            ground = np.asarray(scenes[index]["image"])[scenes.labels(index) == 0]
            _, counts = np.unique(ground, axis=0, return_counts=True)
            assert counts[np.argsort(-counts)[:most]].sum() > 0.8 * len(ground)
    digests = {hashlib.sha256(row["image"].tobytes()).digest() for row in Scenes(SceneSettings(count=200))}
    assert len(digests) == 200
