"""The parts that the models are built of, each defined once."""

from vitrail.layers.attention import Attention
from vitrail.layers.block import Block, Stage
from vitrail.layers.drop_path import DropPath
from vitrail.layers.fast import registration as _registration  # noqa: F401  # registers the fast paths
from vitrail.layers.fusion import ConcatFusion, CrossAttentionFusion
from vitrail.layers.mlp import Mlp
from vitrail.layers.patch_merging import PatchMerging
from vitrail.layers.patches import PatchEmbed
from vitrail.layers.relative_position import relative_coords, relative_position_index
from vitrail.layers.tap import AttentionTap, TokenLayout
from vitrail.layers.token_learner import TokenFuser, TokenLearner
from vitrail.layers.windows import (
    merge_grid,
    merge_windows,
    partition_grid,
    partition_windows,
    same_region,
    shift_map,
    shifted_regions,
    unshift_map,
    window_mask,
)

__all__ = [
    "Attention",
    "AttentionTap",
    "Block",
    "ConcatFusion",
    "CrossAttentionFusion",
    "DropPath",
    "Mlp",
    "PatchEmbed",
    "PatchMerging",
    "Stage",
    "TokenFuser",
    "TokenLayout",
    "TokenLearner",
    "merge_grid",
    "merge_windows",
    "partition_grid",
    "partition_windows",
    "relative_coords",
    "relative_position_index",
    "same_region",
    "shift_map",
    "shifted_regions",
    "unshift_map",
    "window_mask",
]
