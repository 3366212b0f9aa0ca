"""Key maps of Swin, whose names here are timm's: the authors', timm's, torchvision's and transformers'."""

from __future__ import annotations

from vitrail.weights.huggingface import block_rules
from vitrail.weights.rules import Drop, KeyMap, Rename, Rule

# More stages than any published Swin has.
_MOST_STAGES = 8

# Patch merging at the end of stage i belongs to stage i + 1 here; last first, so that none collide.
_LATER_DOWNSAMPLE = tuple(
    Rename(rf"layers\.{i}\.downsample\.(.*)", rf"layers.{i + 1}.downsample.\1") for i in reversed(range(_MOST_STAGES))
)

_BUFFERS = Drop(r".*\.(attn_mask|relative_position_index)", "computed here, not learned")
_HEAD = Rename(r"head\.(weight|bias)", r"head.fc.\1")

_MICROSOFT: tuple[Rule, ...] = (_BUFFERS, Rename("absolute_pos_embed", "pos_embed"), *_LATER_DOWNSAMPLE, _HEAD)

_TORCHVISION: tuple[Rule, ...] = (
    _BUFFERS,
    Rename(r"features\.0\.0\.(.*)", r"patch_embed.proj.\1"),
    Rename(r"features\.0\.2\.(.*)", r"patch_embed.norm.\1"),
    *(
        Rename(rf"features\.{2 * i}\.((?:norm|reduction)\..*)", rf"layers.{i}.downsample.\1")
        for i in range(1, _MOST_STAGES)
    ),
    *(Rename(rf"features\.{2 * i + 1}\.(\d+\..*)", rf"layers.{i}.blocks.\1") for i in range(_MOST_STAGES)),
    Rename(r"(layers\..*\.mlp)\.0\.(.*)", r"\1.fc1.\2"),
    Rename(r"(layers\..*\.mlp)\.3\.(.*)", r"\1.fc2.\2"),
    _HEAD,
)

_HUGGINGFACE: tuple[Rule, ...] = (
    _BUFFERS,
    Rename(r"swin\.(.*)", r"\1"),
    Rename(r"embeddings\.mask_token", "mask_token"),
    Rename(r"embeddings\.patch_embeddings\.projection\.(.*)", r"patch_embed.proj.\1"),
    Rename(r"embeddings\.norm\.(.*)", r"patch_embed.norm.\1"),
    Rename(r"encoder\.(layers\..*)", r"\1"),
    *_LATER_DOWNSAMPLE,
    Rename(r"(layers\..*)\.attention\..*\.?relative_position_bias_table", r"\1.attn.relative_position_bias_table"),
    *block_rules(r"layers\..*", "self"),
    Rename(r"layernorm\.(.*)", r"norm.\1"),
    Rename(r"classifier\.(.*)", r"head.fc.\1"),
)

# The authors' layout differs from timm's only in where it keeps the patch merging, so it is looked for first.
KEY_MAPS = (
    KeyMap("microsoft", (r"layers\.0\.downsample\.reduction\.weight", r"patch_embed\.proj\.weight"), _MICROSOFT),
    KeyMap(
        "timm",
        (r"patch_embed\.norm\.weight", r"layers\.0\.blocks\.0\.attn\.qkv\.weight"),
        (_BUFFERS, _HEAD),
    ),
    KeyMap("torchvision", (r"features\.0\.0\.weight", r"features\.1\.0\.attn\.qkv\.weight"), _TORCHVISION),
    KeyMap(
        "huggingface",
        (
            r"(swin\.)?embeddings\.patch_embeddings\.projection\.weight",
            r"(swin\.)?(encoder\.)?layers\.0\.blocks\.0\.layernorm_before\.weight",
        ),
        _HUGGINGFACE,
    ),
)
