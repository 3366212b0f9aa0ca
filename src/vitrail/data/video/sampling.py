"""Times of the frames of a clip: one random clip in training, evenly spaced views in evaluation.

Source: views and crops of evaluation: Wang et al. 2018, arXiv:1711.07971, section 5.1; one frame from each of equal
segments: Wang et al. 2016, arXiv:1608.00859, section 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

# Where a clip lies: a share of its room in the video, or of each frame's segment.
Position = float | Sequence[float]


def clip_times(count: int, start: float, end: float, rate: float | None, at: Position = 0.5) -> list[float]:
    """Compute the times of the frames of a clip.

    Args:
        count: Number of frames.
        start: Start of the part of the video that is sampled, in seconds.
        end: End of that part.
        rate: Frames a second; None takes one frame from each of ``count`` equal segments.
        at: Position: with a rate, that of the clip, 0 at the start, 1 at the end. Without one, where each frame lies in
            its segment; one number for all or one each.

    Returns:
        Times in seconds, in order; with a rate those of a clip that is longer than its part lie outside of it.
    """
    if rate is None:
        shares = [at] * count if isinstance(at, float | int) else at
        step = (end - start) / count
        return [start + (i + share) * step for i, share in enumerate(shares)]
    assert isinstance(at, float | int), "with a rate the whole clip moves"
    room = end - start - count / rate
    middle = (start + end) / 2 + (at - 0.5) * max(room, 0.0)
    return [middle + (i - (count - 1) / 2) / rate for i in range(count)]


def view_positions(views: int, rate: float | None) -> list[float]:
    """Compute the position of each view of a video.

    Args:
        views: Number of views.
        rate: As for :func:`clip_times`.

    Returns:
        With a rate from the start of the video to its end, of a single view its middle; without one evenly spaced
        inside of the segments.
    """
    if rate is None or views == 1:
        return [(i + 0.5) / views for i in range(views)]
    return [i / (views - 1) for i in range(views)]


def random_position(count: int, rate: float | None, seed: int) -> Position:
    """Sample the position of a training clip.

    Args:
        count: Number of frames.
        rate: As for :func:`clip_times`: with a rate the clip's start is random, without one each frame in its segment.
        seed: Decides the position.
    """
    rng = np.random.default_rng(seed)
    return rng.random(count).tolist() if rate is None else float(rng.random())


def average_views(outputs: Tensor, inputs: int) -> Tensor:
    """Average outputs over the views of each input.

    Args:
        outputs: Shape ``(B * V, ...)``, the views of an input one after the other.
        inputs: B.

    Returns:
        Shape ``(B, ...)``.
    """
    views = len(outputs) // inputs
    return outputs if views == 1 else outputs.view(inputs, views, *outputs.shape[1:]).mean(dim=1)
