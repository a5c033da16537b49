"""A run does not end late for what was wrong before it, and loses nothing that was trained."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoConfig

from modeling_siglip_ext.training import SiglipExtTrainer
from modeling_siglip_ext.training.__main__ import main
from modeling_siglip_ext.training.run import train as train_module
from modeling_siglip_ext.training.run.prepare import prepare
from modeling_siglip_ext.training.run.recipe import parse_recipe


pytestmark = pytest.mark.long
RECIPE = """
vision_config: {image_size: 16, patch_size: 8, hidden_size: 16, intermediate_size: 32,
                num_hidden_layers: 1, num_attention_heads: 2}
text_config: {hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2,
              max_position_embeddings: 16}
vocab_size: 300
eval_fraction: 0.25
max_bad_fraction: 0.2
per_device_train_batch_size: 4
num_train_epochs: 1
eval_strategy: epoch
save_strategy: epoch
use_cpu: true
disable_tqdm: true
"""


@pytest.fixture
def images(rows, tmp_path) -> Path:
    """A folder of 16 images with captions."""
    folder = tmp_path / "images"
    folder.mkdir()
    for index, row in enumerate(rows):
        row["image"].save(folder / f"{index:02d}.png")
        (folder / f"{index:02d}.txt").write_text(row["caption"], encoding="utf-8")
    return folder


@pytest.fixture
def command(images, tmp_path):
    """The words of a run on that folder."""
    (tmp_path / "quick.yaml").write_text(RECIPE, encoding="utf-8")

    def words(*more: str, output: str = "out") -> list[str]:
        return [str(tmp_path / "quick.yaml"), "--dataset", str(images), "--output_dir", str(tmp_path / output), *more]

    return words


@pytest.fixture
def broken(images) -> set[str]:
    """Names of images that are broken from now on: cut, empty, something else."""
    (images / "03.png").write_bytes((images / "03.png").read_bytes()[:60])
    (images / "07.png").write_bytes(b"")
    (images / "11.png").write_text("not an image")
    return {"03.png", "07.png", "11.png"}


@pytest.mark.parametrize("cache", ["0", "2"])
def test_broken_images_are_left_out_or_refused_for_every_seed(command, broken, refused, caplog, cache):
    """Whether cached or not: the held-out ones from the start, and whatever the split there may be as many."""
    met = set()
    for seed in range(6):
        caplog.clear()
        recipe = parse_recipe(*_split(command("--seed", str(seed), "--cache_gib", cache)))
        run = prepare(recipe)
        held_out = run.trainer.eval_dataset
        assert len(held_out) == len(run.rows.held_out) == 4 - len(held_out.left_out)
        named = {name for name in broken if name in caplog.text}
        assert len(named) >= len(held_out.left_out)
        assert all(name.startswith("held-out example ") for name, _ in held_out.left_out)
        met |= named if held_out.left_out else set()
    assert met
    if cache == "2":
        for seed in range(3):
            refused(command("--seed", str(seed), "--max_bad_fraction", "0.15"), "3 of 16 samples are bad")


def _split(words: list[str]) -> tuple[str, list[str]]:
    return words[0], words[1:]


def test_a_run_does_not_write_among_its_data(command, images, rows, refused, monkeypatch):
    for folder in (images, images / "out"):
        refused(command("--output_dir", str(folder)), "lies in the dataset .*: choose a folder beside it")
    monkeypatch.chdir(images)
    refused(command("--dataset", ".", "--output_dir", "out"), "lies in the dataset '.*'")
    assert not (images / "out").exists()
    (images / "metadata.csv").write_text(
        "file_name,caption\n" + "".join(f"{n:02d}.png,a red {n}\n" for n in range(16))
    )
    assert main(command("--dataset", ".", "--output_dir", "out", "--max_steps", "1", "--save_strategy", "no")) == 0
    rows.save_to_disk("saved")
    words = command("--dataset", "saved", "--output_dir", "saved/out")
    assert prepare(parse_recipe(words[0], words[1:])).folder.name == "out"


@pytest.mark.parametrize("more", [(), ("--eval_strategy", "no", "--save_strategy", "no")])
def test_training_ends_with_a_saved_model(command, broken, tmp_path, more):
    """With the pixels uncached, evaluating after each epoch or only at the end."""
    assert main(command("--cache_gib", "0", *more)) == 0
    held_out = json.loads((tmp_path / "out" / "held_out" / "captions.json").read_text())
    assert held_out["images"]
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_nothing_is_left_to_hold_out(command, images, refused):
    for path in images.glob("*.png"):
        path.write_bytes(b"")
    refused(command("--cache_gib", "0", "--max_bad_fraction", "1"), "none of the 4 held-out rows can be used")


def test_too_few_rows(command, images, refused):
    refused(command("--per_device_train_batch_size", "13"), "12 samples, fewer than one batch of 13")
    for path in sorted(images.iterdir())[2:]:
        path.unlink()
    refused(command(), r"eval_fraction=0\.25 of 1 rows leaves none to train on")


@pytest.mark.parametrize("failing", ["judge", "write_run_report"])
def test_the_model_is_saved_before_what_can_fail(command, tmp_path, monkeypatch, refused, failing):
    def fail(*args, **kwargs):
        raise OSError("no such picture")

    monkeypatch.setattr(train_module, failing, fail)
    refused(command("--save_strategy", "no"), r"no such picture \(the trained model is complete in .*out\)")
    there = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "trainer_state.json"} <= there
    assert not list((tmp_path / "out").glob("*.bin"))


def test_a_fresh_run_needs_a_folder_of_its_own(command, tmp_path, refused):
    assert main(command()) == 0
    refused(command(), "holds checkpoint-3 of an earlier run: continue that with --resume_from_checkpoint true")
    resume = ("--num_train_epochs", "2", "--resume_from_checkpoint", "true")
    refused(command(*resume, "--learning_rate", "1"), "learning_rate is .* there and 1.0 here")
    refused(command(*resume, "--eval_fraction", "0.5"), "rows is 12 there and 8 here")
    assert main(command(*resume)) == 0
    assert json.loads((tmp_path / "out" / "trainer_state.json").read_text())["global_step"] == 6
    for checkpoint in (tmp_path / "out").glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    assert main(command("--save_strategy", "no", "--eval_fraction", "0", "--eval_strategy", "no")) == 0
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert "model.safetensors" in left
    assert not {"held_out", "retrieval.png"} & left, "they were of the other run"


def test_errors_that_come_before_anything_is_loaded(command, images, tmp_path, refused, monkeypatch):
    def unexpected(*args, **kwargs):
        raise AssertionError("data were loaded")

    read = AutoConfig.from_pretrained

    def no_such_model(name, **kwargs):
        if Path(name).is_dir():
            return read(name, **kwargs)
        raise OSError("the Hub knows no such model")

    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_text("no JSON")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    monkeypatch.setattr("modeling_siglip_ext.training.run.prepare.load_rows", unexpected)
    monkeypatch.setattr("modeling_siglip_ext.training.run.sources.AutoConfig.from_pretrained", no_such_model)
    (tmp_path / "file").write_text("x")
    scratch = ("--model_name_or_path",)  # which makes the towers of the file void
    for more, reason in (
        (("--output_dir", str(tmp_path / "file")), "is a file; choose another folder"),
        (("--resume_from_checkpoint", "true"), "there is no checkpoint in output_dir"),
        (("--resume_from_checkpoint", "nosuch"), "'nosuch' is not the folder of a checkpoint"),
        ((*scratch, str(tmp_path / "imags")), "there is no such folder; did you mean '.*images'"),
        ((*scratch, str(tmp_path / "file")), "is a file: give the folder of a saved model"),
        ((*scratch, str(images)), "the folder has no config.json"),
        ((*scratch, str(damaged)), "its configuration cannot be read"),
        ((*scratch, "nosuch"), "model_name_or_path='nosuch' is no folder, and no model of the Hub"),
        (("--tokenizer_name_or_path", str(tmp_path / "none")), "tokenizer_name_or_path=.*there is no such folder"),
        ((*scratch, ""), "--model_name_or_path is empty: give a value, or none to unset it"),
        (("--dataset=",), "--dataset is empty"),
        ((*scratch, str(adapter)), "is an adapter of PEFT: merge it into its model"),
        (("--report_to", "wandbb"), "unknown tracker 'wandbb'"),
        (("--remove_unused_columns", "true"), "remove_unused_columns=True has no meaning here"),
        (("--per_device_train_batch_size", "0"), "per_device_train_batch_size must be at least 1"),
        (("--learning_rate", "nan"), "learning_rate must be"),
        (("--no_dataloader_drop_last",), "dataloader_drop_last=False"),
        (("--do_predict", "true"), "do_predict has no effect"),
        (("--hub_model_id", "me/x"), "hub_model_id has no effect without push_to_hub"),
        (("--run_name", "first"), "run_name has no effect without report_to"),
        (("--cache_gib", "nan"), "cache_gib must be at least 0"),
        (("--shuffle_buffer", "0", "--streaming", "true"), "shuffle_buffer must be at least 1"),
        (("--vocab_size", "-1"), "vocab_size must be at least 1"),
        (("--logit_bias_init", "nan"), "logit_bias_init must be a number"),
        (("--max_seconds", "5", "--lr_scheduler_type", "polynomial"), "cannot be combined with max_seconds"),
    ):
        refused(command(*more), reason)


def test_errors_that_come_before_a_model_is_built(command, refused, monkeypatch):
    def unexpected(*args, **kwargs):
        raise AssertionError("a model was built")

    monkeypatch.setattr("modeling_siglip_ext.training.run.prepare.build_model", unexpected)
    best = ("--load_best_model_at_end", "true", "--metric_for_best_model", "accuracy")
    refused(command(*best), r"metric_for_best_model='accuracy' is none .*: loss, image_to_text_recall@1")
    refused(command("--eval_fraction", "0"), "eval_strategy=epoch needs held-out rows")
    refused(command("--eval_fraction", "0", "--eval_strategy", "no", "--eval_on_start", "true"), "eval_on_start needs")
    refused(command("--per_device_train_batch_size", "13"), "fewer than one batch")


@pytest.mark.parametrize("words", [("--group_column", "none"), ("--group_column="), ("--group-column", "")])
def test_a_field_of_a_recipe_can_be_unset(tmp_path, words):
    words = [words] if isinstance(words, str) else list(words)
    assert parse_recipe("emoji", ["--use_cpu"]).data.group_column == "base"
    recipe = parse_recipe("emoji", ["--use_cpu", *words, "--max_seconds", "none", "--report_to", "none"])
    assert recipe.data.group_column is None
    assert recipe.training.max_seconds is None
    assert recipe.training.report_to == []
    assert recipe.given["group_column"] is None
    (tmp_path / "mine.yaml").write_text("group_column: none\nmini_batch_size: none\nuse_cpu: true\n")
    assert parse_recipe(str(tmp_path / "mine.yaml")).data.group_column is None


def test_held_out_images_that_vanish_while_training(command, images, tmp_path, refused, monkeypatch, capsys):
    """The first evaluation fails, in one line, and what was trained can be resumed once they are back."""
    evaluate = SiglipExtTrainer.evaluate

    def without_images(*args, **kwargs):
        images.rename(tmp_path / "away")
        return evaluate(*args, **kwargs)

    words = command("--cache_gib", "0", "--save_strategy", "no")
    monkeypatch.setattr(SiglipExtTrainer, "evaluate", without_images)
    refused(words, r"held-out example \d+: '.*\.png' is neither a file")
    monkeypatch.setattr(SiglipExtTrainer, "evaluate", evaluate)
    (tmp_path / "away").rename(images)
    assert main([*words, "--resume_from_checkpoint", "true"]) == 0
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert state["global_step"] == 3


def test_too_many_bad_images_while_training(command, images, tmp_path, refused):
    """What was trained until then is kept."""
    (images / "15.png").write_bytes(b"")  # met once an epoch, and five times is too often
    more = ["--eval_fraction", "0", "--eval_strategy", "no", "--save_strategy", "no", "--cache_gib", "0"]
    more += ["--max_steps", "24"]
    refused(command(*more, "--max_bad_fraction", "0.004"), r"5 of \d+ samples are bad")
    kept = [path.name for path in (tmp_path / "out").glob("checkpoint-*")]
    assert kept in [[f"checkpoint-{step}"] for step in (16, 17, 18, 19)]
    assert main(command(*more, "--max_bad_fraction", "1", "--resume_from_checkpoint", "true")) == 0
    assert json.loads((tmp_path / "out" / "trainer_state.json").read_text())["global_step"] == 24


def test_a_loss_that_is_not_finite_is_one_line(command, refused):
    refused(command("--learning_rate", "1e30", "--logging_steps", "1"), "is not finite")
