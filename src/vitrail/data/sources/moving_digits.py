"""Clips of handwritten digits that move in one of eight directions: the class is the direction, not the digit."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.data.sources.base import ImageSource
from vitrail.data.sources.digits import stored_digits
from vitrail.data.thumbnails import Thumbnails, thumbnails

# Clockwise; the one four further is the opposite.
DIRECTIONS = ("right", "down-right", "down", "down-left", "left", "up-left", "up", "up-right")
# Side of a digit, and its way from the first frame to the last, over the side of a frame, in which all stays.
_DIGIT, _WAY = 0.45, 0.4
# Half of the range of the middle of the way around the middle of the frame.
_JITTER = 0.07


class MovingDigitsSource(ImageSource):
    """scikit-learn's digits, each in a clip of every direction; clips of one digit are a group.

    The middle of each way is drawn at random by the number of the clip, so that no single frame shows the direction.

    Args:
        size: Frames of a clip, and their height and width.
    """

    in_memory = True
    fixed = True
    copies_grouped = True

    def __init__(self, size: tuple[int, ...]) -> None:
        self._digits = torch.from_numpy(stored_digits().images).float()[:, None] / 16.0
        self.num_frames, *self.size = size
        count = len(self._digits) * len(DIRECTIONS)
        self.classes = DIRECTIONS
        self.bands = {"video": ("gray",)}
        self.keys = [f"digits/{i // len(DIRECTIONS):04d}/{DIRECTIONS[i % len(DIRECTIONS)]}" for i in range(count)]
        self.groups = [f"{i // len(DIRECTIONS):04d}" for i in range(count)]
        self.targets: npt.NDArray[np.int64] = np.arange(count, dtype=np.int64) % len(DIRECTIONS)
        self.given_split = [""] * count
        self._middles = torch.from_numpy(np.random.default_rng(0).uniform(-_JITTER, _JITTER, (count, 2))).float()

    def read(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return clips ``(B, 1, T, H, W)`` in 0..1."""
        rows = torch.as_tensor(indices)
        angles = torch.from_numpy(self.targets)[rows] * (2 * math.pi / len(DIRECTIONS))
        ways = torch.stack([angles.cos(), angles.sin()], dim=1) * _WAY
        times = torch.linspace(-0.5, 0.5, self.num_frames) if self.num_frames > 1 else torch.zeros(1)
        # Columns and rows of the middle of the digit, in sides of the frame from its middle.
        centres = self._middles[rows][:, None] + ways[:, None] * times[:, None]
        transforms = torch.zeros(len(rows), self.num_frames, 2, 3)
        transforms[..., 0, 0] = transforms[..., 1, 1] = 1 / _DIGIT
        transforms[..., 2] = -2 * centres / _DIGIT
        digits = self._digits[rows // len(DIRECTIONS)].repeat_interleave(self.num_frames, 0)
        grid = F.affine_grid(transforms.flatten(0, 1), [len(digits), 1, *self.size], align_corners=False)
        frames = F.grid_sample(digits, grid, align_corners=False)
        return {"video": frames.view(len(rows), self.num_frames, 1, *self.size).transpose(1, 2)}

    def thumbnails(self) -> Thumbnails:
        """Return the digits of the clips for the search of copies, shape ``(N, 32, 32)``."""
        return thumbnails(self._digits, stretch=False).repeat(len(DIRECTIONS), axis=0)

    def original_size(self, index: int) -> tuple[int, int]:
        """Return height and width of a frame."""
        return self.size[0], self.size[1]

    def digest(self, index: int) -> bytes:
        """Hash the digit and its direction, independent of the requested size and number of frames."""
        content = self._digits[index // len(DIRECTIONS)].numpy().tobytes()
        return hashlib.sha256(content + self.keys[index].encode()).digest()
