"""Scores of classes that explanations follow: logits of an input, or of the points that are predicted as a part."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def predicted_points(logits: Tensor) -> Tensor:
    """Mark the points that are predicted as each part.

    Args:
        logits: Logits of points, shape ``(B, N, K)``; NaN where there is no point.

    Returns:
        Shape ``(B, N, K)``, one True for each point.
    """
    real = ~logits[..., :1].isnan()
    return F.one_hot(logits.argmax(dim=-1), logits.shape[-1]).bool() & real


def total_score(logits: Tensor, target: Tensor) -> Tensor:
    """Compute the sum over the inputs of the score of a class, that an explanation follows; a number.

    The score of a part is the sum of its logits over the points that are predicted as it.

    Args:
        logits: Shape ``(B, K)``, or of points ``(B, N, K)``.
        target: The class of each input, shape ``(B,)``.

    Source: Vinogradova et al. 2020, arXiv:2002.11434 (Seg-Grad-CAM).
    """
    if logits.ndim == 3:
        logits = logits.masked_fill(~predicted_points(logits.detach()), 0.0).sum(dim=1)
    return logits.gather(1, target[:, None]).sum()


def main_class(logits: Tensor) -> Tensor:
    """Return the predicted class of each input, shape ``(B,)``; of points the part with the most of them."""
    return logits.argmax(dim=1) if logits.ndim == 2 else predicted_points(logits).sum(dim=1).argmax(dim=1)
