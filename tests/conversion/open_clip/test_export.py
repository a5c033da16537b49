"""What `to-open-clip` writes beside the weights: a tower that is the model's, and the tokenizer.

open_clip is no dependency. Without it names are compared with timm's own list of its towers (`timm_towers.json`, by
`record.py`), and tokens are loaded as open_clip 3.3 does; `test_peer.py` asks open_clip itself.
"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoProcessor, AutoTokenizer, BertTokenizerFast, PreTrainedTokenizerFast, SiglipTokenizer

from modeling_siglip_ext import (
    SiglipExtConfig,
    SiglipExtImageProcessor,
    SiglipExtModel,
    SiglipExtProcessor,
    apply_text_rules,
    encode_texts,
    train_tokenizer,
)
from modeling_siglip_ext.conversion.__main__ import main
from modeling_siglip_ext.conversion.errors import CheckpointError
from modeling_siglip_ext.conversion.open_clip import export
from modeling_siglip_ext.conversion.open_clip.config import open_clip_config, timm_name
from modeling_siglip_ext.conversion.open_clip.towers import named_towers, timm_config, tower_of
from support.models import make_config
from support.tokenizers import c4_pieces


TIMM = json.loads(Path(__file__).with_name("timm_towers.json").read_text())
ACTIVATIONS = {"GELU(approximate='none')": "gelu", "GELUTanh()": "gelu_pytorch_tanh"}
SENTENCES = ["a photo of a cat", "two dogs on the mat", "the quick brown fox", "a red square, a blue circle!"] * 20
TEXTS = ["A Photo of a CAT, on the mat!", "two dogs", "word " * 30, ""]
BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}


def exported(model: SiglipExtConfig, out: Path, *options: str, tokenizer=None, status: int = 0) -> dict:
    """`model_cfg` of the folder that the command writes."""
    folder = out.parent / f"{out.name}-model"
    SiglipExtModel(model).save_pretrained(folder)
    if tokenizer is not None:
        SiglipExtProcessor(SiglipExtImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(
            folder
        )
    assert main(["to-open-clip", str(folder), str(out), *options]) == status
    return json.loads((out / "open_clip_config.json").read_text())["model_cfg"] if status == 0 else {}


def test_names_stand_for_what_timm_builds():
    found = {name: asdict(tower) for name, tower in named_towers().items()}
    assert found.keys() == TIMM.keys()
    for name, theirs in TIMM.items():
        ours = found[name]
        assert ours.pop("num_channels") == 3
        assert ours.pop("hidden_act") == ACTIVATIONS[theirs["activation"]], name
        assert ours.pop("interpolation") is None
        assert ours == {key: value for key, value in theirs.items() if key in ours}, name


@pytest.mark.parametrize("name", ["vit_base_patch32_siglip_256", "vit_base_patch16_siglip_224"])
def test_a_tower_that_has_a_name_is_written_by_it(name):
    known = {key: value for key, value in asdict(named_towers()[name]).items() if key != "interpolation"}
    config = SiglipExtConfig(vision_config=known)
    assert timm_name(config.vision_config) == name
    for field, value in [
        ("num_attention_heads", 6),
        ("hidden_act", "relu"),
        ("layer_norm_eps", 1e-3),
        ("num_hidden_layers", 6),
        ("intermediate_size", 2048),
        ("image_size", 320),
        ("patch_size", 8),
        ("hidden_size", 384),
    ]:
        assert timm_name(SiglipExtConfig(vision_config=known | {field: value}).vision_config) is None, field


def test_another_tower_is_described_to_timm(tmp_path, capsys):
    vision = {"num_attention_heads": 4, "hidden_act": "relu", "intermediate_size": 80, "image_size": 40}
    out = tmp_path / "oc"
    model = exported(make_config(vision=vision), out)
    assert model["vision_cfg"]["timm_model_name"] == f"local-dir:{out}"
    timm = json.loads((out / "config.json").read_text())
    assert timm["architecture"] in TIMM
    assert timm["model_args"] == {
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 4,
        "mlp_ratio": 2.5,
        "patch_size": 8,
        "act_layer": "relu",
        "img_size": 40,
    }
    assert "where it must stay" in capsys.readouterr().err
    model = exported(make_config(vision=vision), tmp_path / "hub", "--repo_id", "me/it")
    assert model["vision_cfg"]["timm_model_name"] == "hf-hub:me/it"
    assert model["text_cfg"]["hf_tokenizer_name"] == "me/it"


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"vision": {"layer_norm_eps": 1e-3}}, (), "vision_config.layer_norm_eps is 0.001"),
        ({"vision": {"hidden_act": "mish"}}, (), "vision_config.hidden_act is 'mish'"),
        ({"vision": {"num_channels": 4}}, (), "vision_config.num_channels is 4"),
        ({"text": {"hidden_act": "relu"}}, (), "text_config.hidden_act is 'relu'"),
        ({"text": {"pooling": "mean"}}, (), "takes the last or first token"),
        ({}, ("--timm_model", "vit_base_patch16_siglip_224.webli"), "hidden_size 32 (there 768), "),
    ],
)
def test_what_open_clip_cannot_build_is_refused_by_name(changes, options, message, tmp_path, capsys):
    exported(make_config(**changes), tmp_path / "oc", *options, status=2)
    said = capsys.readouterr().err.splitlines()
    assert message in said[-1]
    assert not (tmp_path / "oc").exists()


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        ("gelu", {}),
        ("gelu_pytorch_tanh", {"act_kwargs": {"approximate": "tanh"}}),
        ("gelu_new", {"act_kwargs": {"approximate": "tanh"}}),
        ("quick_gelu", {}),
    ],
)
def test_text_settings_say_what_the_tower_computes(act, expected):
    config = make_config(text={"hidden_act": act, "layer_norm_eps": 1e-4, "pooling": "first"})
    model = open_clip_config(config, "any", {})["model_cfg"]
    assert {key: value for key, value in model["text_cfg"].items() if key == "act_kwargs"} == expected
    assert model["text_cfg"]["norm_kwargs"] == {"eps": 1e-4}
    assert model["text_cfg"]["pool_type"] == "first"
    assert model.get("quick_gelu", False) == (act == "quick_gelu")


def test_naflex_positions_are_resized_as_siglip_2_does():
    naflex = SiglipExtConfig(vision_config={"naflex": True}).vision_config
    assert timm_name(naflex) is None  # timm's own has been bicubic and bilinear
    given = timm_config(tower_of(naflex), {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"})
    assert given["model_args"]["pos_embed_interp_mode"] == "bilinear"
    assert given["model_args"]["pos_embed_grid_size"] == [16, 16]


# ---- tokenizers


def trained() -> PreTrainedTokenizerFast:
    return train_tokenizer(SENTENCES, 300, 8)


def gemma() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    tokenizer.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=90, special_tokens=special))
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return apply_text_rules(PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names), "v2", 8)


def bert(folder: Path) -> BertTokenizerFast:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of", "cat", "two", "dogs", "mat", "word"]
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    tokenizer.model_max_length, tokenizer.model_input_names = 8, ["input_ids"]
    return tokenizer


def c4(folder: Path) -> SiglipTokenizer:
    return SiglipTokenizer(str(c4_pieces(SENTENCES, folder / "c4.model")), model_max_length=8)


def tokens_of_open_clip(out: Path, model: dict) -> list[list[int]]:
    """As open_clip 3.3 loads a tokenizer of `local-dir:` and calls it, but for its cleaning of texts."""
    assert model["text_cfg"]["hf_tokenizer_name"]
    assert model["text_cfg"]["tokenizer_kwargs"] == {"clean": "whitespace"}
    for path in out.iterdir():  # transformers reads timm's config.json with timm alone
        if "token" in path.name or path.suffix in (".txt", ".model"):
            shutil.copy(path, out.parent)
    tokenizer = AutoTokenizer.from_pretrained(out.parent)
    length = model["text_cfg"]["context_length"]
    texts = [" ".join(text.split()) for text in TEXTS]
    return tokenizer(texts, padding="max_length", max_length=length, truncation=True).input_ids


@pytest.mark.parametrize("kind", ["trained", "gemma", "bert", "c4"])
def test_the_tokenizer_goes_along(kind, tmp_path, monkeypatch):
    tokenizer = {"trained": trained, "gemma": gemma}[kind]() if kind in ("trained", "gemma") else None
    tokenizer = tokenizer or {"bert": bert, "c4": c4}[kind](tmp_path)
    config = make_config(text={"vocab_size": 400})
    model = exported(config, tmp_path / "oc", tokenizer=tokenizer)
    found = tokens_of_open_clip(tmp_path / "oc", model)
    assert {len(row) for row in found} == {8}
    seen = []
    ours = SiglipExtModel.from_pretrained(tmp_path / "oc-model")
    monkeypatch.setattr(ours, "get_text_features", lambda input_ids, **_: seen.append(input_ids) or StopIteration)
    with pytest.raises(AttributeError):  # nothing is computed
        encode_texts(ours, AutoTokenizer.from_pretrained(tmp_path / "oc-model"), [" ".join(t.split()) for t in TEXTS])
    assert seen[0].tolist() == found
    assert main(["from-open-clip", str(tmp_path / "oc"), str(tmp_path / "back")]) == 0
    back = AutoProcessor.from_pretrained(tmp_path / "back")
    texts = [" ".join(text.split()) for text in TEXTS]
    assert back(text=texts, padding="max_length", max_length=8, truncation=True)["input_ids"] == found


def test_a_folder_without_a_tokenizer_never_gets_that_of_clip(tmp_path, capsys):
    model = exported(make_config(), tmp_path / "own")
    assert model["text_cfg"]["hf_tokenizer_name"] == str(tmp_path / "own")
    assert "has no tokenizer" in capsys.readouterr().err
    model = exported(make_config(text={"vocab_size": 32000}), tmp_path / "released")
    assert model["text_cfg"]["hf_tokenizer_name"] == "timm/ViT-B-16-SigLIP"
    assert "hf-hub: takes and local-dir: cannot" in capsys.readouterr().err


def test_a_tokenizer_that_does_not_fit_is_refused(tmp_path, capsys):
    exported(make_config(), tmp_path / "oc", tokenizer=trained(), status=2)
    assert "ids beyond vocab_size 99" in capsys.readouterr().err
    tokenizer = trained()
    tokenizer.pad_token = None
    SiglipExtModel(make_config(text={"vocab_size": 400})).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    assert main(["to-open-clip", str(tmp_path / "model"), str(tmp_path / "oc")]) == 2
    assert "has no padding token" in capsys.readouterr().err
    assert not (tmp_path / "oc").exists()


# ---- images, and open_clip's own word


def test_images_are_prepared_as_in_the_folder(tmp_path):
    SiglipExtModel(make_config()).save_pretrained(tmp_path / "model")
    images = SiglipExtImageProcessor(size={"height": 32, "width": 32}, resample=3, image_mean=[0.1, 0.2, 0.3])
    images.save_pretrained(tmp_path / "model")
    settings = export.preprocessing(tmp_path / "model")
    assert settings == {
        "mean": [0.1, 0.2, 0.3],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "bicubic",
        "resize_mode": "squash",
    }
    for changes, message in (({"resample": 1}, "resample 1"), ({"do_normalize": False}, "do_normalize is false")):
        SiglipExtImageProcessor(size={"height": 32, "width": 32}, **changes).save_pretrained(tmp_path / "model")
        with pytest.raises(CheckpointError, match=message):
            export.preprocessing(tmp_path / "model")


class FakeOpenClip(ModuleType):
    """Computes what our own model does, and something besides."""

    error = 0.0

    def create_model(self, name: str) -> "FakeOpenClip":
        self.folder = Path(name.removeprefix("local-dir:"))
        model = json.loads((self.folder / "open_clip_config.json").read_text())["model_cfg"]
        assert model["vision_cfg"]["timm_model_name"] == name  # the draft's own timm configuration
        assert (self.folder / "open_clip_model.safetensors").is_file()
        self.model = SiglipExtModel.from_pretrained(self.source)
        return self

    def eval(self) -> "FakeOpenClip":
        return self

    def encode_image(self, images: torch.Tensor, normalize: bool) -> torch.Tensor:
        return torch.nn.functional.normalize(self.model.get_image_features(images).pooler_output, dim=-1) + self.error

    def encode_text(self, texts: torch.Tensor, normalize: bool) -> torch.Tensor:
        return torch.nn.functional.normalize(self.model.get_text_features(texts).pooler_output, dim=-1)


@pytest.mark.parametrize(("error", "status"), [(0.0, 0), (1e-3, 1), (float("nan"), 1)])
def test_where_open_clip_is_installed_it_has_the_last_word(error, status, tmp_path, monkeypatch, capsys):
    peer = FakeOpenClip("open_clip")
    peer.error, peer.source = error, tmp_path / "oc-model"
    monkeypatch.setattr(export, "installed", lambda: peer)
    exported(make_config(), tmp_path / "oc", status=status)
    said = capsys.readouterr()
    assert (tmp_path / "oc").exists() == (status == 0)
    if status == 0:
        assert "open_clip's own embeddings equal" in said.out
    else:
        assert "not verified: open_clip's own image embeddings differ by" in said.err


def test_a_tokenizer_for_which_open_clip_mends_texts_needs_rules(tmp_path, capsys):
    exported(make_config(text={"vocab_size": 400}), tmp_path / "oc", tokenizer=trained())
    path = tmp_path / "oc" / "open_clip_config.json"
    settings = json.loads(path.read_text())
    settings["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"clean": "canonicalize"}
    path.write_text(json.dumps(settings))
    assert main(["from-open-clip", str(tmp_path / "oc"), str(tmp_path / "without")]) == 0
    assert "say it with --text_rules" in capsys.readouterr().err
    assert not (tmp_path / "without" / "tokenizer.json").exists()
    assert main(["from-open-clip", str(tmp_path / "oc"), str(tmp_path / "with"), "--text_rules", "v2"]) == 0
    assert (tmp_path / "with" / "tokenizer.json").exists()
