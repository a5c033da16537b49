"""What tokens of patches know of their place and of their pixels: linear probes, and boxes against boxes."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


def box_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union, (N,), of boxes and others one by one, each (N, 4): left, top, right, bottom.

    0 where both are empty.
    """
    corner, far = np.maximum(boxes[:, :2], others[:, :2]), np.minimum(boxes[:, 2:], others[:, 2:])
    shared = np.prod(np.maximum(far - corner, 0), axis=1)
    areas = sum(np.prod(np.maximum(one[:, 2:] - one[:, :2], 0), axis=1) for one in (boxes, others))
    return shared / np.maximum(areas - shared, np.finfo(np.float64).tiny)


def mean_iou(predicted: np.ndarray, labels: np.ndarray, classes: int) -> float:
    """The mean over the classes that occur, in one or the other, of the intersection over union of all their pixels.

    Args:
        predicted, labels: whole numbers below `classes`, of one shape.
    """
    table = np.bincount(labels.ravel().astype(np.int64) * classes + predicted.ravel(), minlength=classes**2)
    table = table.reshape(classes, classes)
    right = np.diag(table)
    union = table.sum(0) + table.sum(1) - right
    return float((right[union > 0] / union[union > 0]).mean())


def position_r2(tokens: torch.Tensor, l2: float = 1e-3) -> float:
    """How well a token's own column and row are read from it: R² of ridge regression, the mean of the two.

    Fitted on the first half of the images, measured on the second. 1: exactly; 0: no better than the middle.

    Args:
        tokens: (N, T, D), row by row of a square grid, T = side².
        l2: strength of the regularisation, of standardised features and per example.

    Raises:
        ValueError: fewer than two images, or no square grid.
    """
    images, count, _ = tokens.shape
    side = round(count**0.5)
    if images < 2 or side**2 != count:
        raise ValueError(f"position_r2 needs two images of a square grid, got {images} of {count} tokens")
    places = torch.cartesian_prod(*(torch.linspace(-1, 1, side, dtype=torch.float64),) * 2)
    half = images // 2
    train, test = (part.flatten(0, 1).double().cpu() for part in (tokens[:half], tokens[half:]))
    mean, std = train.mean(0), train.std(0) + 1e-9
    train, test = (train - mean) / std, (test - mean) / std
    wanted, truth = places.repeat(half, 1), places.repeat(images - half, 1)
    gram = train.T @ train / len(train) + l2 * torch.eye(train.shape[1], dtype=torch.float64)
    found = test @ torch.linalg.solve(gram, train.T @ wanted / len(train))
    return float((1 - (found - truth).square().mean(0) / truth.square().mean(0)).mean())


class SegmentationProbe(nn.Module):
    """Batch normalization and a linear map from tokens to classes, whose scores are enlarged to pixels.

    The probe of DINOv2 and TIPS (arXiv 2304.07193, sec. 7.4; 2410.16512), as SigLIP 2 takes it.
    """

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Scores (N, classes, *size) of tokens (N, T, D) of a square grid."""
        side = round(tokens.shape[1] ** 0.5)
        scores = self.head(self.norm(tokens.flatten(0, 1)).view(tokens.shape))
        scores = scores.transpose(1, 2).unflatten(2, (side, side))
        return F.interpolate(scores, size, mode="bilinear", align_corners=False)


def segmentation_probe(
    tokens: torch.Tensor,
    labels: torch.Tensor,
    classes: int,
    *,
    steps: int = 600,
    batch_size: int = 64,
    learning_rate: float = 1e-2,
    seed: int = 0,
) -> SegmentationProbe:
    """Train a probe of frozen tokens, on their device; in eval mode when this returns.

    Args:
        tokens: (N, T, D), row by row of a square grid.
        labels: the class of each pixel, (N, H, W) whole numbers below `classes`.
        steps, batch_size, learning_rate: of AdamW, with a cosine; the cross-entropy is taken over all pixels.
        seed: of the head and of the batches.
    """
    device, size = tokens.device, (labels.shape[1], labels.shape[2])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe = SegmentationProbe(tokens.shape[-1], classes).to(device)
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randint(len(tokens), (batch_size,), generator=draw)
        scores = probe(tokens[rows.to(device)], size)
        optimizer.zero_grad()
        F.cross_entropy(scores, labels[rows].to(device).long()).backward()
        optimizer.step()
        schedule.step()
    return probe.eval()


@torch.no_grad()
def segmentation_miou(probe: SegmentationProbe, tokens: torch.Tensor, labels: torch.Tensor) -> float:
    """mIoU of a probe on other images, tokens (N, T, D) and labels (N, H, W)."""
    size, classes = (labels.shape[1], labels.shape[2]), probe.head.out_features
    found = torch.cat([probe(some, size).argmax(1).cpu() for some in tokens.split(256)])
    return mean_iou(found.numpy(), labels.cpu().numpy(), classes)
