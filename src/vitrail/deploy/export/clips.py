"""Stored form of a run's clips, and the resize of evaluation to the model's size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from vitrail.config.data import DataConfig
from vitrail.data.dataset import ImageData
from vitrail.data.evaluation_crop import size_to_read
from vitrail.deploy.export.stored import Stored, StoredPixels
from vitrail.runs.trained import ModelCard


@dataclass(frozen=True)
class StoredClips(StoredPixels):
    """Frames as video files hold them, each resized as a picture.

    Attributes:
        frames: Frames of a clip.
        rate: Frames a second around the middle of the video; None spreads them evenly over it.
    """

    frames: int
    rate: float | None

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Shape of a batch; None where free."""
        return (None, len(self.bands), self.frames, None, None)

    def describe(self) -> dict[str, Any]:
        """Describe the choice of frames and their resize, for export.json."""
        middle = (self.frames - 1) / 2
        rule = (
            f"frame i of {self.frames} is the one shown at (i + 0.5) / {self.frames} of the duration"
            if self.rate is None
            else f"frame i of {self.frames} is the one shown (i - {middle:g}) / {self.rate:g} s after the middle; the "
            "first or last beyond the ends"
        )
        return {**super().describe(), "frames": self.frames, "frames_per_second": self.rate, "sampling": rule}


def stored_clips(card: ModelCard, data: DataConfig, clips: ImageData) -> tuple[dict[str, Stored], str]:
    """Describe the stored frames of a run of clips, whatever its source; see :func:`stored_pixels`."""
    frames = card.img_size[0]
    found: dict[str, Stored] = {}
    for name, stream in card.streams.items():
        size = size_to_read(stream.img_size, card.crop_pct)[1:]
        found[name] = StoredClips(
            stream.bands, torch.uint8, (0.0,), (255.0,), "levels", card.resize, size, frames, data.video.fps
        )
    return found, ""
