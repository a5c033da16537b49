"""Metrics of boxes, pixels and places against naive versions, and probes on features whose answer is known."""

import numpy as np
import pytest
import torch

from modeling_siglip_ext.evaluation.metrics.dense import (
    box_iou,
    mean_iou,
    position_r2,
    segmentation_miou,
    segmentation_probe,
)


def test_iou_of_boxes_against_counted_pixels():
    draw = np.random.default_rng(0)
    boxes = np.sort(draw.integers(0, 20, (40, 2, 2, 2)), axis=2).transpose(1, 0, 2, 3).reshape(2, 40, 4)
    found = box_iou(boxes[0].astype(float), boxes[1].astype(float))
    for one, other, value in zip(boxes[0], boxes[1], found):
        masks = np.zeros((2, 20, 20), bool)
        for mask, (left, top, right, bottom) in zip(masks, (one, other)):
            mask[top:bottom, left:right] = True
        union = (masks[0] | masks[1]).sum()
        assert value == pytest.approx((masks[0] & masks[1]).sum() / union if union else 0.0)
    assert box_iou(np.zeros((1, 4)), np.zeros((1, 4))) == 0


def test_a_box_the_wrong_way_round_has_no_area():
    assert box_iou(np.array([[0.8, 0.8, 0.2, 0.2]]), np.array([[0.0, 0.0, 1.0, 1.0]])) == 0


def test_mean_iou_against_loops():
    draw = np.random.default_rng(1)
    labels, predicted = draw.integers(0, 4, (2, 5, 6, 6))  # a fifth class never occurs
    values = []
    for kind in range(4):
        one, other = labels == kind, predicted == kind
        values.append((one & other).sum() / (one | other).sum())
    assert mean_iou(predicted, labels, 5) == pytest.approx(np.mean(values))


def test_the_place_of_a_token():
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(40, 16, 6, generator=draw)
    rows = torch.arange(16) // 4
    assert abs(position_r2(noise)) < 0.1, "nothing is known"
    one_way = torch.cat([noise, rows.float().expand(40, 16)[..., None]], -1)
    assert position_r2(one_way) == pytest.approx(0.5, abs=0.05), "the row is known, the column is not"
    both = torch.cat([one_way, (torch.arange(16) % 4).float().expand(40, 16)[..., None]], -1)
    assert position_r2(both) == pytest.approx(1.0, abs=1e-3)
    with pytest.raises(ValueError, match="square grid"):
        position_r2(noise[:, :15])


def test_a_probe_reads_classes_that_are_in_the_tokens():
    draw = torch.Generator().manual_seed(0)
    kinds = torch.randint(3, (80, 4, 4), generator=draw)
    kinds = kinds[:, :1, :1].expand(80, 4, 4).clone()
    kinds[:40, :, 2:] = 0
    labels = kinds.repeat_interleave(4, 1).repeat_interleave(4, 2).to(torch.uint8)
    known = torch.eye(3)[kinds.flatten(1)] @ torch.randn(3, 8, generator=draw)
    known = known + 0.05 * torch.randn(known.shape, generator=draw)
    state = torch.get_rng_state()
    probe = segmentation_probe(known[::2], labels[::2], 3, steps=200)
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers are left alone"
    assert segmentation_miou(probe, known[1::2], labels[1::2]) > 0.9
    unknown = torch.randn(known.shape, generator=draw)
    assert (
        segmentation_miou(segmentation_probe(unknown[::2], labels[::2], 3, steps=200), unknown[1::2], labels[1::2])
        < 0.4
    )
