"""Groups of tokens of a layer with windows or grids: members, regions, mask."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitrail.explain.capture.groups import group_members
from vitrail.explain.capture.record import CapturedMixing
from vitrail.layers.tap import TokenLayout
from vitrail.layers.windows import partition_map, shifted_regions, window_mask
from vitrail.models.base import VisionModel

Pair = tuple[int, int]


@dataclass(frozen=True)
class Groups:
    """Groups of tokens that attend to each other in one layer.

    Attributes:
        name: The layer's name.
        layout: Grid, group size, shift and padding, as the layer reported them.
        stride: Pixels per token.
        members: Row-major index on the grid of each token of each group, shape ``(groups, n)``; -1 is padding.
        regions: Region label of each token of the padded, rolled map, shape ``(H', W')``; tokens of a group attend
            to each other where their labels are equal; -1 is padding.
        labels: ``regions`` by group, shape ``(groups, n)``.
        mask: True where a query may not attend to a key, shape ``(groups, n, n)``.
    """

    name: str
    layout: TokenLayout
    stride: Pair
    members: Tensor
    regions: Tensor
    labels: Tensor
    mask: Tensor

    @property
    def grid(self) -> Pair:
        """Height and width of the map before padding."""
        assert self.layout.query_grid is not None
        return self.layout.query_grid

    @property
    def padded(self) -> Pair:
        """Height and width of the map with its padding."""
        return self.grid[0] + self.layout.padding[0], self.grid[1] + self.layout.padding[1]

    @property
    def window(self) -> Pair:
        """Height and width of a group."""
        assert self.layout.window is not None
        return self.layout.window

    def on_grid(self, values: Tensor) -> Tensor:
        """Scatter a value of each token of each group, ``(groups, n)``, to the grid, ``(H, W)``."""
        out = values.new_zeros(self.grid[0] * self.grid[1])
        real = self.members >= 0
        out[self.members[real]] = values[real]
        return out.view(self.grid)

    def group_map(self) -> Tensor:
        """Compute the group index of each token of the grid, shape ``(H, W)``."""
        return self.on_grid(torch.arange(len(self.members))[:, None].expand_as(self.members))


def group_tokens(name: str, layout: TokenLayout, stride: Pair, mask_padding: bool = True) -> Groups:
    """Compute the groups of a layer from its layout, with the functions that the layer itself calls.

    Args:
        name: The layer's name.
        layout: Layout that the layer reported; kind "window" or "grid".
        stride: Pixels per token.
        mask_padding: Whether padded tokens are masked as keys.
    """
    assert layout.query_grid is not None
    assert layout.window is not None
    assert layout.kind in ("window", "grid")
    grid = layout.query_grid
    # The padding of grids is always masked.
    regions = shifted_regions(grid, layout.padding, layout.shift, mask_padding or layout.kind == "grid")
    members = group_members(layout)
    labels = partition_map(regions[None, ..., None], layout.window, layout.kind).squeeze(-1)
    return Groups(name, layout, stride, members, regions, labels, _mask_of(layout, mask_padding))


def _mask_of(layout: TokenLayout, mask_padding: bool) -> Tensor:
    """Compute where a query of a group may not attend to a key, shape ``(groups, n, n)``, without prefix tokens."""
    assert layout.query_grid is not None
    assert layout.window is not None
    assert layout.kind in ("window", "grid")
    masked = mask_padding or layout.kind == "grid"
    return window_mask(layout.query_grid, layout.window, layout.shift, masked, kind=layout.kind)


def masks_padding(layer: nn.Module) -> bool:
    """Return whether padded tokens are masked as keys in a layer."""
    return bool(getattr(layer, "mask_padding", True))


def uniform_attention(model: VisionModel, step: CapturedMixing) -> Tensor:
    """Compute uniform attention over the keys that are not masked, for a layer with attention.

    Args:
        model: The model of the layer.
        step: The layer.

    Returns:
        Shape ``(groups, 1, queries, keys)``, the same for all images and heads; one group for layers without groups.
    """
    layout, weights = step.layout, step.weights
    if layout.kind in ("window", "grid"):
        assert layout.query_grid is not None
        groups, n = group_members(layout).shape
        visible, P = torch.ones(groups, n, n), layout.num_prefix
        if any(layout.padding) or any(layout.shift):
            visible[:, P:, P:] = (~_mask_of(layout, masks_padding(model.get_submodule(step.name)))).float()
        visible = visible.to(weights.device)
    else:
        visible = weights.new_ones(1, *weights.shape[2:], dtype=torch.float32)
    return (visible / visible.sum(dim=-1, keepdim=True).clamp_min(1))[:, None]


def token_attention(step: CapturedMixing, groups: Groups, index: int) -> Tensor:
    """Scatter the attention of one token to the grid.

    Args:
        step: The layer's weights for one image.
        groups: Groups of the layer.
        index: Row-major index of the query on the grid.

    Returns:
        Weights, shape ``(heads, H, W)``; zero outside of the query's group.
    """
    ((group, query),) = (groups.members == index).nonzero().tolist()
    weights, members = step.weights[group, :, query], groups.members[group]
    maps = weights.new_zeros(weights.shape[0], groups.grid[0] * groups.grid[1])
    maps[:, members[members >= 0]] = weights[:, members >= 0]
    return maps.view(-1, *groups.grid)


def central_token(grid: Pair) -> int:
    """Return the row-major index of the token at the centre of a grid."""
    return (grid[0] // 2) * grid[1] + grid[1] // 2
