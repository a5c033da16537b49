"""A recipe from end to end, as the command line runs it: train, write the folder, load it with plain transformers."""

import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoProcessor,
    BertConfig,
    BertModel,
    BertTokenizer,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from modeling_siglip_ext import SiglipExtModel, SiglipExtNaflexImageProcessor, SiglipExtProcessor
from modeling_siglip_ext.training import SiglipExtTrainer
from modeling_siglip_ext.training.__main__ import main
from modeling_siglip_ext.training.run import report
from modeling_siglip_ext.training.run.recipe import parse_recipe
from support.models import TINY


DEMO = Path(__file__).parents[3] / "training" / "run" / "demo.py"
QUICK = """
image_column: image
caption_column: [captions]
eval_fraction: 0.25
vision_config: {image_size: 16, patch_size: 4, hidden_size: 32, intermediate_size: 64,
                num_hidden_layers: 1, num_attention_heads: 2}
text_config: {hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 2,
              max_position_embeddings: 64}
vocab_size: 300
license: apache-2.0
per_device_train_batch_size: 4
max_steps: 4
learning_rate: 1e-3
eval_strategy: steps
eval_steps: 2
save_strategy: "no"
logging_steps: 1
use_cpu: true
dataloader_pin_memory: false
"""


@pytest.fixture(scope="module")
def folder_of_images(rows, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    lines = []
    for index, row in enumerate(rows):
        row["image"].save(folder / f"{index:02d}.png")
        lines.append(json.dumps({"file_name": f"{index:02d}.png", "captions": row["captions"]}))
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def trained(folder_of_images, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    recipe = folder / "quick.yaml"
    recipe.write_text(QUICK, encoding="utf-8")
    assert main([str(recipe), "--dataset", str(folder_of_images), "--output_dir", str(folder / "out")]) == 0
    return folder / "out"


def test_the_folder_is_complete(trained):
    for_sentence_transformers = {"modules.json", "sentence_bert_config.json"}
    files = {path.name for path in trained.iterdir()} - for_sentence_transformers
    assert files == {
        "README.md",
        "config.json",
        "held_out",
        "loss_curve.png",
        "model.safetensors",
        "processor_config.json",
        "retrieval.png",
        "tokenizer.json",
        "tokenizer_config.json",
        "trainer_state.json",
    }
    assert json.loads((trained / "config.json").read_text())["model_type"] == "siglip"
    for picture in ("loss_curve.png", "retrieval.png"):
        with Image.open(trained / picture) as image:
            assert min(image.size) > 200
    state = json.loads((trained / "trainer_state.json").read_text())
    assert state["global_step"] == 4


def test_samples_take_the_place_of_our_own_and_of_nothing_else(tmp_path):
    images, folder = [Image.new("RGB", (8, 8))] * 3, tmp_path / "held_out"
    for captions in (["a", "b", "c"], ["d", "e", "f"]):
        report.write_samples(images, captions, folder)
        assert list(json.loads((folder / "captions.json").read_text())["images"].values()) == captions
    (folder / "captions.json").unlink()
    (folder / "mine.txt").write_text("x")
    report.write_samples(images, ["g", "h", "i"], folder)
    assert (folder / "mine.txt").exists()
    assert not (folder / "captions.json").exists()


def test_the_card(trained, folder_of_images):
    card = ModelCard.load(trained / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.pipeline_tag == "zero-shot-image-classification"
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert set(results) == {f"{way}_recall@{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5)}
    assert 0 <= results["image_to_text_recall@1"] <= results["image_to_text_recall@5"] <= 1
    assert str(folder_of_images.parent) not in card.content, "a card names no path of this machine"
    assert "learning_rate: 0.001" in card.content


def test_the_card_shows_choices_by_their_names():
    recipe = parse_recipe("emoji", ["--debug", "underflow_overflow", "--lr_scheduler_type", "linear", "--use_cpu"])
    shown = yaml.safe_load(report.text_of_recipe(recipe))
    assert (shown["debug"], shown["lr_scheduler_type"]) == (["underflow_overflow"], "linear")


@pytest.mark.parametrize(("strategy", "steps"), [("steps", [2, 3]), ("no", [3])])
def test_the_curve_ends_with_the_figures_of_the_card(strategy, steps, folder_of_images, tmp_path, monkeypatch):
    """Whether or not the Trainer evaluates the last step, which it does not where the clock ends a run."""
    drawn = []
    draw = report.loss_curve
    monkeypatch.setattr(report, "loss_curve", lambda *args, **kwargs: drawn.append(args[1]) or draw(*args, **kwargs))
    recipe = tmp_path / "quick.yaml"
    recipe.write_text(QUICK.replace("max_steps: 4", "max_steps: 3"), encoding="utf-8")
    words = [
        str(recipe),
        f"--dataset={folder_of_images}",
        f"--output_dir={tmp_path / 'out'}",
        f"--eval_strategy={strategy}",
    ]
    assert main(words) == 0
    points = [entry for entry in drawn[0] if "eval_loss" in entry]
    assert [entry["step"] for entry in points] == steps
    measured = ModelCard.load(tmp_path / "out" / "README.md").data.eval_results
    last = {result.metric_type: result.metric_value for result in measured}["image_to_text_recall@5"]
    assert points[-1]["eval_image_to_text_recall@5"] == pytest.approx(last, abs=1e-4)


@pytest.fixture(scope="module")
def said_without_this_package(trained) -> str:
    """By the snippets of the card and then by the demo, in one process, which imports transformers once."""
    snippets = re.findall(r"```python\n(.*?)```", (trained / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(snippets) == 3
    demo = f"import runpy, sys\nsys.argv = [{str(DEMO)!r}, '.']\nrunpy.run_path({str(DEMO)!r}, run_name='__main__')"
    finished = subprocess.run(
        [sys.executable, "-I", "-c", "\n".join([*snippets, demo])],
        cwd=trained,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    return finished.stdout


def test_the_snippets_of_the_card_run(said_without_this_package):
    assert "torch.Size([1, 32])" in said_without_this_package


def test_the_demo_loads_it_without_this_package(said_without_this_package):
    assert "SiglipModel" in said_without_this_package
    assert "retrieval.png" in said_without_this_package


def test_fine_tuning_what_was_trained(trained, folder_of_images, tmp_path):
    """Stock form in, stock form out, with the loss head and the tokenizer of the checkpoint."""
    overrides = {
        "--model_name_or_path": str(trained),
        "--dataset": str(folder_of_images),
        "--caption_column": "captions",
        "--output_dir": str(tmp_path / "tuned"),
        "--per_device_train_batch_size": "4",
        "--max_steps": "2",
        "--learning_rate": "1e-9",
        "--save_strategy": "no",
    }
    assert main(["finetune", "--use_cpu", *[word for pair in overrides.items() for word in pair]]) == 0
    before, after = AutoModel.from_pretrained(trained), AutoModel.from_pretrained(tmp_path / "tuned")
    for (name, old), (_, new) in zip(before.named_parameters(), after.named_parameters()):
        torch.testing.assert_close(new, old, atol=1e-6, rtol=0, msg=name)
    texts = ["a red square", "Blue Bar"]
    old, new = (
        AutoProcessor.from_pretrained(path)(text=texts, padding="max_length", max_length=64)["input_ids"]
        for path in (trained, tmp_path / "tuned")
    )
    assert old == new


def test_errors_come_before_training(folder_of_images, tmp_path, refused):
    recipe = tmp_path / "quick.yaml"
    recipe.write_text(QUICK, encoding="utf-8")
    start = [str(recipe), "--output_dir", str(tmp_path / "out"), "--dataset"]
    refused([*start, str(folder_of_images), "--caption_column", "text"], r"caption_column='text'.*'captions'")
    refused([*start, str(folder_of_images), "--per_device_train_batch_size", "64"], "per_device_train_batch_size")
    (tmp_path / "empty").mkdir()
    refused([*start, str(tmp_path / "empty")], "holds no image")
    refused(["nothing.yaml"], "neither a YAML file nor a bundled recipe")
    refused([*start, str(folder_of_images), "--resume_from_checkpoint", str(tmp_path / "none")], "none")


def test_a_crash_in_the_middle_of_training_is_no_bad_input(folder_of_images, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError("a fault of this package")

    recipe = tmp_path / "quick.yaml"
    recipe.write_text(QUICK, encoding="utf-8")
    monkeypatch.setattr(SiglipExtTrainer, "training_step", fail)
    with pytest.raises(ValueError, match="a fault of this package"):
        main([str(recipe), "--dataset", str(folder_of_images), "--output_dir", str(tmp_path / "out")])


def tiny_lit(folder: Path, rows) -> Path:
    """A ViT of transformers as image tower and a BERT as text tower, with processor and tokenizer."""
    width = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ViTModel(ViTConfig(**width, image_size=16, patch_size=8), add_pooling_layer=False).save_pretrained(folder / "vit")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder / "vit")
    words = sorted({word for texts in rows["captions"] for text in texts for word in text.split()})
    vocabulary = {word: n for n, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])}
    BertTokenizer(vocab=vocabulary).save_pretrained(folder / "bert")
    text = BertConfig(**width, vocab_size=len(vocabulary), max_position_embeddings=32)
    BertModel(text, add_pooling_layer=False).save_pretrained(folder / "bert")
    return folder


def test_siglit_from_embeddings(folder_of_images, rows, tmp_path, refused, monkeypatch):
    """Precompute, train the text tower, and get a whole model with the image tower as it was."""
    torch.manual_seed(0)
    towers = tiny_lit(tmp_path, rows)
    common = ["--dataset", str(folder_of_images), "--caption_column", "captions"]
    vision = ["--vision_name_or_path", str(towers / "vit")]
    assert (
        main(["precompute", *vision, *common, "--output_dir", str(tmp_path / "embeddings"), "--part_rows", "5"]) == 0
    )
    batch = ["--per_device_train_batch_size", "4", "--mini_batch_size", "2", "--use_cpu", "--eval_fraction", "0.25"]
    run = [*batch, "--max_steps", "3", "--text_name_or_path", str(towers / "bert"), "--text_length", "8"]
    embeddings = ["--image_embeddings", str(tmp_path / "embeddings")]

    def gone(*args, **kwargs):
        raise OSError("the tower is gone")

    lost = ["siglit", *vision, *common, *run, *embeddings, "--output_dir", str(tmp_path / "lost")]
    with monkeypatch.context() as patched:
        patched.setattr("modeling_siglip_ext.training.run.train.attach_image_tower", gone)
        refused(lost, r"the tower is gone .*what was trained is in .*lost/checkpoint-3, to be resumed")
    assert main([*lost, "--resume_from_checkpoint", "true"]) == 0
    assert main(["siglit", *vision, *common, *run, *embeddings, "--output_dir", str(tmp_path / "out")]) == 0
    texts = [load_file(tmp_path / name / "model.safetensors") for name in ("lost", "out")]
    assert all(torch.equal(texts[0][key], texts[1][key]) for key in texts[1])

    model = SiglipExtModel.from_pretrained(tmp_path / "out").eval()
    tower = ViTModel.from_pretrained(towers / "vit", add_pooling_layer=False)
    for name, parameter in tower.named_parameters():
        assert torch.equal(model.vision_model.get_parameter(name), parameter), name
    before = BertModel.from_pretrained(towers / "bert", add_pooling_layer=False)
    changed = [not torch.equal(p, model.text_model.get_parameter(n)) for n, p in before.named_parameters()]
    assert all(changed)
    assert "vit" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_tar_shards(folder_of_images, rows, trained, tmp_path, refused):
    """The recipe reads shards as it reads a folder, and starts from a checkpoint, as there are no captions to see."""
    with tarfile.open(tmp_path / "train-0.tar", "w") as archive:
        for index, row in enumerate(rows):
            archive.add(folder_of_images / f"{index:02d}.png", f"{index:02d}.png")
            (tmp_path / "caption.txt").write_text("\n".join(row["captions"]), encoding="utf-8")
            archive.add(tmp_path / "caption.txt", f"{index:02d}.txt")
    start = ["finetune", "--use_cpu", "--dataset", f"{tmp_path}/train-{{0..0}}.tar", "--save_strategy", "no"]
    start += ["--per_device_train_batch_size", "4", "--output_dir", str(tmp_path / "out"), "--eval_strategy", "no"]
    refused([*start, "--model_name_or_path", str(trained)], "set max_steps or max_examples")
    assert main([*start, "--model_name_or_path", str(trained), "--max_examples", "12", "--shuffle_buffer", "4"]) == 0
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert state["global_step"] == 3


def test_domain_recipe(folder_of_images, trained, tmp_path):
    overrides = {
        "--model_name_or_path": str(trained),
        "--dataset": str(folder_of_images),
        "--caption_column": "captions",
        "--output_dir": str(tmp_path / "tuned"),
        "--per_device_train_batch_size": "8",
        "--mini_batch_size": "4",
        "--num_train_epochs": "2",
    }
    assert main(["domain", "--use_cpu", *[word for pair in overrides.items() for word in pair]]) == 0
    history = json.loads((tmp_path / "tuned" / "trainer_state.json").read_text())["log_history"]
    assert len([entry for entry in history if "eval_loss" in entry]) == 2
    assert type(AutoModel.from_pretrained(tmp_path / "tuned")).__name__ == "SiglipModel"


def test_contradictory_recipes(folder_of_images, trained, tmp_path, refused):
    start = ["siglit", "--dataset", str(folder_of_images), "--output_dir", str(tmp_path / "out")]
    refused([*start, "--vision_lr_factor", "0.1"], "unset vision_lr_factor")
    refused([*start, "--model_name_or_path", str(trained)], "leave out model_name_or_path")
    refused(["precompute", "--dataset", str(folder_of_images)], "vision_name_or_path")


def test_siglit_from_embeddings_of_a_naflex_tower(folder_of_images, our_model, processor, tmp_path, refused):
    """The processor that is saved lets the tower see what it saw of the training images."""
    our_model.save_pretrained(tmp_path / "fixed")
    SiglipExtModel.from_pretrained(tmp_path / "fixed", naflex=True).save_pretrained(tmp_path / "naflex")
    images = SiglipExtNaflexImageProcessor(patch_size=4, max_num_patches=16)
    SiglipExtProcessor(images, processor.tokenizer).save_pretrained(str(tmp_path / "naflex"))
    common = ["--dataset", str(folder_of_images), "--caption_column", "captions"]
    vision, kept = ["--vision_name_or_path", str(tmp_path / "naflex")], ["--output_dir", str(tmp_path / "embeddings")]
    sizes = ["--max_num_patches", "25", "--no_upscale", "--batch_tokens", "60"]
    assert main(["precompute", *vision, *common, *kept, *sizes]) == 0
    refused(["precompute", *vision, *common, *kept, "--max_num_patches", "0"], "max_num_patches=0 must be a whole")
    run = ["--per_device_train_batch_size", "4", "--use_cpu", "--eval_fraction", "0", "--max_steps", "1"]
    run += ["--vocab_size", "300", "--mini_batch_size", "4"]
    text = ["--text_name_or_path", "none", "--text_config", json.dumps({**TINY, "max_position_embeddings": 8})]
    embeddings = ["--image_embeddings", str(tmp_path / "embeddings"), "--eval_strategy", "no"]
    command = ["siglit", *vision, *common, *run, *text, *embeddings, "--output_dir", str(tmp_path / "out")]
    assert main(command) == 0
    assert AutoProcessor.from_pretrained(tmp_path / "out").image_processor.max_num_patches == 25
