"""Views and masks: what they are cut from, how large, how often, and that a sample's key decides all of it."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_siglip_ext.training import ImageTextCollator, ImageTextDataset
from modeling_siglip_ext.training.data.collator import ExtendedCollator
from modeling_siglip_ext.training.objectives.masks import MaskSettings, PatchMasks, draw_hidden
from modeling_siglip_ext.training.objectives.views import GLOBAL, LOCAL, Views, ViewSettings, crop_box, draw_views


SETTINGS = ViewSettings(global_size=16, local_size=8, local_views=3)
PLAIN = {"flip": 0.0, "jittered": 0.0, "gray": 0.0, "global_blur": 0.0, "local_blur": 0.0}


def picture(height: int = 24, width: int = 40) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    small = torch.rand(1, 3, 6, 10, generator=generator)
    large = torch.nn.functional.interpolate(small, (height, width), mode="bilinear")[0]
    return (large * 255).round().to(torch.uint8)


def test_views_have_their_sizes_and_follow_the_key():
    image = picture()
    first, again, other = (draw_views(image, key, SETTINGS) for key in ("0/0/1", "0/0/1", "0/1/1"))
    assert first[0].shape == (3, 16, 16)
    assert first[1].shape == (3, 3, 8, 8)
    assert first[0].dtype == first[1].dtype == torch.uint8
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert not any(torch.equal(a, b) for a, b in zip(first, other))
    assert not torch.equal(first[1][0], first[1][1])
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    assert torch.equal(draw_views(Image.fromarray(image.permute(1, 2, 0).numpy()), "0/0/1", SETTINGS)[0], first[0])


@pytest.mark.parametrize("size", [7, 16, 60])
def test_a_crop_is_resized_with_antialiased_bicubic(size):
    """Against torch's own resizing of the whole image."""
    image = picture(32, 32)
    settings = ViewSettings(size, 8, 0, global_area=(1.0, 1.0), aspect=(1.0, 1.0), **PLAIN)
    expected = torch.nn.functional.interpolate(image[None].float(), (size, size), mode="bicubic", antialias=True)
    found = draw_views(image, "key", settings)[0]
    # PIL rounds after either axis.
    assert (found.float() - expected[0].clamp(0, 255)).abs().max() <= 1.5


def test_crops_have_the_areas_and_aspects_asked_for():
    draw, size = random.Random(0), (400, 300)
    for area in ((0.4, 1.0), (0.05, 0.4)):
        boxes = [crop_box(size, draw, area, (3 / 4, 4 / 3)) for _ in range(500)]
        for left, upper, right, lower in boxes:
            assert 0 <= left < right <= size[0]
            assert 0 <= upper < lower <= size[1]
            assert area[0] - 0.01 <= (right - left) * (lower - upper) / (400 * 300) <= area[1] + 0.01
            assert 0.74 <= (right - left) / (lower - upper) <= 1.35
        shares = [(right - left) * (lower - upper) / (400 * 300) for left, upper, right, lower in boxes]
        assert min(shares) < area[0] + 0.05 < area[1] - 0.05 < max(shares)
    # Nothing of this aspect fits: the middle.
    assert crop_box((100, 10), draw, (0.9, 1.0), (3 / 4, 4 / 3)) == (43, 0, 56, 10)
    assert crop_box((1, 1), draw, (0.05, 0.4), (3 / 4, 4 / 3)) == (0, 0, 1, 1)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("flip", lambda view, plain: torch.equal(view, plain.flip(-1))),
        ("gray", lambda view, plain: torch.equal(view[0], view[1]) and torch.equal(view[1], view[2])),
        ("global_blur", lambda view, plain: view.float().std() < plain.float().std()),
        ("jittered", lambda view, plain: not torch.equal(view, plain)),
    ],
)
def test_what_is_asked_for_happens(name, found):
    """Always at probability 1, and half of the time at a half."""
    image, kept = picture(16, 16), {"global_area": (1.0, 1.0), "aspect": (1.0, 1.0), "local_views": 0}
    plain = draw_views(image, "key", ViewSettings(16, **kept, **PLAIN))[0]
    assert torch.equal(plain, image)
    always = ViewSettings(16, **kept, **{**PLAIN, name: 1.0})
    assert found(draw_views(image, "key", always)[0], plain)
    half = ViewSettings(16, **kept, **{**PLAIN, name: 0.5})
    times = sum(not torch.equal(draw_views(image, f"key{number}", half)[0], plain) for number in range(200))
    assert 70 <= times <= 130


