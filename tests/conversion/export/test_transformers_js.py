"""The layout of transformers.js, and what the real package in node makes of it: tokens, pixels, vectors, scores."""

import json
import random
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoModel, AutoProcessor, AutoTokenizer

from modeling_siglip_ext import SiglipExtConfig, train_tokenizer
from modeling_siglip_ext.conversion.errors import CheckpointError
from modeling_siglip_ext.conversion.export.companions import write_companions
from modeling_siglip_ext.conversion.export.sentencepiece_json import tokenizer_json
from modeling_siglip_ext.conversion.export.transformers_js import arrange, check_layout, write_tokenizer
from modeling_siglip_ext.training.data.emoji.loader import LANGUAGES, load_split
from siglip_ext_runtime import ExportedModel
from support.exports import save_model
from support.models import TINY_NAFLEX, TINY_TEXT, TINY_VISION, make_config
from support.node import ask_node


EDGES = [
    "",
    "!",
    " ",
    "two  dogs\t",
    "ΟΔΥΣΣΕΥΣ ΣΑΣ-ΣΟΦΟΣ",
    "İstanbul IĞDIR",
    "ﬁ ① ㍿",
    "\xa0x\x85y",
    "! hello",
    "▁▁ x",
    "ſ ẞ ß",
]


@pytest.fixture(scope="module")
def texts():
    """More than 1,000 names in 34 languages, some of them in capitals, with punctuation or odd white space."""
    rows = load_split("test", "all")
    chosen = random.Random(0).sample([text for language in LANGUAGES for text in rows[language] if text], 1000)
    change = [
        str,
        str.upper,
        str.title,
        "  {} ".format,
        "“{}”, (a-b_c)!".format,
        lambda text: text.replace(" ", "\u3000"),
    ]
    return [change[place % 6](text) for place, text in enumerate(chosen)] + EDGES


