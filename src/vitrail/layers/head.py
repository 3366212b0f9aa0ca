"""From the last tokens to one vector an image."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Pool = Literal["avg", "max", "avgmax", ""]
POOLS = ("avg", "max", "avgmax", "")


def pool_tokens(x: Tensor, pool: str, dims: tuple[int, ...]) -> Tensor:
    """Pool tokens over their positions.

    Args:
        x: Tokens, of any shape.
        pool: "avg" for the mean, "max" for the largest value of each channel, "avgmax" for the mean of the two, "" for
            the tokens as they are.
        dims: The dimensions of the positions, which are pooled away.
    """
    if not pool:
        return x
    if pool == "avg":
        return x.mean(dim=dims)
    largest = x.amax(dim=dims)
    return largest if pool == "max" else 0.5 * (largest + x.mean(dim=dims))
