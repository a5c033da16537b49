"""The report is read as it was written, and damaged ones are named."""

import json
from dataclasses import replace

import pytest

from modeling_siglip_ext.conversion.errors import CheckpointError
from modeling_siglip_ext.conversion.model_folder.report import (
    NAME,
    ConversionReport,
    Origin,
    read_report,
    write_report,
)


REPORT = ConversionReport(
    source=Origin("x.npz", "0" * 64),
    class_name="SiglipModel",
    format="native",
    dtype="float32",
    loss="sigmoid",
    parameters=3,
    tokenizer=False,
    layout={"kind": "big_vision"},
    left_out={"what": ["a"]},
    verified=True,
    files={"model.safetensors": "1" * 64},
    tensors={"a": 0.0, "b": 0.5},
)


@pytest.mark.parametrize("report", [REPORT, replace(REPORT, outputs={"loss": 0.1}), ConversionReport()])
def test_there_and_back(report, tmp_path):
    write_report(tmp_path, report)
    assert read_report(tmp_path) == report


def test_what_the_file_says(tmp_path):
    write_report(tmp_path, REPORT)
    content = json.loads((tmp_path / NAME).read_text())
    assert content["class"] == "SiglipModel"
    assert content["largest_difference"] == 0.5
    assert content["tensors"]["b"] == {"largest_difference": 0.5}
    assert content["source"] == {"name": "x.npz", "sha256": "0" * 64}
    assert not {"outputs", "class_name"} & content.keys()


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"files": 3}', '{"source": {}}', '{"tensors": {"a": 3}}', '{"dtype": 3}', "[" * 100_000],
)
def test_a_damaged_report_is_named(content, tmp_path):
    (tmp_path / NAME).write_text(content)
    with pytest.raises(CheckpointError, match=f"{NAME} is damaged"):
        read_report(tmp_path)


def test_no_report(tmp_path):
    assert read_report(tmp_path) is None
