"""Kinds of input: what the inputs of a family's models are.

Other code asks a model for its streams, grids and token layouts, which have as many axes as the modality; it asks for
the modality itself only to choose data, and to name an input in a message.
"""

from __future__ import annotations

from typing import NamedTuple


class Modality(NamedTuple):
    """One kind of input.

    Attributes:
        name: Its key in a batch, also the name of a model's first stream.
        noun: Its name in messages, in the plural.
        shape: Shape of a batch.
        axes: Axes of the grid of tokens.
        settings: Settings that the config of every family has, since other code sets or reads them.
    """

    name: str
    noun: str
    shape: str
    axes: tuple[str, ...]
    settings: tuple[str, ...]


IMAGE = Modality(
    "image", "images", "(B, C, H, W)", ("row", "column"), ("img_size", "in_chans", "num_classes", "global_pool")
)
VIDEO = Modality(
    "video",
    "clips",
    "(B, C, T, H, W)",
    ("time", "row", "column"),
    ("num_frames", "img_size", "in_chans", "num_classes", "global_pool"),
)
POINTS = Modality(
    "points", "point clouds", "(B, N, 3)", ("point",), ("num_points", "in_chans", "num_classes", "global_pool")
)
MODALITIES = {modality.name: modality for modality in (IMAGE, VIDEO, POINTS)}
