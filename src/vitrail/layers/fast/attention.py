"""Fused attention on the CPU: explicit products for a trained bias, a call for each image with a large one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.layers.attention import attention_weights
from vitrail.layers.fast.dispatch import eager_on_cpu, fast_path

# Elements of a bias from which repeating it for each image costs more than calling the kernel once for each.
_LARGE_BIAS = 1 << 16


def _trains_bias(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float = 0.0) -> bool:
    if dropout or bias is None or not bias.requires_grad or bias.device.type != "cpu":
        return False
    # torch.jit.trace checks its graph by a second run, without gradients.
    return torch.compiler.is_compiling() or not torch._C._get_tracing_state()


@fast_path("attention", when=_trains_bias)
def attend_explicitly(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, dropout: float = 0.0) -> Tensor:
    """Attend by two matrix products: with a gradient of the bias the fused kernel takes a slower fallback."""
    return attention_weights(q, k, bias) @ v


def _has_large_bias(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float = 0.0) -> bool:
    if dropout or bias is None or q.ndim != 5 or not eager_on_cpu(q):
        return False
    return bias.shape[0] > 1 and q.shape[0] > 1 and bias.numel() >= _LARGE_BIAS


@fast_path("attention", when=_has_large_bias)
def attend_image_by_image(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, dropout: float = 0.0) -> Tensor:
    """Call the kernel once for each image, with the groups' biases as they are."""
    mixed = [F.scaled_dot_product_attention(*qkv, attn_mask=bias) for qkv in zip(q, k, v, strict=True)]
    # Stacked in the kernel's memory order: tokens before heads.
    return torch.stack([image.transpose(1, 2) for image in mixed]).transpose(2, 3)
