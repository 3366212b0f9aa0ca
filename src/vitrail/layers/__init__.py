"""The parts that the models are built of, each defined once."""

from vitrail.layers.attention import Attention
from vitrail.layers.drop_path import DropPath
from vitrail.layers.fusion import ConcatFusion, CrossAttentionFusion
from vitrail.layers.mlp import Mlp
from vitrail.layers.patch_merging import PatchMerging
from vitrail.layers.patches import PatchEmbed
from vitrail.layers.tap import AttentionTap, TokenLayout
from vitrail.layers.token_learner import TokenFuser, TokenLearner

__all__ = [
    "Attention",
    "AttentionTap",
    "ConcatFusion",
    "CrossAttentionFusion",
    "DropPath",
    "Mlp",
    "PatchEmbed",
    "PatchMerging",
    "TokenFuser",
    "TokenLayout",
    "TokenLearner",
]
