"""Candidates of an export that merge tokens: how many pairs a block merges, and the model that does."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from vitrail.deploy.export.sizes import ANY, ImageSize
from vitrail.errors import ConfigError
from vitrail.models.token_merging import merge_tokens
from vitrail.runs.trained import TrainedModel

# Shares of the patch tokens that all blocks together merge by default: 8 and 13 a block for 196 tokens and 12 blocks,
# as in the paper.
SHARES = (0.5, 0.8)


def merge_counts(trained: TrainedModel, shrink: Sequence[int] | None, size: ImageSize) -> list[int]:
    """Return the pairs of tokens that each block of a candidate merges, one number a candidate, ascending.

    Args:
        trained: The trained model, at the size of the export.
        shrink: The numbers; empty for those of :data:`SHARES`; None for no such candidate.
        size: The export's image size.

    Raises:
        ConfigError: A number below 1, pixels of any size, or a model that cannot merge tokens.
    """
    if shrink is None:
        return []
    if size == ANY:
        raise ConfigError("--shrink fixes the number of tokens; give a fixed --image-size instead of any")
    if any(r < 1 for r in shrink):
        raise ConfigError(f"--shrink takes pairs of tokens to merge in each block, at least 1, got {min(shrink)}")
    counts = sorted(set(shrink or default_counts(trained)))
    try:
        merge_tokens(trained.model, counts[0])
    except ConfigError as error:
        raise ConfigError(f"--shrink is not possible: {error}") from error
    return counts


def default_counts(trained: TrainedModel) -> list[int]:
    """Return the pairs a block that merge the :data:`SHARES` of the patch tokens in all blocks together."""
    blocks = len(trained.model.mixers())
    shapes = [(1, len(stream.bands), *stream.img_size) for stream in trained.card.streams.values()]
    with torch.no_grad():
        _, height, width, _ = trained.model.embed(*map(torch.zeros, shapes))[0].shape
    return [max(1, round(share * height * width / blocks)) for share in SHARES]


def merging(trained: TrainedModel, r: int) -> TrainedModel:
    """Return a trained model whose blocks merge r pairs of tokens, with the same weights; itself for 0."""
    if not r:
        return trained
    card = dataclasses.replace(trained.card, settings={**trained.card.settings, "token_merging": r})
    return TrainedModel(merge_tokens(trained.model, r), trained.normalize, card)
