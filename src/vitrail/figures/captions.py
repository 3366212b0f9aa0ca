"""Captions below the frames of a video: a class, and its probability as a bar and in per cent."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from vitrail.figures.fonts import find_font

Pixels = npt.NDArray[np.uint8]
# Shortest side of a frame on which a caption is legible.
_LEAST = 240
TITLE_HEIGHT, _TITLE_LETTERS = 22, 13
_BAR, _INK, _PAPER, _TRACK = (0, 114, 178), (27, 31, 36), (255, 255, 255), (225, 229, 234)


def title_strip(name: str, width: int) -> Pixels:
    """Draw a name on white, shape ``(TITLE_HEIGHT, width, 3)``."""
    strip = Image.new("RGB", (width, TITLE_HEIGHT), _PAPER)
    font = ImageFont.truetype(find_font(name), _TITLE_LETTERS)
    ImageDraw.Draw(strip).text((0, TITLE_HEIGHT // 2), name, fill=_INK, font=font, anchor="lm")
    return np.asarray(strip)


class Captions:
    """Captions for the frames of one video.

    Args:
        size: Height and width of its frames; small ones are enlarged by a whole factor.
        names: The classes.
    """

    def __init__(self, size: tuple[int, int], names: Sequence[str]) -> None:
        self.factor = -(-_LEAST // min(size))
        height, width = (self.factor * side for side in size)
        self._letters = max(14, min(height, width) // 16)
        self._strip = 2 * self._letters
        self.size = height + self._strip, width
        self._font = ImageFont.truetype(find_font("".join(names)), self._letters)
        # Frames of one clip differ in their time alone.
        self._draw = lru_cache(maxsize=4)(self._draw_strip)

    def below(self, frame: Pixels, name: str, probability: float, time: float) -> Pixels:
        """Put a caption below an enlarged frame.

        Args:
            frame: Shape ``(H, W, 3)``.
            name: The class.
            probability: Probability of the class.
            time: Seconds from the start of the video.
        """
        return np.concatenate([frame, self._draw(name, probability, f"{time:.1f} s")])

    def _draw_strip(self, name: str, probability: float, time: str) -> Pixels:
        width, pad = self.size[1], self._letters // 2
        strip = Image.new("RGB", (width, self._strip), _PAPER)
        draw = ImageDraw.Draw(strip)
        bar = max(3, self._strip // 8)
        draw.rectangle((0, 0, width, bar - 1), fill=_TRACK)
        draw.rectangle((0, 0, max(0, round(probability * width) - 1), bar - 1), fill=_BAR)
        middle = (self._strip + bar) // 2
        right = f"{probability:.0%}  {time}"
        room = width - 3 * pad - self._font.getlength(right)
        draw.text((pad, middle), self._fitted(name, room), fill=_INK, font=self._font, anchor="lm")
        draw.text((width - pad, middle), right, fill=_INK, font=self._font, anchor="rm")
        return np.asarray(strip)

    def _fitted(self, name: str, room: float) -> str:
        """Cut a name to the room that it has, with an ellipsis at its end."""
        shown = name
        while len(shown) > 1 and self._font.getlength(shown) > room:
            shown = f"{shown.rstrip('…')[:-1]}…"
        return shown
