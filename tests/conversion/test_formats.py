"""Formats are told apart in one place, and a new one is a module and a line in the table."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from modeling_siglip_ext.conversion import Choices, NewSizes, Options, convert, open_checkpoint
from modeling_siglip_ext.conversion.__main__ import main
from modeling_siglip_ext.conversion.big_vision.checkpoint import BigVisionCheckpoint
from modeling_siglip_ext.conversion.checkpoint import Checkpoint, Preprocessing
from modeling_siglip_ext.conversion.containers.arrays import Arrays
from modeling_siglip_ext.conversion.containers.sources import Source
from modeling_siglip_ext.conversion.errors import CheckpointError
from modeling_siglip_ext.conversion.formats import FORMATS, source_at
from modeling_siglip_ext.conversion.model_folder.report import read_report
from modeling_siglip_ext.conversion.name_map import SAME, Rule, Slot
from modeling_siglip_ext.conversion.open_clip.checkpoint import OpenClipCheckpoint
from modeling_siglip_ext.conversion.plan import AnyConfig, Plan
from modeling_siglip_ext.conversion.resize import changes_between


class ToyCheckpoint(Checkpoint):
    """Our own names with `toy/` in front."""

    def plan(self, config: AnyConfig) -> Plan:
        rules = [Rule(name.removeprefix("toy/"), (Slot(name),), SAME) for name in self.arrays]
        return Plan(config, rules, changes_between(self.config, config))

    def lines(self) -> list[str]:
        return [f"{len(self.arrays)} toys"]


class Toy:
    """As the module `checkpoint` of a format's folder."""

    SIGN = "toy"
    FILES = ("toy.npz",)

    def __init__(self, config: AnyConfig):
        self.config = config

    def claims(self, arrays: Arrays) -> bool:
        return any(name.startswith("toy/") for name in arrays)

    def read(self, source: Source, *, origin: str | Path, name: str | None, choices: Choices) -> Checkpoint:
        return ToyCheckpoint(
            source, source.arrays, self.config, {"kind": "toy"}, licence="mit", images=Preprocessing("bicubic")
        )


@pytest.fixture
def toy(tiny_config, tmp_path, monkeypatch) -> tuple[Path, dict[str, torch.Tensor]]:
    """A file of the third format, and the tensors in it."""
    monkeypatch.setitem(FORMATS, "toy", Toy(tiny_config))
    tensors = AutoModel.from_config(tiny_config).state_dict()
    path = tmp_path / "toy.npz"
    np.savez(path, **{f"toy/{name}": tensor.numpy() for name, tensor in tensors.items()})
    return path, tensors


def test_a_third_format_is_a_line_in_the_table(toy, tmp_path, capsys):
    path, tensors = toy
    with open_checkpoint(path) as checkpoint:
        result = convert(checkpoint, tmp_path / "out", Options(), NewSizes(image_size=64))
    assert result.report.changes == ["image positions resampled from a grid of 4 to 8"]
    with open_checkpoint(path, kind="toy") as checkpoint:
        convert(checkpoint, tmp_path / "same")
    written = load_file(tmp_path / "same" / "model.safetensors")
    assert written.keys() == tensors.keys()
    assert all(torch.equal(tensor, written[name]) for name, tensor in tensors.items())
    report = read_report(tmp_path / "same")
    assert report is not None
    assert (report.layout, report.licence, report.verified) == ({"kind": "toy"}, "mit", True)
    assert main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "a checkpoint of toy" in shown
    assert f"{len(tensors)} toys" in shown
    assert main(["verify", str(tmp_path / "same"), "--against", str(path)]) == 0


def test_the_two_that_are_there_are_told_apart(converted, checkpoints, tmp_path):
    assert main(["to-open-clip", str(converted("siglip1_mu16")), str(tmp_path / "oc")]) == 0
    with open_checkpoint(tmp_path / "oc", choices=Choices(image_heads=2)) as checkpoint:
        assert isinstance(checkpoint, OpenClipCheckpoint)
    with open_checkpoint(checkpoints / "siglip1_mu16" / "checkpoint.npz") as checkpoint:
        assert isinstance(checkpoint, BigVisionCheckpoint)
        convert(checkpoint, tmp_path / "out")
    command, face = converted("siglip1_mu16"), tmp_path / "out"
    assert {path.name for path in command.iterdir()} == {path.name for path in face.iterdir()}
    assert (command / "model.safetensors").read_bytes() == (face / "model.safetensors").read_bytes()


def test_what_is_of_no_format_is_said_so(tmp_path):
    np.savez(tmp_path / "x.npz", weights=np.zeros(3))
    message = "holds 1 arrays .weights, …., but no visual.trunk of open_clip and no big_vision image tower"
    with pytest.raises(CheckpointError, match=message), open_checkpoint(tmp_path / "x.npz"):
        raise AssertionError("must not get here")


@pytest.mark.parametrize("place", ["missing.npz", "https://localhost:1/missing.npz"])
def test_names_and_kinds_are_checked_before_anything_is_read(place):
    with pytest.raises(CheckpointError, match="'typo' is not in the catalogue"), open_checkpoint(place, name="typo"):
        pass
    with (
        pytest.raises(ValueError, match="unknown kind of checkpoint 'jax'; known: "),
        open_checkpoint(place, kind="jax"),
    ):
        pass


def test_of_several_files_the_one_that_a_format_knows_is_meant(tmp_path):
    for name in ("adapter", "open_clip_model"):
        save_file({f"{name}.x": torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    assert list(source_at(tmp_path).arrays) == ["open_clip_model.x"]
    (tmp_path / "open_clip_model.safetensors").rename(tmp_path / "ema.safetensors")
    with pytest.raises(CheckpointError, match=r"holds adapter\.safetensors, ema\.safetensors: name the file"):
        source_at(tmp_path)


@pytest.mark.parametrize("sizes", [{"image_size": 0}, {"patch_size": 0}, {"text_length": 0}, {"text_length": -5}])
def test_sizes_below_one_are_refused(sizes):
    (name, value), *_ = sizes.items()
    with pytest.raises(CheckpointError, match=f"{name}={value} must be at least 1"):
        NewSizes(**sizes)
