"""Contrastive losses over the global batch: `sigmoid_loss` (SigLIP) and `softmax_loss` (CLIP, LiT).

Both have an `eager` implementation, the papers' expression, and a `tiled` one with memory O(B * D) instead of O(B^2);
both see the texts of all ranks of a process group, gathered at once or passed around a ring.
"""

from .contrastive import sigmoid_loss, softmax_loss


__all__ = ["sigmoid_loss", "softmax_loss"]
