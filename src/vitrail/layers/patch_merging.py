"""Patch merging: half the grid, twice the width, between the stages of a hierarchy."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.errors import ShapeError
from vitrail.layers.modes import known
from vitrail.layers.norms import make_norm
from vitrail.layers.shapes import grid_size, padding_to_multiple
from vitrail.layers.symbolic import one_node
from vitrail.layers.tap import AttentionTap, TokenLayout

# The parents of a merged token as (row, column), in the order in which they are concatenated.
PARENTS = ((0, 0), (1, 0), (0, 1), (1, 1))


def parent_weights(grid: tuple[int, int]) -> Tensor:
    """Compute the weight of each 2 x 2 parent in a merged token: the mean over those that exist.

    Args:
        grid: Height and width before merging; an odd one is padded at the bottom or right.

    Returns:
        Weights, shape ``(ceil(H / 2) * ceil(W / 2), 4)``, row-major over the merged grid, columns as in
        :data:`PARENTS`; zero for parents in the padding; each row sums to one.
    """
    H, W = grid
    real = F.pad(torch.ones(H, W), (0, padding_to_multiple(W, 2), 0, padding_to_multiple(H, 2)))
    weights = torch.stack([real[row::2, column::2] for row, column in PARENTS], dim=-1).flatten(0, 1)
    return weights / weights.sum(dim=-1, keepdim=True)


def report_merge(tap: AttentionTap, x: Tensor) -> None:
    """Report the merging of the tokens ``x``, shape ``(B, H, W, C)``, 2 x 2 to one.

    The weights have the shape ``(B, queries, 4)``: the columns are the parents of :func:`parent_weights`, not
    the whole grid before merging. The layout gives both grids, ``window=(2, 2)`` and the padding.
    """
    B, H, W = x.shape[:3]
    layout = TokenLayout(
        "merge",
        query_grid=grid_size((H, W), (2, 2)),
        key_grid=(H, W),
        window=(2, 2),
        padding=(padding_to_multiple(H, 2), padding_to_multiple(W, 2)),
    )
    tap.report(parent_weights((H, W)).to(x).expand(B, -1, -1), layout)


class PatchMerging(nn.Module):
    """Concatenate 2 x 2 neighbours, normalise and project: ``(H, W, C)`` to ``(H / 2, W / 2, 2 C)``.

    Args:
        dim: Channels before merging.
        out_dim: Channels after; ``2 * dim`` when not given.
        norm_layer: Name of the norm, see :mod:`vitrail.layers.norms`.

    Source: Liu et al. 2021, arXiv:2103.14030, section 3.1; order of the neighbours as in the authors' code.
    """

    def __init__(self, dim: int, out_dim: int | None = None, norm_layer: str = "layernorm") -> None:
        super().__init__()
        self.dim = dim
        self.norm = make_norm(norm_layer, 4 * dim, 1e-5)
        self.reduction = nn.Linear(4 * dim, 2 * dim if out_dim is None else out_dim, bias=False)
        self.tap = AttentionTap()

    @one_node
    def forward(self, x: Tensor) -> Tensor:
        """Merge.

        Args:
            x: Tokens, shape ``(B, H, W, C)``; where H or W is odd, zeros are appended at the bottom or right.

        Returns:
            Tokens, shape ``(B, ceil(H / 2), ceil(W / 2), out_dim)``.

        Raises:
            ShapeError: Not four dimensions of the right width.
        """
        if x.ndim != 4 or x.shape[-1] != self.dim:
            raise ShapeError(f"expected tokens of shape (B, H, W, {self.dim}), got {tuple(x.shape)}")
        if self.tap.armed:
            report_merge(self.tap, x)
        bottom, right = padding_to_multiple(x.shape[1], 2), padding_to_multiple(x.shape[2], 2)
        if not known(bottom == 0) or not known(right == 0):
            x = F.pad(x, (0, 0, 0, right, 0, bottom))
        neighbours = torch.cat([x[:, row::2, column::2] for row, column in PARENTS], dim=-1)
        out: Tensor = self.reduction(self.norm(neighbours))
        return out