@pytest.fixture(scope="module")
def sentencepiece_folder(tmp_path_factory):
    """A tokenizer of the first SigLIP with 4,000 pieces of 34 languages."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="needs the extra sentencepiece")
    from transformers import SiglipTokenizer

    folder = tmp_path_factory.mktemp("sentencepiece")
    rows = load_split("train", "all")
    lines = [text.lower() for language in LANGUAGES for text in rows[language][::4] if text]
    settings = {"pad_id": -1, "bos_id": -1, "eos_id": 1, "unk_id": 2, "control_symbols": ["<first>"]}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(folder / "spiece"), vocab_size=4000, minloglevel=2, **settings
    )
    SiglipTokenizer(vocab_file=str(folder / "spiece.model"), model_max_length=64).save_pretrained(folder)
    tokenizer_json(folder / "spiece.model").save(str(folder / "tokenizer.json"))
    return folder


def test_a_tokenizer_json_says_what_the_slow_tokenizer_does(sentencepiece_folder, texts):
    slow, fast = (
        AutoTokenizer.from_pretrained(sentencepiece_folder),
        tokenizer_json(sentencepiece_folder / "spiece.model"),
    )
    assert not slow.is_fast
    different = [text for text in texts if slow(text)["input_ids"] != fast.encode(text).ids]
    assert different == []
    assert len({token for text in texts for token in fast.encode(text).ids}) > 1500


def test_tokens_of_sentencepiece_in_node(sentencepiece_folder, texts):
    slow = AutoTokenizer.from_pretrained(sentencepiece_folder)
    found = ask_node("tokens", folder=str(sentencepiece_folder), texts=texts)
    different = [text for text, ids in zip(texts, found) if slow(text)["input_ids"] != ids]
    assert different == []


def test_tokens_of_a_trained_tokenizer_in_node(tmp_path, texts):
    tokenizer = train_tokenizer(texts, vocab_size=3000, max_length=64)
    tokenizer.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    found = ask_node("tokens", folder=str(tmp_path), texts=texts)
    expected = [tokenizer(text, verbose=False)["input_ids"] for text in texts]
    assert [text for text, ids, wanted in zip(texts, found, expected) if ids != wanted] == []
    assert [again(text, verbose=False)["input_ids"] for text in texts] == expected


def test_the_layout(tmp_path):
    save_model(tmp_path / "model", "fixed")
    folder = tmp_path / "model"
    (folder / "vision_model.onnx").write_bytes(b"tower")
    (folder / "preprocessor_config.json").write_text('{"resample": 3, "do_resize": true}')
    config = SiglipExtConfig.from_pretrained(folder)
    moved = arrange(folder, {"vision_model": "vision_model.onnx"}, config, "int8")
    assert moved == {"vision_model": "onnx/vision_model_quantized.onnx"}
    assert (folder / moved["vision_model"]).read_bytes() == b"tower"
    assert not (folder / "vision_model.onnx").exists()
    assert json.loads((folder / "preprocessor_config.json").read_text()) == {"resample": 1, "do_resize": True}
    assert json.loads((folder / "processor_config.json").read_text())["image_processor"]["resample"] == 3
    assert json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert json.loads((folder / "config.json").read_text())["model_type"] == "siglip"


def test_a_model_of_ours_is_shown_as_siglip(tmp_path):
    config = make_config(vision={"pooling": "mean"})
    config.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "siglip_ext"
    arrange(tmp_path, {}, config, "fp32")
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "siglip"


def test_python_sees_the_pixels_of_the_model_also_of_a_folder_as_it_was_released(tmp_path):
    """SigLIP's have no `processor_config.json`; where there are two files, transformers reads that one."""
    save_model(tmp_path / "model", "fixed")
    image = torch.randint(0, 255, (3, 90, 70), dtype=torch.uint8)
    wanted = AutoProcessor.from_pretrained(tmp_path / "model")(images=[image])["pixel_values"]
    settings = json.loads((tmp_path / "model" / "processor_config.json").read_text())["image_processor"]
    for name, files in {
        "released": {"preprocessor_config.json": {**settings, "processor_class": "SiglipProcessor"}},
        "both": {
            "preprocessor_config.json": {**settings, "resample": 0},
            "processor_config.json": {"image_processor": settings, "processor_class": "SiglipProcessor"},
        },
    }.items():
        folder, out = tmp_path / name, tmp_path / f"{name}-js"
        shutil.copytree(tmp_path / "model", folder)
        (folder / "processor_config.json").unlink()
        for file, content in files.items():
            (folder / file).write_text(json.dumps(content))
        out.mkdir()
        write_companions(folder, out)
        assert json.loads((out / "preprocessor_config.json").read_text())["resample"] == 3
        arrange(out, {}, SiglipExtConfig.from_pretrained(folder), "fp32")
        assert json.loads((out / "preprocessor_config.json").read_text())["resample"] == 1
        for load in (AutoProcessor, AutoImageProcessor):
            found = load.from_pretrained(out)(images=[image])["pixel_values"]
            np.testing.assert_array_equal(np.asarray(found), np.asarray(wanted))


def test_weights_beside_a_file_move_with_it(tmp_path):
    onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    make_config().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    weight = onnx.numpy_helper.from_array(np.arange(600, dtype=np.float32).reshape(20, 30), "w")
    entry = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [entry("x", 1, [1, 20])],
        [entry("y", 1, [1, 30])],
        [weight],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="model.onnx_data", size_threshold=0)
    moved = arrange(tmp_path, {"model": "model.onnx"}, make_config(), "fp16")
    assert sorted(path.name for path in (tmp_path / "onnx").iterdir()) == ["model_fp16.onnx", "model_fp16.onnx_data"]
    settings = json.loads((tmp_path / "config.json").read_text())["transformers.js_config"]
    assert settings == {"use_external_data_format": {"model_fp16.onnx": 1}}
    x = np.ones((1, 20), np.float32)
    found = onnxruntime.InferenceSession(tmp_path / moved["model"]).run(None, {"x": x})[0]
    assert np.array_equal(found, x @ np.arange(600, dtype=np.float32).reshape(20, 30))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SiglipExtConfig(text_config=TINY_TEXT, vision_config=TINY_NAFLEX), "cannot cut images into NaFlex's patches"),
        (make_config(loss_type="softmax"), "as sigmoids, and this one was trained with softmax"),
        (make_config().vision_config, "beside a text tower alone"),
        (SiglipExtConfig(text_config={"model_type": "bert"}, vision_config=TINY_VISION), "texts without a mask"),
    ],
    ids=["naflex", "softmax", "tower", "foreign"],
)
def test_what_transformers_js_cannot_do(config, message):
    with pytest.raises(CheckpointError, match=f"transformers.js .*{message}.*--layout plain"):
        check_layout(config)


