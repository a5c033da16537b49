"""The sheet and the lines of `make demo-siglip2`, of answers that are given."""

import shlex

import pytest
import torch
from PIL import Image

from modeling_siglip_ext.training.data.scenes import Scenes, SceneSettings
from modeling_siglip_ext.training.run.demo_siglip2 import SHOWN, Seen, draw, locating, report


@pytest.fixture
def scenes():
    return Scenes(SceneSettings(held_out=SHOWN), "validation")


def test_the_sheet_has_a_row_a_scene(scenes, tmp_path):
    tokens = torch.randn(SHOWN, 36, 16, generator=torch.Generator().manual_seed(0))
    before = Seen([""] * SHOWN, [None] * SHOWN, tokens)
    after = Seen([row["caption"] for row in scenes], [(0.0, 0.0, 36.0, 36.0)] * SHOWN, tokens.flip(1))
    draw(tmp_path / "sheet.png", scenes, before, after)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height > sheet.width > 1000


def test_the_report_measures_boxes(scenes):
    truth = [tuple(side * 72 for side in row["regions"][0]["box"]) for row in scenes]
    lines = report(scenes, Seen(["words"] * SHOWN, [*truth[:-1], None], torch.zeros(0))).splitlines()
    assert len(lines) == SHOWN
    assert all(line.endswith("IoU 1.00") for line in lines[:-1])
    assert lines[-1].endswith("IoU 0.00")
    assert all(row["caption"] in line for row, line in zip(scenes, lines))


def test_the_command_names_an_image_that_is_there(tmp_path):
    (tmp_path / "held_out").mkdir()
    for name in ("01.png", "00.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / "held_out" / name)
    words = shlex.split(locating(tmp_path, "a chestnut").replace("\\\n", ""))
    assert words[words.index("--image") + 1] == str(tmp_path / "held_out" / "00.png")
    assert words[-2:] == ["--phrases", "a chestnut"]
