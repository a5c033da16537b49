"""`inspect` tells what is in a file without reading the weights."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from modeling_siglip_ext.conversion.__main__ import main


@pytest.mark.parametrize(
    ("case", "options", "lines"),
    [
        ("siglip1_mu16", [], ["patch 16, 64 px", "pooling map", "becomes: siglip", "108 float32", "one by one"]),
        ("siglip1_bf16", [], ["108 bfloat16"]),
        ("siglip2_naflex", [], ["NaFlex, grid of 4", "becomes: siglip2"]),
        ("siglip_scan", [], ["stacked in img, txt"]),
        ("siglip_i18n_so400m_nohead", [], ["no head"]),
        ("siglip1_opt_adafactor", [], ["arrays of a training run"]),
        ("lit_bert", ["--text-heads", "4"], ["text tower: bert", "head to 48", "loss: softmax", "siglip_ext"]),
        ("lit_legacy_names", [], ["old names"]),
        ("paligemma_tiny", [], ["pooling none", "head to 40", "PaliGemma's language model (9 arrays)"]),
    ],
)
def test_what_a_checkpoint_is(case, options, lines, checkpoints, capsys):
    assert main(["inspect", str(checkpoints / case / "checkpoint.npz"), *options]) == 0
    shown = capsys.readouterr().out
    for line in lines:
        assert line in shown


def test_the_number_of_parameters_is_that_of_the_file(checkpoints, capsys):
    path = checkpoints / "siglip1_mu16" / "checkpoint.npz"
    arrays = np.load(path)
    image = sum(arrays[name].size for name in arrays.files if "/img/" in name)
    text = sum(arrays[name].size for name in arrays.files if "/txt/" in name)
    assert main(["inspect", str(path)]) == 0
    assert f"image {image:,}, text {text:,}" in capsys.readouterr().out


def test_model_folders_and_open_clip_are_described_too(converted, tmp_path, capsys):
    folder = converted("siglip1_mu16")
    assert main(["inspect", str(folder)]) == 0
    assert "a model folder" in (shown := capsys.readouterr().out)
    assert "parameters: 105,826" in shown
    assert main(["to-open-clip", str(folder), str(tmp_path / "oc")]) == 0
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "oc")]) == 0
    assert "a checkpoint of open_clip" in (shown := capsys.readouterr().out)
    assert "32 wide, 3 layers, 2 heads" in shown


def test_something_else_is_named_as_such(tmp_path, capsys):
    np.savez(tmp_path / "x.npz", weights=np.zeros(3))
    assert main(["inspect", str(tmp_path / "x.npz")]) == 2
    assert "no big_vision image tower" in capsys.readouterr().err


def test_a_file_that_is_not_what_its_name_says_is_described_all_the_same(checkpoints, tmp_path, capsys):
    path = tmp_path / "siglip2_b16_224.npz"
    path.write_bytes((checkpoints / "siglip1_mu16" / "checkpoint.npz").read_bytes())
    assert main(["inspect", str(path)]) == 0
    said = capsys.readouterr()
    assert "this is not siglip2_b16_224: its image tower has hidden_size 32" in said.err
    assert "catalogue: not a file of it" in said.out
    assert main(["inspect", str(path), "--name", "siglip2_b16_224"]) == 2  # who says so is contradicted
    assert "this is not siglip2_b16_224" in capsys.readouterr().err
    assert main(["from-jax", str(path), str(tmp_path / "out")]) == 2
    assert "--name none" in capsys.readouterr().err


def test_what_a_folder_lacks_is_counted(converted, tmp_path, capsys):
    shutil.copytree(converted("siglip1_mu16"), tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    del tensors["logit_bias"], tensors["text_model.head.bias"]
    tensors["logit_scale"] = tensors["logit_scale"].repeat(2)
    save_file({**tensors, "more": torch.zeros(3)}, file, metadata={"format": "pt"})
    assert main(["inspect", str(tmp_path / "model")]) == 0
    shown = capsys.readouterr().out
    assert f"missing of the {len(tensors) + 2} tensors of SiglipModel: 2 (logit_bias, text_model.head.bias)" in shown
    assert "of another shape: 1 (logit_scale)" in shown
    assert "unknown to SiglipModel: 1 (more)" in shown
