"""Rules for checkpoints of encoders of clips: transformers' ViViT, VideoMAE and TimeSformer; scenic's ViViT (flax)."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from vitrail.errors import plural
from vitrail.weights.checkpoint import State
from vitrail.weights.plain_encoder import TRANSFORMERS_RULES
from vitrail.weights.report import LoadReport
from vitrail.weights.rules import Convert, Drop, MergeRows, Rename, Rule, transpose_conv, transpose_dense


@dataclass(frozen=True)
class AddKeyBias:
    """Add a bias of zeros to keys whose queries and values alone have one; it changes no weight of the attention.

    Attributes:
        pattern: Matches the queries' bias; its group is the name of the attention.
    """

    pattern: str

    def apply(self, state: State, report: LoadReport) -> State:
        """Add."""
        out = dict(state)
        added = 0
        for key, value in state.items():
            match = re.fullmatch(self.pattern, key)
            if match and f"{match[1]}.value.bias" in state and f"{match[1]}.key.bias" not in state:
                out[f"{match[1]}.key.bias"] = torch.zeros_like(value)
                added += 1
        if added:
            report.notes.append(f"keys without a bias: zeros in {plural(added, 'layer')}")
        return out


@dataclass(frozen=True)
class FoldDense:
    """Fold a linear map that follows another into that one: ``W2 (W1 x + b1) + b2``, exactly.

    Attributes:
        first: Pattern of the first map's name.
        second: Name of the map that follows it; may use the groups of the pattern.
    """

    first: str
    second: str

    def apply(self, state: State, report: LoadReport) -> State:
        """Fold."""
        out = dict(state)
        for key in state:
            match = re.fullmatch(rf"{self.first}\.weight", key)
            if match is None:
                continue
            name, second = key.removesuffix(".weight"), match.expand(self.second)
            if f"{second}.weight" not in state:
                continue
            weight, bias = (out.pop(f"{second}.{part}").double() for part in ("weight", "bias"))
            out[f"{name}.bias"] = (weight @ state[f"{name}.bias"].double() + bias).to(state[key].dtype)
            out[key] = (weight @ state[key].double()).to(state[key].dtype)
            report.notes.append(f"folded {second} into {name} (the same outputs)")
        return out


# VideoMAE's files call the biases q_bias and v_bias, its modules of transformers 5 query.bias and value.bias.
TRANSFORMERS_VIDEO_RULES: tuple[Rule, ...] = (
    Rename(r"(.*\.attention\.attention)\.q_bias", r"\1.query.bias"),
    Rename(r"(.*\.attention\.attention)\.v_bias", r"\1.value.bias"),
    AddKeyBias(r"(.*\.attention\.attention)\.query\.bias"),
    Rename(r"embeddings\.time_embeddings", "time_embed"),
    Rename(r"encoder\.layer\.(\d+)\.temporal_attention\.attention\.qkv\.(.*)", r"blocks.\1.attn_time.qkv.\2"),
    Rename(r"encoder\.layer\.(\d+)\.temporal_attention\.output\.dense\.(.*)", r"blocks.\1.attn_time.proj.\2"),
    Rename(r"encoder\.layer\.(\d+)\.temporal_layernorm\.(.*)", r"blocks.\1.norm_time.\2"),
    Rename(r"encoder\.layer\.(\d+)\.temporal_dense\.(.*)", r"blocks.\1.temporal_dense.\2"),
    FoldDense(r"(blocks\.\d+)\.attn_time\.proj", r"\1.temporal_dense"),
    Rename(r"encoder\.layer\.(\d+)\.attention\.attention\.qkv\.(.*)", r"blocks.\1.attn.qkv.\2"),
    *TRANSFORMERS_RULES,
)


def _merge_heads_in(kernel: Tensor) -> Tensor:
    """Convert a flax kernel ``(in, heads, width)`` to ``(heads * width, in)``, a bias ``(heads, width)`` to one row."""
    return kernel.flatten() if kernel.ndim == 2 else kernel.flatten(1).t().contiguous()


def _merge_heads_out(kernel: Tensor) -> Tensor:
    """Convert a flax kernel ``(heads, width, out)`` to ``(out, heads * width)``."""
    return kernel.flatten(0, 1).t().contiguous()


def _transpose_tubelet(kernel: Tensor) -> Tensor:
    """Convert a flax kernel ``(t, h, w, in, out)`` to ``(out, in, t, h, w)``, that of an image alike."""
    return kernel.movedim((-1, -2), (0, 1)).contiguous()


_BLOCK = r"((?:temporal\.)?blocks\.\d+)"
SCENIC_RULES: tuple[Rule, ...] = (
    Rename(r"cls(?:_SpatialTransformer)?", "cls_token"),
    Rename(r"cls_TemporalTransformer", "temporal.cls_token"),
    Drop(r"pre_logits/.*", "representation layer of the pre-training head, not used"),
    Rename(r"TemporalTransformer/(.*)", r"temporal.\1"),
    Rename(r"(?:Spatial)?Transformer/(.*)", r"\1"),
    Rename(r"(temporal\.)?posembed_input/pos_embedding", r"\1pos_embed"),
    Rename(r"(temporal\.)?encoder_norm/scale", r"\1norm.weight"),
    Rename(r"(temporal\.)?encoder_norm/bias", r"\1norm.bias"),
    Rename(r"(temporal\.)?encoderblock_(\d+)/(.*)", r"\1blocks.\2/\3"),
    Rename(_BLOCK + r"/LayerNorm_(?:0|space)/(.*)", r"\1.norm1.\2"),
    Rename(_BLOCK + r"/LayerNorm_(?:1|mlp)/(.*)", r"\1.norm2.\2"),
    Rename(_BLOCK + r"/LayerNorm_time/(.*)", r"\1.norm_time.\2"),
    Rename(_BLOCK + r"/MultiHeadDotProductAttention_(?:0|space)/(.*)", r"\1.attn/\2"),
    Rename(_BLOCK + r"/MultiHeadDotProductAttention_time/(.*)", r"\1.attn_time/\2"),
    Convert(r".*\.attn(?:_time)?/(?:query|key|value)/.*", _merge_heads_in),
    Convert(r".*\.attn(?:_time)?/out/kernel", _merge_heads_out),
    MergeRows(r"(.*\.attn(?:_time)?)/(?P<part>query|key|value)/(kernel|bias)", ("query", "key", "value"), r"\1.qkv.\3"),
    Rename(r"(.*\.attn(?:_time)?)/out/(.*)", r"\1.proj.\2"),
    Rename(r"(.*\.qkv|.*\.proj)\.kernel", r"\1.weight"),
    Rename(_BLOCK + r"/MlpBlock(?:_0)?/Dense_0/(.*)", r"\1.mlp.fc1.\2"),
    Rename(_BLOCK + r"/MlpBlock(?:_0)?/Dense_1/(.*)", r"\1.mlp.fc2.\2"),
    Rename(r"TokenLearnerModule(?:V11)?_(\d+)/(.*)", r"token_learners.\1/\2"),
    Rename(r"TokenFuser_(\d+)/(.*)", r"token_fusers.\1/\2"),
    Rename(r"(token_learners\.\d+)/LayerNorm_0/(.*)", r"\1.norm.\2"),
    Rename(r"(token_fusers\.\d+)/LayerNorm_0/(.*)", r"\1.norm_original.\2"),
    Rename(r"(token_fusers\.\d+)/fuser_mix_norm1/(.*)", r"\1.norm_in.\2"),
    Rename(r"(token_fusers\.\d+)/fuser_mix_norm2/(.*)", r"\1.norm_mixed.\2"),
    Rename(r"(token_fusers\.\d+)/Dense_0/(.*)", r"\1.mix.\2"),
    Rename(r"(token_\w+\.\d+)/token_masking/Dense_0/(.*)", r"\1.masks.fc1.\2"),
    Rename(r"(token_\w+\.\d+)/token_masking/Dense_1/(.*)", r"\1.masks.fc2.\2"),
    Convert(r"token_learners\.\d+/Conv_\d/kernel", transpose_conv),
    *(Rename(rf"(token_learners\.\d+)/Conv_{i}/kernel", rf"\1.masks.{2 * i}.weight") for i in range(4)),
    Convert(r".*\.fc[12]\.kernel|.*\.mix\.kernel|output_projection/kernel", transpose_dense),
    Convert(r"embedding/kernel", _transpose_tubelet),
    Rename(r"embedding/kernel", "patch_embed.proj.weight"),
    Rename(r"embedding/bias", "patch_embed.proj.bias"),
    Rename(r"output_projection/(.*)", r"head.\1"),
    Rename(r"(.*)\.(?:kernel|scale)", r"\1.weight"),
)
