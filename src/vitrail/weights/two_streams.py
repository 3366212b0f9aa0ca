"""Rules for checkpoints of the RGB + spectral research code (Leaf-Effects), two hierarchies and their fusion."""

from __future__ import annotations

from torch import Tensor

from vitrail.weights.rules import Convert, FoldProjection, Rename, Rule, SplitRows


def _prompt_on_grid(prompt: Tensor) -> Tensor:
    """Reshape the fusion's prompt ``(1, 1, C)`` for tokens on a grid, ``(1, 1, 1, C)``."""
    return prompt.unsqueeze(1)


RESEARCH_RULES: tuple[Rule, ...] = (
    Rename(r"(rgb|spectral)_(patch_embed|stages)\.(.*)", r"\1.\2.\3"),
    Rename(r"(rgb|spectral)_pos_embed", r"\1.pos_embed"),
    # There the merging ends a stage, here it begins the next; no model has sixteen stages.
    *(Rename(rf"(\w+)\.stages\.{i}\.downsample_layer\.(.*)", rf"\1.stages.{i + 1}.downsample.\2") for i in range(16)),
    Rename(r"norm_(rgb|spectral)_final_encoder\.(.*)", r"\1.norm.\2"),
    Rename(r"simple_fusion_projector\.(.*)", r"fusion.proj.\1"),
    Convert(r"dfca_module\.disease_mask_param", _prompt_on_grid),
    Rename(r"dfca_module\.disease_mask_param", "fusion.prompt"),
    SplitRows(
        r"dfca_module\.cross_attention\.in_proj_(weight|bias)",
        ((r"fusion.attn.q.\1", 1), (r"fusion.attn.kv.\1", 2)),
    ),
    FoldProjection("spectral_to_dfca_proj", "fusion.attn.kv", "fusion.prompt"),
    Rename(r"dfca_module\.cross_attention\.out_proj\.(.*)", r"fusion.attn.proj.\1"),
    Rename(r"dfca_module\.ffn\.0\.(.*)", r"fusion.mlp.fc1.\1"),
    Rename(r"dfca_module\.ffn\.3\.(.*)", r"fusion.mlp.fc2.\1"),
    Rename(r"dfca_module\.(norm[12])\.(.*)", r"fusion.\1.\2"),
    Rename(r"classifier_head_norm\.(.*)", r"head_norm.\1"),
    Rename(r"classifier_head\.(.*)", r"head.\1"),
)
