"""Recipes: reading, overriding, and errors that name the field."""

import pytest

from modeling_siglip_ext.training.__main__ import main
from modeling_siglip_ext.training.run.fields import bundled_recipes, parse_recipe


@pytest.fixture
def recipe_file(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


@pytest.mark.parametrize("name", bundled_recipes())
def test_bundled_recipes_parse(name, tmp_path):
    recipe = parse_recipe(name, ["--output_dir", str(tmp_path), "--use_cpu"])
    assert recipe.name == name
    assert recipe.training.remove_unused_columns is False


def test_overrides(recipe_file):
    path = recipe_file(
        "vision_config: {hidden_size: 32, image_size: 64}\nlearning_rate: 1e-3\nseed: 1\nuse_cpu: true\n"
    )
    overrides = [
        "--seed",
        "7",
        "--vision_config.hidden_size",
        "48",
        "--text_config.pooling=mean",
        "--caption_column",
        "a",
        "b",
    ]
    recipe = parse_recipe(path, overrides)
    assert recipe.model.vision_config == {"hidden_size": 48, "image_size": 64}
    assert recipe.model.text_config == {"pooling": "mean"}
    assert recipe.training.learning_rate == 1e-3  # YAML reads 1e-3 as text
    assert recipe.training.seed == 7
    assert recipe.data.caption_column == ["a", "b"]
    assert recipe.given["seed"] == 7
    assert recipe.given["caption_column"] == ["a", "b"]
    assert "warmup_steps" not in recipe.given


def test_a_boolean_can_be_turned_off(recipe_file):
    recipe = parse_recipe(recipe_file("use_cpu: true"), ["--no_dataloader_drop_last", "--shuffle_captions", "true"])
    assert recipe.training.dataloader_drop_last is False
    assert recipe.data.shuffle_captions is True
    assert recipe.given["dataloader_drop_last"] is False


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        ("learning_rat: 1", [], ["learning_rat", "'learning_rate'", "mine.yaml"]),
        ("use_cpu: true", ["--learning_rat", "1"], ["learning_rat", "'learning_rate'", "command line"]),
        ("use_cpu: true", ["--shufle-captions"], ["'shuffle_captions'"]),
        ("use_cpu: true", ["--vision_confg.hidden_size", "3"], ["'vision_config'"]),
        ("use_cpu: true", ["--vision_config.hidden_size"], ["needs a value"]),
        ("use_cpu: true", ["stray"], ["stray"]),
        ("max_steps: 1.5", [], ["max_steps", "1.5"]),
        ("learning_rate: fast", [], ["learning_rate", "fast"]),
        ("vision_config: 3", [], ["vision_config", "mapping"]),
        ("vision_config: '{'", [], ["vision_config", "JSON"]),
        ("eval_fraction: 1.5", [], ["eval_fraction"]),
        ("max_seconds: -1", [], ["max_seconds"]),
        ("model_name_or_path: here\nvision_config: {hidden_size: 3}", [], ["model_name_or_path", "vision_config"]),
        ("- a list", [], ["mapping"]),
        ("a: [", [], ["not YAML"]),
    ],
)
def test_errors_name_the_field(recipe_file, text, overrides, words):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the words are checked below)
        parse_recipe(recipe_file(text), overrides)
    for word in words:
        assert word in str(caught.value)


def test_unknown_recipe_lists_the_bundled_ones():
    with pytest.raises(FileNotFoundError, match="emoji"):
        parse_recipe("emojy")


def test_help_shows_examples(capsys):
    main(["--help"])
    shown = capsys.readouterr().out
    assert "siglip-ext-train emoji --output_dir" in shown
    main(["emoji", "--help"])
    shown = capsys.readouterr().out
    for field in ("--learning_rate", "--caption_column", "--vision_config", "--max_seconds"):
        assert field in shown


def test_the_command_ends_with_one_clear_line(recipe_file):
    with pytest.raises(SystemExit, match="did you mean 'learning_rate'"):
        main([recipe_file("learning_rat: 1")])
