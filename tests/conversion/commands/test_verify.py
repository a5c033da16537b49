"""A check that cannot fail proves nothing: changed folders and other checkpoints are found out."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from modeling_siglip_ext.conversion.__main__ import main


CASES = {
    "clip_softmax_nobias": {"image_embeds", "text_embeds", "logits_per_image", "loss"},
    "lit_bert": {"image_embeds", "text_embeds", "logits_per_image", "loss"},
    "lit_legacy_names": {"image_embeds", "text_embeds", "logits_per_image", "loss"},
    "lit_tok_noimghead": {"image_embeds", "text_embeds", "logits_per_image", "loss"},
    "paligemma_tiny": {"patch_features"},
    "siglip1_bf16": {"image_embeds", "text_embeds", "logits_per_image", "loss"},
    "siglip1_mu16": {"image_embeds", "text_embeds", "logits_per_image", "loss"},
    "siglip1_opt_adafactor": {"image_embeds", "text_embeds", "logits_per_image", "loss"},
    "siglip2_naflex": {"image_embeds", "text_embeds", "logits_per_image", "loss"},
    "siglip_i18n_so400m_nohead": {"image_embeds", "text_embeds", "logits_per_image", "loss"},
    "siglip_scan": {"image_embeds", "text_embeds", "logits_per_image", "loss"},
}


@pytest.fixture
def folder(converted, tmp_path):
    """A copy that may be changed."""

    def copy(case: str, *options: str):
        return shutil.copytree(converted(case, *options), tmp_path / "copy")

    return copy


@pytest.mark.parametrize("case", CASES)
def test_tensors_and_outputs_of_every_fixture(case, folder, checkpoints):
    copy, source = folder(case), checkpoints / case
    options = ["--against", str(source / "checkpoint.npz"), "--io", str(source / "io.npz")]
    assert main(["verify", str(copy), *options]) == 0
    report = json.loads((copy / "conversion_report.json").read_text())
    assert report["verified"]
    assert report["largest_difference"] == 0
    recorded = set(np.load(source / "io.npz").files)
    expected = {key for key in CASES[case] if key != "loss" or any("loss" in name for name in recorded)}
    assert set(report["outputs"]) == expected
    assert report["source"]["name"] == "checkpoint.npz"
    assert len(report["source"]["sha256"]) == 64
    assert set(report["libraries"]) >= {"torch", "transformers", "safetensors"}


def change_tensor(copy, name: str, change) -> None:
    path = copy / "model.safetensors"
    tensors = load_file(path)
    change(tensors[name])
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("logit_scale", lambda t: t.add_(1e-6)),
        ("vision_model.head.attention.in_proj_weight", lambda t: t[64:96].mul_(1 + 2**-22)),  # the values' rows
        ("text_model.encoder.layers.1.self_attn.q_proj.weight", lambda t: t.copy_(t.T.clone())),
        ("text_model.head.bias", lambda t: t[3].fill_(float("nan"))),
    ],
)
def test_the_smallest_change_is_found(name, change, folder, checkpoints, capsys):
    copy = folder("siglip1_mu16")
    change_tensor(copy, name, change)
    source = str(checkpoints / "siglip1_mu16" / "checkpoint.npz")
    assert main(["verify", str(copy), "--against", source]) == 1
    assert name in capsys.readouterr().err
    assert main(["verify", str(copy)]) == 1
    assert "has changed" in capsys.readouterr().err


def test_outputs_of_another_model_are_found_out(folder, checkpoints, capsys):
    copy = folder("siglip1_mu16")
    change_tensor(copy, "logit_scale", lambda t: t.add_(0.01))
    assert main(["verify", str(copy), "--io", str(checkpoints / "siglip1_mu16" / "io.npz")]) == 1
    assert "logits_per_image differs" in capsys.readouterr().err


def test_a_missing_or_added_tensor_is_found(folder, checkpoints, capsys):
    copy = folder("siglip1_mu16")
    tensors = load_file(copy / "model.safetensors")
    tensors["extra"] = tensors.pop("logit_bias").clone()
    save_file(tensors, copy / "model.safetensors")
    assert main(["verify", str(copy), "--against", str(checkpoints / "siglip1_mu16" / "checkpoint.npz")]) == 1
    assert "extra, logit_bias" in capsys.readouterr().err


def test_another_checkpoint_is_no_source(folder, checkpoints, capsys):
    copy = folder("siglip1_mu16")
    assert main(["verify", str(copy), "--against", str(checkpoints / "siglip1_bf16" / "checkpoint.npz")]) == 1
    assert "differs" in capsys.readouterr().err
    assert main(["verify", str(copy), "--against", str(checkpoints / "siglip_scan" / "checkpoint.npz")]) == 1


@pytest.mark.parametrize(
    "options",
    [
        ("--image-size", "96"),
        ("--patch-size", "32"),
        ("--text-length", "16"),
        ("--tower", "naflex"),
        ("--dtype", "bfloat16"),
        ("--format", "ext"),
        ("--max-shard-size", "200KB"),
    ],
)
def test_changed_sizes_and_types_verify_too(options, folder, checkpoints):
    copy = folder("siglip1_mu16", *options)
    assert main(["verify", str(copy), "--against", str(checkpoints / "siglip1_mu16" / "checkpoint.npz")]) == 0


def test_a_folder_without_a_report_needs_its_source(folder, capsys):
    copy = folder("siglip1_mu16")
    (copy / "conversion_report.json").unlink()
    assert main(["verify", str(copy)]) == 2
    assert "--against" in capsys.readouterr().err
    (copy / "conversion_report.json").write_text("{")
    assert main(["verify", str(copy)]) == 2
    assert "damaged" in capsys.readouterr().err


def test_half_precision_is_compared_with_the_rounded_source(folder, checkpoints):
    copy = folder("siglip1_mu16", "--dtype", "bfloat16")
    change_tensor(copy, "logit_bias", lambda t: t.copy_(torch.nextafter(t.float(), torch.tensor(0.0)).mul(0.99)))
    assert main(["verify", str(copy), "--against", str(checkpoints / "siglip1_mu16" / "checkpoint.npz")]) == 1


def test_a_report_says_only_what_was_measured(folder, checkpoints):
    copy = folder("siglip1_mu16")
    (copy / "conversion_report.json").unlink()
    assert main(["verify", str(copy), "--io", str(checkpoints / "siglip1_mu16" / "io.npz")]) == 0
    assert json.loads((copy / "conversion_report.json").read_text()).keys() == {"outputs", "libraries"}
