"""What is known of the dataset that a recipe names."""

from dataclasses import replace

import pytest
from datasets import Dataset

from modeling_siglip_ext.training.data.emoji import LANGUAGES
from modeling_siglip_ext.training.data.scenes import Scenes, SceneSettings
from modeling_siglip_ext.training.run.fields import DataArguments
from modeling_siglip_ext.training.run.recipe import parse_recipe
from modeling_siglip_ext.training.run.rows import Rows, every_row, facts_of_dataset, load_rows


def test_only_names_of_the_hub_have_a_slash(tmp_path):
    (tmp_path / "my images").mkdir()
    for name, shown in (
        (str(tmp_path / "my images"), "my-images"),
        (str(tmp_path / "train-{0..3}.tar"), "train--0..3-.tar"),
        ("data/train-0.tar", "train-0.tar"),
        ("user/pictures", "user/pictures"),
        ("emoji", "siglip-ext-emoji"),
        ("scenes", "siglip-ext-scenes"),
    ):
        assert facts_of_dataset(name).id == shown, name


def test_what_the_bundled_dataset_says_of_itself():
    about = facts_of_dataset("emoji")
    assert about.languages == LANGUAGES
    assert about.limits
    assert about.summary
    assert facts_of_dataset("user/pictures").limits is None


def test_rows_of_scenes():
    data = DataArguments(dataset="scenes", scenes={"count": 12, "held_out": 5, "size": [60, 90]})
    rows = load_rows(data, seed=0)
    settings = SceneSettings(count=12, held_out=5, size=(60, 90))
    assert rows.train[:]["caption"] == [row["caption"] for row in Scenes(settings)]
    assert rows.train[0]["image"].size == (90, 60)
    assert rows.held_out[:]["regions"] == [row["regions"] for row in Scenes(settings, "validation")]
    assert len(every_row(data)) == 17
    test = load_rows(replace(data, eval_split="test"), seed=0)
    assert test.held_out[:]["caption"] == [row["caption"] for row in Scenes(settings, "test")]
    assert test.about.limits


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scenes": {"colour": 1}}, "scenes: unknown name 'colour'"),
        ({"scenes": {"emoji_sizes": [8, 9]}}, "did you mean 'emoji_size'"),
        ({"scenes": {"size": 20}}, "^scenes.emoji_size: emoji of 45 pixels do not fit a canvas of 20 x 20"),
        ({"scenes": "names"}, "scenes must be a mapping or JSON text"),
        ({"eval_split": "train"}, "eval_split='train': held-out splits of scenes are validation, test"),
        ({"region_column": "boxes"}, "region_column"),
        ({"caption_column": ["en"]}, "caption_column"),
    ],
)
def test_what_scenes_refuse(fields, message):
    with pytest.raises(ValueError, match=message):
        load_rows(DataArguments(dataset="scenes", **{"scenes": {"count": 2, "held_out": 2}, **fields}), seed=0)


def test_settings_of_scenes_on_the_command_line(tmp_path):
    words = ["--output_dir", str(tmp_path), "--scenes.count", "64", "--scenes.size", "[48, 96]", "--scenes.names=30"]
    settings = parse_recipe("scenes", words).data.scene_settings()
    assert (settings.count, settings.size, settings.names, settings.held_out) == (64, (48, 96), 30, 500)


@pytest.mark.parametrize("name", ["emoji", "scenes"])
def test_a_folder_named_as_a_bundled_dataset(name, tmp_path, monkeypatch, caplog):
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    column = {"emoji": "en", "scenes": "caption"}[name]
    load_rows(DataArguments(dataset=name, caption_column=[column], scenes={"count": 2, "held_out": 2}), seed=0)
    assert f"what is here is ./{name}" in caplog.text


def test_every_caption_that_is_trained_on_is_seen_by_a_new_tokenizer():
    values = [{"en": ["a cat"], "de": ["eine Katze", ""]}, {"en": None, "de": ["ein Hund"]}]
    rows = Rows(Dataset.from_dict({"image": ["a", "b"], "caption": values}), None, None)
    assert rows.captions(["caption"]) == ["a cat", "eine Katze", "ein Hund"]
