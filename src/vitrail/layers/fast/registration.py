"""Loads all fast paths, each of which registers itself."""

from vitrail.layers.fast import (
    attention,
    gelu,
    mbconv,
    mlp,
    patches,
    positions,
    relative_position,
    vector_edges,
    window_attention,
)

__all__ = [
    "attention",
    "gelu",
    "mbconv",
    "mlp",
    "patches",
    "positions",
    "relative_position",
    "vector_edges",
    "window_attention",
]
