"""Model folders whose settings or report are damaged, or say what nobody wrote."""

import json
import shutil
from pathlib import Path

import pytest

from modeling_siglip_ext.conversion.__main__ import main


@pytest.fixture
def folder(converted, tmp_path) -> Path:
    """A copy that may be changed."""
    return shutil.copytree(converted("siglip1_mu16"), tmp_path / "copy")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ("{}", "is damaged"),
        ('{"model_type": "bert"}', "'bert' is no SigLIP model"),
        ('{"model_type": ["siglip"]}', "is no SigLIP model"),
        ('{"model_type": "siglip", "vision_config": 3}', "describes no model"),
        ('{"model_type": "siglip", "vision_config": {"hidden_size": "wide"}}', "Field 'hidden_size' expected int"),
        ('{"model_type": "siglip", "text_config": {"num_hidden_layers": -1}}', "has no"),
    ],
)
def test_settings_that_make_no_sense(settings, message, folder, tmp_path, capsys):
    (folder / "config.json").write_text(settings)
    assert main(["to-jax", str(folder), str(tmp_path / "x.npz")]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"kind": "big_vision", "prefix": 3}, "is damaged: layout, prefix"),
        ({"kind": "big_vision", "stacked": "img", "dtypes": []}, "is damaged: layout, stacked, dtypes"),
        ({"kind": "big_vision", "stacked": [["img"]], "dtypes": {"t": []}}, "is damaged: layout, stacked, dtypes"),
        ({"kind": "big_vision", "legacy": {"names": []}}, "is damaged: layout, legacy names, legacy kept"),
        ({"kind": "big_vision", "beside": {"t": {"dtype": "load", "shape": [1], "data": ""}}}, "keeps is damaged"),
        ({"kind": "big_vision", "beside": {"t": {"dtype": "float32", "shape": [9], "data": "AAAA"}}}, "is damaged"),
    ],
)
def test_a_report_that_nobody_wrote(layout, message, folder, tmp_path, capsys):
    path = folder / "conversion_report.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "layout": layout}))
    assert main(["to-jax", str(folder), str(tmp_path / "x.npz")]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


@pytest.mark.parametrize("layout", [None, [], {"kind": "open_clip"}])
def test_a_report_of_another_origin_is_no_hindrance(layout, folder, tmp_path):
    path = folder / "conversion_report.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "layout": layout}))
    assert main(["to-jax", str(folder), str(tmp_path / "x.npz")]) == 0


@pytest.mark.parametrize(
    "settings", ["{", "[]", '{"model_cfg": {"vision_cfg": [], "text_cfg": {}}}', '{"model_cfg": 3}']
)
def test_damaged_settings_of_open_clip(settings, folder, tmp_path, capsys):
    assert main(["to-open-clip", str(folder), str(tmp_path / "clip")]) == 0
    (tmp_path / "clip" / "open_clip_config.json").write_text(settings)
    assert main(["from-open-clip", str(tmp_path / "clip"), str(tmp_path / "out"), "--image-heads", "2"]) == 2
    assert "open_clip_config.json is damaged" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