def test_jitter_can_turn_hues_alone():
    image = torch.tensor([200, 40, 40], dtype=torch.uint8)[:, None, None].expand(3, 8, 8).contiguous()
    kept = {"global_area": (1.0, 1.0), "aspect": (1.0, 1.0), "local_views": 0, **PLAIN, "jittered": 1.0}
    settings = ViewSettings(8, **kept, jitter=(0.0, 0.0, 0.0, 0.5))
    views = [draw_views(image, f"key{number}", settings)[0][:, 0, 0] for number in range(20)]
    assert len({tuple(view.tolist()) for view in views}) > 10
    for view in views:  # value and saturation stay
        assert abs(view.max().item() - 200) <= 2
        assert abs(view.min().item() - 40) <= 3


@pytest.mark.parametrize(("image", "patch", "local"), [(256, 16, 96), (224, 16, 96), (224, 14, 98), (72, 12, 36)])
def test_sizes_that_suit_a_tower(image, patch, local):
    config = type("Config", (), {"image_size": image, "patch_size": patch})
    settings = ViewSettings.for_tower(config, local_views=4)
    assert (settings.global_size, settings.local_size, settings.local_views) == (image, local, 4)
    assert MaskSettings.for_tower(config).count == (image // patch) ** 2 // 2


@pytest.mark.parametrize(
    ("name", "value"), [("local_views", -1), ("local_size", 0), ("local_area", (0.5, 0.1)), ("flip", 1.5)]
)
def test_settings_are_checked(name, value):
    with pytest.raises(ValueError, match=name):
        ViewSettings(**{"global_size": 16, name: value})


def mask_of(key: str, settings: MaskSettings) -> torch.Tensor:
    mask = torch.zeros(settings.grid**2, dtype=torch.bool)
    mask[draw_hidden(key, settings)] = True
    return mask


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize(("grid", "ratio"), [(16, 0.5), (6, 0.5), (3, 0.5), (7, 0.75), (4, 1.0)])
def test_masks_hide_an_exact_number(blocks, grid, ratio):
    settings = MaskSettings(grid, ratio, blocks)
    masks = torch.stack([mask_of(f"0/0/{index}", settings) for index in range(200)])
    assert (masks.sum(1) == round(ratio * grid**2)).all()
    places = draw_hidden("0/0/7", settings)
    assert torch.equal(places, masks[7].nonzero().squeeze(1))
    if ratio < 1:
        assert len({tuple(mask.tolist()) for mask in masks}) > 50
    if not blocks:
        assert (masks.float().mean(0) - settings.count / grid**2).abs().max() < 0.16  # 4.5 deviations of 200 draws


def test_blocks_hang_together():
    """A hidden patch's neighbor is hidden more often than where patches are drawn one by one."""
    together = []
    for blocks in (False, True):
        masks = [mask_of(f"{index}", MaskSettings(16, 0.5, blocks)).view(16, 16) for index in range(50)]
        together.append(np.mean([(mask[:, 1:] & mask[:, :-1]).float().mean().item() for mask in masks]))
    assert together[0] == pytest.approx(0.25, abs=0.02)
    assert together[1] > 0.3


@pytest.mark.parametrize("ratio", [0.0, 0.01, 1.1])
def test_masks_that_hide_nothing_are_refused(ratio):
    with pytest.raises(ValueError, match="ratio"):
        MaskSettings(4, ratio)


@pytest.mark.parametrize("uint8", [False, True])
def test_batches_have_them_in_every_epoch_anew(rows, processor, uint8):
    dataset = ImageTextDataset(rows, image_processor=processor.image_processor)
    additions = Views(SETTINGS), PatchMasks(MaskSettings(4))
    collator = ExtendedCollator(ImageTextCollator(processor, uint8=uint8), *additions)
    first, again = (collator([dataset[index] for index in (3, 5)]) for _ in range(2))
    assert first[GLOBAL].shape == (2, 3, 16, 16)
    assert first[LOCAL].shape == (2, 3, 3, 8, 8)
    assert first["hidden_patches"].shape == (2, 8)
    assert first["return_loss"] is True
    dataset.set_epoch(1)
    later = collator([dataset[index] for index in (3, 5)])
    for name in (GLOBAL, LOCAL, "hidden_patches"):
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], later[name])
    assert torch.equal(first["pixel_values"], later["pixel_values"])


def test_samples_without_image_or_key_are_refused():
    with pytest.raises(ValueError, match="key"):
        Views(SETTINGS)([{"pixels": picture()}])
    with pytest.raises(ValueError, match="embeddings"):
        Views(SETTINGS)([{"embedding": torch.zeros(3), "key": "0/0/0"}])
