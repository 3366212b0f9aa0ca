"""Rules for checkpoints of a plain encoder: patches, then blocks of one width, with class and register tokens.

Rules of timm's names are also those of vitrail's own, DeiT's, MAE's and DINO's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from vitrail.weights.checkpoint import State
from vitrail.weights.huggingface import block_rules
from vitrail.weights.report import LoadReport
from vitrail.weights.rules import Drop, DropToken, MergeRows, Rename, Rule


@dataclass(frozen=True)
class FoldClassPosition:
    """Add the class token's position to the class token where register tokens have no positions, exactly.

    DINOv2 adds positions before it inserts the register tokens, so that its table has a row for the class token and
    none for them. It stores a table of a square grid.

    Attributes:
        registers: Key of the register tokens in DINOv2's checkpoints.
        token: Key of the class token.
        positions: Key of the positions, shape ``(1, tokens, dim)``.
    """

    registers: str
    token: str
    positions: str

    def apply(self, state: State, report: LoadReport) -> State:
        """Fold; a table of another layout is left unchanged."""
        token, table = state.get(self.token), state.get(self.positions)
        if self.registers not in state or token is None or table is None or token.ndim != 3 or table.ndim != 3:
            return state
        count = token.shape[1]
        patches = table.shape[1] - count
        if patches <= 0 or math.isqrt(patches) ** 2 != patches or token.shape[-1] != table.shape[-1]:
            return state
        report.notes.append(f"added the class token's position to {self.token} (the same outputs)")
        return {**state, self.token: token + table[:, :count], self.positions: table[:, count:]}


# Touvron et al. 2021, arXiv:2012.12877, section 4: its output is averaged with the class token's.
_DISTILLATION = DropToken(
    "dist_token",
    "pos_embed",
    1,
    r"head_dist\..*",
    "part of distillation, which this model does not have; its outputs are those of the class token alone",
)
# Layer scale of DeiT III and BEiT, and of transformers' DINOv2.
_LAYER_SCALE: tuple[Rule, ...] = (
    Rename(r"(blocks\.\d+)\.gamma_([12])", r"\1.ls\2.gamma"),
    Rename(r"(blocks\.\d+)\.layer_scale([12])\.lambda1", r"\1.ls\2.gamma"),
)
# Gate and value are one matrix in DINOv2, two in timm's SwiGLU.
_GATED: tuple[Rule, ...] = (
    Rename(r"(blocks\.\d+\.mlp)\.(?:w12|weights_in)\.(.*)", r"\1.fc1.\2"),
    Rename(r"(blocks\.\d+\.mlp)\.(?:w3|weights_out)\.(.*)", r"\1.fc2.\2"),
    MergeRows(r"(blocks\.\d+\.mlp)\.fc1_(?P<part>[gx])\.(weight|bias)", ("g", "x"), r"\1.fc1.\3"),
)
_REGISTERS: tuple[Rule, ...] = (
    FoldClassPosition("register_tokens", "cls_token", "pos_embed"),
    Rename(r"register_tokens", "reg_token"),
)

TIMM_RULES: tuple[Rule, ...] = (
    # DINOv2 trains large models in chunks of blocks, which keep their index in the whole model.
    Rename(r"blocks\.\d+\.(\d+)\.(.*)", r"blocks.\1.\2"),
    *_REGISTERS,
    *_LAYER_SCALE,
    *_GATED,
    _DISTILLATION,
    Drop(r"pre_logits\b.*", "representation layer of the pre-training head, not used"),
)
TRANSFORMERS_RULES: tuple[Rule, ...] = (
    Rename(r"embeddings\.register_tokens", "register_tokens"),
    Drop(r"pooler\..*", "pooler of the pre-training head, not part of the classifier"),
    Rename(r"embeddings\.mask_token", "mask_token"),
    Rename(r"embeddings\.distillation_token", "dist_token"),
    Rename(r"distillation_classifier\.(.*)", r"head_dist.\1"),
    Rename(r"cls_classifier\.(.*)", r"head.\1"),
    Rename(r"embeddings\.cls_token", "cls_token"),
    Rename(r"embeddings\.position_embeddings", "pos_embed"),
    *_REGISTERS,
    _DISTILLATION,
    Rename(r"embeddings\.patch_embeddings\.projection\.(.*)", r"patch_embed.proj.\1"),
    Rename(r"(?:encoder\.layer|layers)\.(\d+)\.(.*)", r"blocks.\1.\2"),
    *_LAYER_SCALE,
    *_GATED,
    *block_rules(r"blocks\.\d+", "attention"),
    Rename(r"layernorm\.(.*)", r"norm.\1"),
    Rename(r"classifier\.(.*)", r"head.\1"),
)
TORCHVISION_RULES: tuple[Rule, ...] = (
    Rename(r"class_token", "cls_token"),
    Rename(r"conv_proj\.(.*)", r"patch_embed.proj.\1"),
    Rename(r"encoder\.pos_embedding", "pos_embed"),
    Rename(r"encoder\.layers\.encoder_layer_(\d+)\.(.*)", r"blocks.\1.\2"),
    Rename(r"(blocks\.\d+)\.ln_([12])\.(.*)", r"\1.norm\2.\3"),
    Rename(r"(blocks\.\d+)\.self_attention\.in_proj_(weight|bias)", r"\1.attn.qkv.\2"),
    Rename(r"(blocks\.\d+)\.self_attention\.out_proj\.(.*)", r"\1.attn.proj.\2"),
    Rename(r"(blocks\.\d+)\.mlp\.(?:0|linear_1)\.(.*)", r"\1.mlp.fc1.\2"),
    Rename(r"(blocks\.\d+)\.mlp\.(?:3|linear_2)\.(.*)", r"\1.mlp.fc2.\2"),
    Rename(r"encoder\.ln\.(.*)", r"norm.\1"),
    Rename(r"heads\.head\.(.*)", r"head.\1"),
)
