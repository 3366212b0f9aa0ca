"""TokenLearner and TokenFuser: a few learned tokens in place of many, and back.

Source: Ryoo et al. 2021, arXiv:2106.11297, section 2; details (where the norms are, the GELU's form, which
version sums and which averages) as in the authors' code, scenic's ``projects/token_learner``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitrail.errors import ConfigError, ShapeError
from vitrail.layers.checks import check_rate
from vitrail.layers.mlp import Mlp
from vitrail.layers.symbolic import one_node
from vitrail.layers.tap import AttentionTap, TokenLayout

_NORM_EPS = 1e-6


class TokenLearner(nn.Module):
    """Learn ``num_tokens`` spatial maps from the tokens and pool the tokens with each.

    Version 1.0 computes the maps with four 3 x 3 convolutions and a sigmoid and *sums* over positions;
    version 1.1 computes them token by token with a small MLP and a softmax over positions, so that
    each learned token is a weighted mean.

    Args:
        dim: Number of channels.
        num_tokens: Tokens to learn.
        version: ``"1.0"`` or ``"1.1"``.
        bottleneck_dim: Hidden width of version 1.1's MLP.
        dropout_rate: Dropout rate of version 1.1's MLP in training.

    Raises:
        ConfigError: An unknown version, fewer than one token, or a dropout rate that is out of range or that version
            1.0, which has no MLP, cannot use.

    Source: arXiv:2106.11297, section 2.1; version 1.1: appendix and the authors' code.
    """

    # Weights of other libraries: vitrail.weights.token_learner.
    key_maps = ()

    def __init__(
        self, dim: int, num_tokens: int, version: str = "1.1", bottleneck_dim: int = 64, dropout_rate: float = 0.0
    ) -> None:
        super().__init__()
        if version not in ("1.0", "1.1"):
            raise ConfigError(f"token_learner version must be '1.0' or '1.1', got {version!r}")
        if num_tokens < 1:
            raise ConfigError(f"token_learner num_tokens must be at least 1, got {num_tokens}")
        check_rate("token_learner dropout_rate", dropout_rate)
        if dropout_rate and version == "1.0":
            raise ConfigError(
                f"token_learner dropout_rate {dropout_rate} acts in the MLP of version '1.1'; use that version, or 0"
            )
        self.dim, self.num_tokens, self.version = dim, num_tokens, version
        self.norm = nn.LayerNorm(dim, eps=_NORM_EPS)
        self.masks: nn.Module
        if version == "1.0":
            stack: list[nn.Module] = []
            for i in range(4):
                stack += [nn.GELU(approximate="tanh")] if i else []
                stack += [nn.Conv2d(num_tokens if i else dim, num_tokens, 3, padding=1, bias=False)]
            self.masks = nn.Sequential(*stack)
        else:
            self.masks = Mlp(dim, bottleneck_dim, num_tokens, "gelu_tanh", dropout_rate)
        init_masks(self.masks)
        self.tap = AttentionTap()

    def selection(self, x: Tensor) -> Tensor:
        """Compute the maps: the weight of each position in each learned token.

        Args:
            x: Tokens on their grid, shape ``(B, H, W, C)``.

        Returns:
            Weights, shape ``(B, S, H * W)``: in 0..1 for version 1.0, rows that sum to one for 1.1.
        """
        normed = self.norm(x)
        if self.version == "1.0":
            maps: Tensor = self.masks(normed.permute(0, 3, 1, 2))
            return maps.flatten(2).sigmoid()
        scores: Tensor = self.masks(normed.flatten(1, 2))
        return scores.transpose(1, 2).softmax(dim=-1)

    @one_node
    def forward(self, x: Tensor) -> Tensor:
        """Pool the tokens into a few.

        Args:
            x: Tokens on their grid, shape ``(B, H, W, C)``; any height and width. Of a clip ``(B, T, H, W, C)``: each
                of the T slices has learned tokens of its own.

        Returns:
            Learned tokens, shape ``(B, S, C)``, of a clip ``(B, T * S, C)``.

        Raises:
            ShapeError: Another number of dimensions or another width.
        """
        if x.ndim not in (4, 5) or x.shape[-1] != self.dim:
            raise ShapeError(f"TokenLearner expects tokens of shape (B, H, W, {self.dim}), got {tuple(x.shape)}")
        slices = x if x.ndim == 4 else x.flatten(0, 1)
        weights, tokens = self.selection(slices), slices.flatten(1, 2)
        if self.tap.armed:
            if x.ndim == 5:
                weights, tokens = block_diagonal(weights, x.shape[1]), x.flatten(1, 3)
            self.tap.report(weights, TokenLayout("pool", key_grid=tuple(x.shape[1:-1])))
        count = self.num_tokens if x.ndim == 4 else x.shape[1] * self.num_tokens
        return (weights @ tokens).reshape(x.shape[0], count, self.dim)  # -1 is ambiguous for an empty batch


def init_masks(masks: nn.Module) -> None:
    """Initialise the layers that compute maps as the authors do: the maps differ from the start.

    With the small weights of a transformer's other layers all maps begin as the same even spread, and learned tokens
    that are all alike take many epochs to part.

    Args:
        masks: MLP (Xavier-uniform weights) or convolutions (LeCun-normal).

    Source: the authors' code (scenic): its MlpBlock, and flax's default for convolutions.
    """
    for module in masks.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.normal_(module.bias, std=1e-6)
        elif isinstance(module, nn.Conv2d):
            # LeCun et al. 1998: variance 1 / fan-in, cut at two deviations as flax does.
            std = module.weight[0].numel() ** -0.5 / 0.87962566103423978
            nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)


def block_diagonal(weights: Tensor, slices: int) -> Tensor:
    """Join the matrices of the slices of each clip, ``(B * T, n, m)``, to one, ``(B, T * n, T * m)``, else zero."""
    n, m = weights.shape[1:]
    same = torch.eye(slices, dtype=weights.dtype, device=weights.device)[:, None, :, None]
    return (weights.view(-1, slices, n, 1, m) * same).reshape(-1, slices * n, slices * m)


class TokenMix(nn.Linear):
    """A linear map from a few tokens to as many others, the same for every channel.

    Args:
        num_tokens: Tokens.
    """

    def __init__(self, num_tokens: int) -> None:
        super().__init__(num_tokens, num_tokens)
        self.tap = AttentionTap()

    def forward(self, x: Tensor, slices: int = 1) -> Tensor:
        """Map ``(B * slices, C, S)`` to the same shape."""
        if self.tap.armed:
            weights = self.weight.abs().expand(x.shape[0], -1, -1)
            self.tap.report(block_diagonal(weights, slices) if slices > 1 else weights, TokenLayout("mix"))
        return super().forward(x)


class TokenFuser(nn.Module):
    """Spread learned tokens back over the positions they came from; the caller adds the residual.

    Args:
        dim: Number of channels.
        num_tokens: Learned tokens.
        bottleneck_dim: Hidden width of the MLP that computes the mixing map.
        dropout_rate: Dropout rate of that MLP in training.

    Source: arXiv:2106.11297, section 2.2.
    """

    # Weights of other libraries: vitrail.weights.token_learner.
    key_maps = ()

    def __init__(self, dim: int, num_tokens: int, bottleneck_dim: int = 64, dropout_rate: float = 0.0) -> None:
        super().__init__()
        self.dim, self.num_tokens = dim, num_tokens
        self.norm_in = nn.LayerNorm(dim, eps=_NORM_EPS)
        self.mix = TokenMix(num_tokens)
        self.norm_mixed = nn.LayerNorm(dim, eps=_NORM_EPS)
        self.norm_original = nn.LayerNorm(dim, eps=_NORM_EPS)
        self.masks = Mlp(dim, bottleneck_dim, num_tokens, "gelu_tanh", dropout_rate)
        init_masks(self.masks)
        self.tap = AttentionTap()

    @one_node
    def forward(self, tokens: Tensor, original: Tensor, slices: int = 1) -> Tensor:
        """Mix the learned tokens and spread them over the positions.

        Args:
            tokens: Learned tokens, shape ``(B, S, C)``, of a clip ``(B, T * S, C)``.
            original: The tokens that they were learned from, shape ``(B, N, C)``, of a clip ``(B, T * N, C)``.
            slices: T, the slices of a clip, each mixed and spread by itself.

        Returns:
            Residual to add to ``original``, shape ``(B, N, C)``.

        Raises:
            ShapeError: Another number or width of tokens.
        """
        count = slices * self.num_tokens
        if tokens.ndim != 3 or tokens.shape[1:] != (count, self.dim) or original.shape[-1] != self.dim:
            raise ShapeError(
                f"TokenFuser expects tokens of shape (B, {count}, {self.dim}) and originals of shape "
                f"(B, N, {self.dim}), got {tuple(tokens.shape)} and {tuple(original.shape)}"
            )
        learned = tokens.reshape(-1, self.num_tokens, self.dim)
        mixed = self.norm_mixed(self.mix(self.norm_in(learned).transpose(1, 2), slices).transpose(1, 2))
        per_slice = original.reshape(learned.shape[0], original.shape[1] // slices, self.dim)
        weights = torch.sigmoid(self.masks(self.norm_original(per_slice)))
        if self.tap.armed:
            if slices > 1:
                weights, mixed = block_diagonal(weights, slices), mixed.reshape(tokens.shape)
            self.tap.report(weights, TokenLayout("fuse"))
        spread: Tensor = weights @ mixed
        return spread.reshape(original.shape)
