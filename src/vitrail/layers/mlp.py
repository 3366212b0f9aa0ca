"""The two-layer perceptron of every transformer block."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitrail.layers.gelu import Approximate, Gelu, gelu_, infers_on_cpu
from vitrail.layers.plain import is_plain

# Numbers in the hidden layer above which a CPU takes the tokens a piece at a time, and numbers in a piece.
# Without gradients a piece stays in the caches between the layers. With them only what the allocator would
# fetch from the system anew each time, page by page (32 MB in glibc), is worth taking apart.
_LARGE, _PIECE = 1 << 22, 1 << 20
_LARGE_TRAINING, _PIECE_TRAINING = 1 << 23, 1 << 21


class Mlp(nn.Module):
    """Linear, GELU, linear, applied to each token alone.

    Args:
        dim: Width of a token.
        hidden_dim: Width between the two layers.
        out_dim: Width of the result; ``dim`` when not given.
        approximate: ``"none"`` for the exact (erf) GELU, ``"tanh"`` for flax's and TensorFlow's form.

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929, equation 3.
    """

    def __init__(
        self, dim: int, hidden_dim: int, out_dim: int | None = None, approximate: Approximate = "none"
    ) -> None:
        super().__init__()
        self.hidden_dim = hidden_dim
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = Gelu(approximate)
        self.fc2 = nn.Linear(hidden_dim, dim if out_dim is None else out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., dim)`` to ``(..., out_dim)``."""
        rows = self._rows_at_once(x)
        infers = infers_on_cpu(x)
        if (rows is None and not infers) or not self._is_plain():
            out: Tensor = self.fc2(self.act(self.fc1(x)))
            return out
        tokens = x.reshape(-1, x.shape[-1])
        rows = rows or max(1, len(tokens))
        if infers:
            out = self._infer(tokens, rows)
        else:
            out = torch.cat([self.fc2(self.act(self.fc1(piece))) for piece in torch.split(tokens, rows)])
        return out.view(*x.shape[:-1], out.shape[-1])

    def _infer(self, tokens: Tensor, rows: int) -> Tensor:
        """Without gradients nobody needs what lies between the layers: it is overwritten."""
        out = tokens.new_empty(len(tokens), self.fc2.out_features)
        weight = self.fc2.weight.t()
        for piece, result in zip(torch.split(tokens, rows), torch.split(out, rows), strict=True):
            hidden = gelu_(self.fc1(piece), self.act.approximate)
            torch.addmm(self.fc2.bias, hidden, weight, out=result)
        return out

    def _is_plain(self) -> bool:
        """Whether the parts may be passed by, or called a piece at a time."""
        fc1, act, fc2 = self.fc1, self.act, self.fc2
        return is_plain(nn.Linear, fc1, fc2) and is_plain(Gelu, act) and fc2.bias is not None

    def _rows_at_once(self, x: Tensor) -> int | None:
        """Tokens to take at a time; None for all of them: few, or in a graph."""
        if (
            type(x) is not Tensor
            or x.device.type != "cpu"
            or torch.compiler.is_compiling()
            or torch._C._get_tracing_state()
        ):
            return None
        hidden = self.hidden_dim * (x.numel() // x.shape[-1])
        large, piece = (_LARGE_TRAINING, _PIECE_TRAINING) if torch.is_grad_enabled() else (_LARGE, _PIECE)
        if hidden <= large:
            return None
        return max(1, piece // self.hidden_dim)
