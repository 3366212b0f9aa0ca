"""``vitrail.merge_tokens``: a trained ViT that merges similar tokens, without training."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence

from vitrail.models.base import VisionModel


def merge_tokens(model: VisionModel, r: int | Sequence[int]) -> VisionModel:
    """Copy a model so that each block merges its most similar pairs of patch tokens.

    The copy shares the weights of the model, and its state dict has the same names. Class, register and distillation
    tokens are never merged.

    Args:
        model: A ViT, trained or not; it stays as it is.
        r: Pairs of tokens that each block merges, or a list with one number a block. A block merges at most half of
            the patch tokens that are left. 0 gives the plain model.

    Returns:
        The copy. Its setting ``token_merging`` is r, which saving keeps.

    Raises:
        ConfigError: A number below 0, a list of another length, or a model that cannot merge tokens.

    Source: Bolya et al. 2023, arXiv:2210.09461.
    """
    shared = {id(tensor): tensor for tensor in itertools.chain(model.parameters(), model.buffers())}
    merged = copy.deepcopy(model, shared)
    merged.set_token_merging(r)
    return merged
