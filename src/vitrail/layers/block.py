"""The transformer block of all families, and the stage that runs blocks on one grid."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypedDict

import torch
from torch import Tensor, nn

from vitrail.layers.checkpointing import run_block
from vitrail.layers.drop_path import DropPath
from vitrail.layers.mixer import call_mixer
from vitrail.layers.mlp import make_mlp
from vitrail.layers.norms import make_norm
from vitrail.layers.tap import Grid


class LayerScale(nn.Module):
    """Scale each channel of a residual branch by a learned factor.

    Args:
        dim: Number of channels.
        init_value: Initial value of the factors (gamma).

    Source: Touvron et al. 2021, arXiv:2103.17239, section 2.
    """

    def __init__(self, dim: int, init_value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), float(init_value)))

    def forward(self, x: Tensor) -> Tensor:
        """Scale ``(..., dim)``."""
        return x * self.gamma


class BlockOptions(TypedDict, total=False):
    """Settings that families pass on to :class:`Block`."""

    act_layer: str | None
    norm_layer: str
    mlp_layer: str
    drop: float
    init_values: float | None


class Block(nn.Module):
    """Pre-norm transformer block: attention and an MLP, each on a residual branch.

    Args:
        dim: Number of channels.
        attn: Attention, or another module that mixes tokens.
        mlp_ratio: Hidden width of the MLP over ``dim``.
        drop_path: Probability of dropping a branch.
        norm_eps: Epsilon of the norms.
        act_layer: Name of the MLP's activation; when not given GELU for "mlp" and SiLU for "swiglu".
        norm_layer: Name of the norms, see :mod:`vitrail.layers.norms`.
        mlp_layer: "mlp" or "swiglu".
        drop: Dropout rate of the MLP in training.
        init_values: Initial value of the layer scale of both branches; None for none.

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929, equations 2 and 3; Liu et al. 2021, arXiv:2103.14030, equation 3.
    """

    def __init__(
        self,
        dim: int,
        attn: nn.Module,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-5,
        act_layer: str | None = None,
        norm_layer: str = "layernorm",
        mlp_layer: str = "mlp",
        drop: float = 0.0,
        init_values: float | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = make_norm(norm_layer, dim, norm_eps)
        self.attn = attn
        self.ls1 = nn.Identity() if init_values is None else LayerScale(dim, init_values)
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = make_norm(norm_layer, dim, norm_eps)
        self.mlp = make_mlp(mlp_layer, dim, int(dim * mlp_ratio), act_layer=act_layer, drop=drop)
        self.ls2 = nn.Identity() if init_values is None else LayerScale(dim, init_values)
        self.drop_path2 = DropPath(drop_path)

    def forward(
        self,
        x: Tensor,
        grid: Grid | None = None,
        num_prefix: int | None = None,
        rotation: Tensor | None = None,
    ) -> Tensor:
        """Mix the tokens, then the channels of each.

        Args:
            x: Tokens, shape ``(B, N, C)`` or ``(B, H, W, C)``.
            grid: Height and width of the grid of a sequence ``(B, N, C)``, for the attention's tap.
            num_prefix: Tokens before the grid of a sequence.
            rotation: Rotary positions of the tokens after the prefix, for the attention.

        Returns:
            Tokens, shape of ``x``.
        """
        layout = () if num_prefix is None else (grid, num_prefix)
        x = x + self.drop_path1(self.ls1(call_mixer(self.attn, self.norm1(x), *layout, rotation=rotation)))
        out: Tensor = x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
        return out


class Stage(nn.Module):
    """Downsampling, then blocks on one grid, with gradient checkpointing where wanted.

    Args:
        blocks: Run one after the other.
        downsample: Comes before them; the identity when not given.

    Attributes:
        grad_checkpointing: Whether training recomputes each block in the backward pass.
    """

    def __init__(self, blocks: Iterable[nn.Module], downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.downsample = nn.Identity() if downsample is None else downsample
        self.blocks = nn.ModuleList(blocks)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """Run the stage; feature map ``(B, H, W, C)`` to ``(B, H', W', C')`` as ``downsample`` gives it."""
        x = self.downsample(x)
        for block in self.blocks:
            x = run_block(block, x, checkpointing=self.grad_checkpointing and self.training)
        return x
