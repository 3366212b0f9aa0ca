"""Initialisation of fresh weights."""

from __future__ import annotations

from torch import nn


def init_linears(*parts: nn.Module) -> None:
    """Initialise all linear layers of modules: truncated normal weights of deviation 0.02, zero biases.

    Source: Touvron et al. 2021, arXiv:2012.12877, and the authors' code of Swin.
    """
    for part in parts:
        for module in part.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                zero_bias(module)


def init_patch_projection(conv: nn.Conv2d) -> None:
    """Initialise the convolution of a patch embedding: truncated normal weights of variance 1 / fan-in, zero bias.

    Source: LeCun et al. 1998, "Efficient BackProp", section 4.6; as in timm.
    """
    nn.init.trunc_normal_(conv.weight, std=conv.weight[0].numel() ** -0.5)
    zero_bias(conv)


def zero_bias(layer: nn.Linear | nn.Conv2d | nn.Conv3d) -> None:
    """Set the bias of a layer to zero, if it has one."""
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
