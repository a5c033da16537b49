"""`siglip-ext-eval caption` and `locate`: what they write and draw, and what they refuse."""

import json
from types import SimpleNamespace

import pytest
import torch

from modeling_siglip_ext import SiglipExtModel
from modeling_siglip_ext.captioning import (
    CaptionDecoder,
    CaptionDecoderConfig,
    Sampling,
    caption,
    load_decoder,
    locate_all,
    save_decoder,
)
from modeling_siglip_ext.evaluation.__main__ import main
from support.images import noise, read_image
from support.models import make_config, make_processor


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, a decoder for it and images."""
    folder = tmp_path_factory.mktemp("captioning")
    processor = make_processor(["a cat : 0 1 2 3 4 5 6 7 8 9", "a dog"], length=8)
    torch.manual_seed(0)
    model = SiglipExtModel(make_config(text={"vocab_size": len(processor.tokenizer)}))
    decoder = CaptionDecoder(CaptionDecoderConfig.for_towers(model.config, processor.tokenizer, max_length=30))
    torch.nn.init.normal_(decoder.output.weight)
    # no letters that fonts lack
    words = processor.tokenizer.batch_decode([[word] for word in range(len(processor.tokenizer))])
    torch.nn.init.zeros_(decoder.output.bias)
    for word, text in enumerate(words):
        if not (text.isascii() and text.isprintable()):
            decoder.output.bias.data[word] = -100
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    save_decoder(decoder, folder / "decoder")
    (folder / "images").mkdir()
    for number in range(3):
        noise(30, 40, number).save(folder / "images" / f"{number}.png")
    (folder / "broken.png").write_text("no image")
    return folder


@pytest.fixture
def parts(folder):
    processor = make_processor(["a cat : 0 1 2 3 4 5 6 7 8 9", "a dog"], length=8)
    return SiglipExtModel.from_pretrained(folder / "model"), load_decoder(folder / "decoder"), processor


def run(folder, command: str, *words: object) -> int:
    place = folder / "model", "--decoder", folder / "decoder", "--device", "cpu"
    return main([command, "--model", *map(str, (*place, *words))])


def captions(folder) -> list[dict[str, str]]:
    return json.loads((folder / "captions.json").read_text())["captions"]


def test_captions_are_those_of_python(folder, parts, tmp_path, capsys):
    paths = [folder / "images" / f"{number}.png" for number in range(3)]
    assert run(folder, "caption", "--images", folder / "images", paths[1], "--output_dir", tmp_path) == 0
    found = captions(tmp_path)
    texts = caption(*parts, [*paths, paths[1]])
    assert found == [{"image": str(path), "caption": text} for path, text in zip([*paths, paths[1]], texts)]
    assert read_image(tmp_path / "captions.png").size[0] > 300
    assert f"{paths[0]}: " in capsys.readouterr().out
    drawn = tmp_path / "drawn"
    words = ("--images", paths[0], "--output_dir", drawn, "--top_k", 5, "--seed", 3, "--shown", 0)
    assert run(folder, "caption", *words) == 0
    expected = caption(*parts, paths[:1], sampling=Sampling(top_k=5, seed=3))[0]
    assert captions(drawn)[0]["caption"] == expected
    assert not (drawn / "captions.png").exists()


@pytest.mark.parametrize(("command", "what"), [("caption", "--images"), ("locate", "--image")])
def test_settings_of_naflex_are_for_naflex(folder, tmp_path, capsys, command, what):
    words = [what, folder / "images" / "0.png", "--output_dir", tmp_path, "--no_upscale"]
    words += ["--phrases", "a cat"] if command == "locate" else []
    assert run(folder, command, *words) == 2
    assert "are for NaFlex models" in capsys.readouterr().err


def test_a_broken_image_costs_only_itself(folder, tmp_path, capsys):
    images = [folder / "images" / "0.png", folder / "broken.png", folder / "images" / "1.png"]
    assert run(folder, "caption", "--images", *images, "--output_dir", tmp_path) == 0
    found = captions(tmp_path)
    assert [(row["image"], "caption" in row) for row in found] == [
        (str(images[0]), True),
        (str(images[2]), True),
        (str(images[1]), False),
    ]
    assert "left out: " in capsys.readouterr().out


def test_boxes_are_those_of_python(folder, parts, tmp_path, monkeypatch, capsys):
    image = folder / "images" / "0.png"
    assert run(folder, "locate", "--image", image, "--phrases", "a cat", "dog", "--output_dir", tmp_path) == 0
    found = json.loads((tmp_path / "boxes.json").read_text())
    expected = locate_all(*parts, [image] * 2, ["a cat", "dog"])
    assert [row["box"] for row in found["boxes"]] == [None if box is None else list(box) for box in expected]
    assert (found["image"], found["size"]) == (str(image), [30, 40])
    monkeypatch.setattr(
        "modeling_siglip_ext.evaluation.commands.locate.locate_all", lambda *arguments, **others: [(3.0, 8, 15, 40)]
    )
    assert run(folder, "locate", "--image", image, "--phrases", "a cat", "--output_dir", tmp_path / "drawn") == 0
    assert "a cat: 3, 8, 15, 40" in capsys.readouterr().out
    assert (tmp_path / "drawn" / "boxes.png").exists()


@pytest.mark.parametrize("command", ["caption", "locate"])
def test_what_another_decoder_found_is_not_lost(folder, tmp_path, capsys, command):
    image = folder / "images" / "0.png"
    words = [f"--{'images' if command == 'caption' else 'image'}", image, "--output_dir", tmp_path]
    words += [] if command == "caption" else ["--phrases", "a cat"]
    assert run(folder, command, *words) == 0
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert run(folder, command, *words) == 0  # the same again
    decoder = load_decoder(folder / "decoder")
    torch.nn.init.ones_(decoder.output.bias)
    save_decoder(decoder, tmp_path / "another" / "decoder")
    assert run(folder, command, *words, "--decoder", tmp_path / "another" / "decoder") == 2
    assert "is of another model or decoder: choose another --output_dir" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["caption", "--images", "nowhere.png"], "--images: there is no nowhere.png"),
        (["caption", "--images", "{folder}/broken.png"], "broken.png' is not an image"),
        (["caption", "--images", "{folder}/images", "--top_p", "2"], "top_p must be above 0"),
        (["caption", "--images", "{folder}/images", "--temperature", "nan"], "temperature must be above 0"),
        (["caption", "--images", "{folder}/images", "--seed", "1"], "--seed has no effect where nothing is drawn"),
        (["caption", "--images", "{folder}/images", "--shown", "-1"], "--shown must not be negative"),
        (["locate", "--image", "{folder}/images/0.png", "--phrases", "\udce9"], "half of a pair of surrogates"),
        (["caption", "--images", "{folder}/images", "--decoder", "{folder}"], "decoder.json is missing"),
        (["locate", "--image", "{folder}/broken.png", "--phrases", "a cat"], "broken.png' is not an image"),
        (["locate", "--image", "{folder}/images/0.png", "--phrases", "a", "--decoder", "{folder}/wide"], "48"),
    ],
)
def test_bad_input_is_one_line(folder, tmp_path, capsys, words, reason):
    if not (folder / "wide").exists():
        config = load_decoder(folder / "decoder").config
        save_decoder(
            CaptionDecoder(CaptionDecoderConfig(**{**config.__dict__, "encoder_hidden_size": 48})), folder / "wide"
        )
    words = [word.format(folder=folder) for word in words]
    given = [] if "--decoder" in words else ["--decoder", str(folder / "decoder")]
    status = main(
        [words[0], "--model", str(folder / "model"), *given, *words[1:], "--output_dir", str(tmp_path / "out")]
    )
    assert status == 2
    lines = capsys.readouterr().err.splitlines()
    said = [line for line in lines if line.startswith("siglip-ext-eval: error:")]
    assert len(said) == 1
    assert reason in said[0]
    assert not (tmp_path / "out").exists()


def test_an_image_at_a_url(folder, parts, tmp_path, monkeypatch):
    fetched = []

    class Session:
        def get(self, url, **options):
            fetched.append(url)
            return SimpleNamespace(status_code=200, content=(folder / "images" / "0.png").read_bytes())

    monkeypatch.setattr("modeling_siglip_ext.images.get_session", Session)
    url = "https://example.org/0.png"
    assert run(folder, "caption", "--images", url, "--output_dir", tmp_path) == 0
    (row,) = captions(tmp_path)
    assert row == {"image": url, "caption": caption(*parts, [folder / "images" / "0.png"])[0]}
    assert fetched == [url]  # once, for the decoder and the sheet
