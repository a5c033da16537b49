"""Recipes: reading, overriding, and errors that name the field."""

from importlib.metadata import version

import pytest

from modeling_siglip_ext.training.run.recipe import bundled_recipes, parse_recipe


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
    assert recipe.training.learning_rate == 1e-3
    assert recipe.training.seed == 7
    assert recipe.data.caption_column == ["a", "b"]
    assert recipe.given["seed"] == 7
    assert recipe.given["caption_column"] == ["a", "b"]
    assert "warmup_steps" not in recipe.given


def test_powers_of_ten_are_numbers_wherever_they_stand(recipe_file):
    decay = "lr_scheduler_type: polynomial\nlr_scheduler_kwargs: {lr_end: 1.e-7}\n"
    path = recipe_file("objectives: {captioning: 1e-1, masking: 2E+0}\n" + decay)
    recipe = parse_recipe(path, ["--objectives.masking", "1e-2", "--self_distillation.momentum=.5e0"])
    assert recipe.objectives.objectives == {"captioning": 0.1, "masking": 0.01}
    assert recipe.objectives.self_distillation == {"momentum": 0.5}
    assert recipe.training.lr_scheduler_kwargs == {"lr_end": 1e-7}


def test_what_is_said_last_of_a_field_holds(recipe_file):
    path, cpu = recipe_file("model_name_or_path: a"), ["--use_cpu", "true"]
    for words, name in (
        (["--model_name_or_path", "b", "--model_name_or_path", "none"], None),
        (["--model_name_or_path=b", *cpu, "--model_name_or_path=none", "--seed", "1"], None),
        (["--model_name_or_path", "none", "--model_name_or_path", "b"], "b"),
    ):
        assert parse_recipe(path, [*words, *cpu]).model.model_name_or_path == name


def test_what_a_recipe_sets_inside_can_be_unset():
    """For embeddings in place of the reference model that a recipe names; a tower's `none` is a value."""
    words = ["--use_cpu", "true", "--dataset", "rows.parquet", "--curation.reference_name_or_path", "none"]
    recipe = parse_recipe("siglip2_b16_curated", [*words, "--curation.reference_embeddings", "mine"])
    assert recipe.objectives.curation == {
        "ratio": 0.5, "chunks": 16, "score": "learnability", "reference_embeddings": "mine"
    }  # fmt: skip
    recipe = parse_recipe("siglip2_b16", [*words[:2], "--objectives.masking=none", "--vision_config.pooling", "none"])
    assert recipe.objectives.weights() == {"captioning": 1.0, "distillation": 0.25}
    assert recipe.model.vision_config["pooling"] == "none"


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
        ("use_cpu: true", ["--vision-confg.hidden-size", "3"], ["'vision_config'"]),
        ("use_cpu: true", ["--vision_config.hidden_size"], ["needs a value"]),
        ("use_cpu: true", ["--vision_config.hidden_size", "--seed", "3"], ["hidden_size", "needs a value"]),
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
        ("seed: 1\nseed: 2", [], ["has 'seed' twice"]),
        ("vision_config: {patch_size: 8, patch_size: 4}", [], ["has 'patch_size' twice"]),
    ],
)
def test_errors_name_the_field(recipe_file, text, overrides, words):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the words are checked below)
        parse_recipe(recipe_file(text), overrides)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(("text", "words"), [("fsdp: {}", []), ("seed: 1", ["--fsdp", "{}"])])
def test_fsdp_is_a_truth_value(text, words, recipe_file):
    """Its field is one of text, for options of old: "true" was taken for one of them."""

    def read(value: str):
        return parse_recipe(
            recipe_file(f"use_cpu: true\n{text.format(value)}"), [word.format(value) for word in words]
        )

    with pytest.raises(ValueError, match="fsdp needs several processes"):
        read("true")
    assert not read("false").training.fsdp


def test_unknown_recipe_lists_the_bundled_ones():
    with pytest.raises(FileNotFoundError, match=r"finetune.*did you mean 'emoji'"):
        parse_recipe("emojy")


def test_dashes_are_as_good_as_underscores(recipe_file):
    words = ["--learning-rate=2e-3", "--vision-config.hidden-size", "48", "--no-dataloader-drop-last"]
    recipe = parse_recipe(recipe_file("use_cpu: true"), words)
    assert recipe.training.learning_rate == 2e-3
    assert recipe.training.dataloader_drop_last is False
    assert recipe.model.vision_config == {"hidden_size": 48}
    assert recipe.given.keys() == {"use_cpu", "learning_rate", "vision_config", "dataloader_drop_last"}


def test_help_shows_examples(capsys, status):
    assert status(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "siglip-ext-train emoji --output_dir" in shown
    assert all(f"\n    {name}" in shown for name in (*bundled_recipes(), "precompute", "study"))
    assert status(["emoji", "--help"]) == 0
    shown = capsys.readouterr().out
    for field in ("--learning_rate", "--caption_column", "--vision_config", "--max_seconds", "--smoke"):
        assert field in shown


def test_version(capsys, status):
    assert status(["--version"]) == 0
    assert capsys.readouterr().out == f"siglip-ext-train {version('siglip-ext')}\n"


def test_the_command_ends_with_one_clear_line(recipe_file, refused):
    refused([recipe_file("learning_rat: 1")], "did you mean 'learning_rate'")
    refused(["emoji", "--learning-rat", "1"], "did you mean 'learning_rate'")
    refused(["emojy", "--output_dir", "out"], "did you mean 'emoji'")
    refused(["precomputes"], "did you mean 'precompute'")
    refused(["emojy.yaml"], "neither a YAML file nor a bundled recipe")
    refused([], "COMMAND")