@pytest.fixture(scope="module")
def in_layout(tmp_path_factory):
    """A model, and its export in both precisions that browsers ask for."""
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    from modeling_siglip_ext.conversion.export.export import ExportOptions, export_model

    base = tmp_path_factory.mktemp("layout")
    save_model(base / "model", "fixed")
    towers = ("vision_model", "text_model", "model")
    for precision in ("fp32", "int8"):
        options = ExportOptions(towers=towers, layout="transformers.js", precision=precision)
        export_model(base / "model", base / precision, options)
    return base


def pictures(count: int, width: int, height: int) -> list[Image.Image]:
    """Soft pictures: of noise no two ways of resizing make the same."""
    noise = np.random.default_rng(0).integers(0, 256, (count, 9, 7, 3), dtype=np.uint8)
    return [Image.fromarray(one).resize((width, height), Image.Resampling.BICUBIC) for one in noise]


def for_node(images: list[Image.Image]) -> list[dict]:
    return [{"data": list(image.tobytes()), "width": image.width, "height": image.height} for image in images]


@pytest.mark.slow
@torch.no_grad()
def test_vectors_and_scores_in_node(in_layout):
    model, processor = (
        AutoModel.from_pretrained(in_layout / "model").eval(),
        AutoProcessor.from_pretrained(in_layout / "model"),
    )
    texts, images = ["a photo of a red circle", "Blue Square!", "green triangle"], pictures(4, 32, 32)
    inputs = processor(text=texts, images=images, padding="max_length", truncation=True, return_tensors="pt")
    wanted = model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"])
    about = {"texts": texts, "images": for_node(images)}
    found = ask_node("vectors", folder=str(in_layout / "fp32"), dtype="fp32", **about)
    assert found["ids"] == inputs["input_ids"].tolist()
    assert np.array_equal(np.array(found["pixels"], np.float32), inputs["pixel_values"].numpy())
    for name, embeds in (("text", wanted.text_embeds), ("image", wanted.image_embeds)):
        assert (F.normalize(torch.tensor(found[name]), dim=-1) - embeds).abs().max() < 1e-6
    assert (torch.tensor(found["logits"]) - wanted.logits_per_image).abs().max() < 1e-4
    scores = {one["label"]: one["score"] for one in found["scores"]}
    expected = wanted.logits_per_image[0].sigmoid().tolist()
    assert [scores[text] for text in texts] == pytest.approx(expected, rel=1e-4, abs=1e-7)

    quantized = ask_node("vectors", folder=str(in_layout / "int8"), dtype="q8", **about)
    python = ExportedModel(in_layout / "int8").get_image_features(inputs["pixel_values"].numpy()).embeds
    assert np.abs(F.normalize(torch.tensor(quantized["image"]), dim=-1).numpy() - python).max() < 5e-3


@pytest.mark.slow
@torch.no_grad()
def test_its_own_resizing_is_near(in_layout):
    model, processor = (
        AutoModel.from_pretrained(in_layout / "model").eval(),
        AutoProcessor.from_pretrained(in_layout / "model"),
    )
    images = pictures(6, 230, 170)
    pixels = processor(images=images, return_tensors="pt")["pixel_values"]
    wanted = F.normalize(model.get_image_features(pixels).pooler_output, dim=-1)
    about = {"texts": ["a photo"], "images": for_node(images)}
    found = ask_node("vectors", folder=str(in_layout / "fp32"), dtype="fp32", **about)
    assert np.abs(np.array(found["pixels"]) - pixels.numpy()).max() < 0.1
    # of a tower of random weights; one that was trained passes over more
    assert (F.normalize(torch.tensor(found["image"]), dim=-1) * wanted).sum(dim=-1).min() > 0.999


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("int8", 5e-3)])
def test_vectors_on_web_assembly(in_layout, precision, tolerance):
    pixels = torch.randn(2, 3, 32, 32)
    files = ExportedModel(in_layout / precision)
    file = in_layout / precision / files.settings.files["vision_model"]
    found = ask_node("wasm", file=str(file), pixels=pixels.flatten().tolist(), shape=list(pixels.shape))
    wanted = files.get_image_features(pixels.numpy()).embeds
    assert np.abs(np.array(found, np.float32).reshape(wanted.shape) - wanted).max() < tolerance
