"""MLPs on the CPU: a few tokens at a time, so that the hidden layer stays in the caches."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from vitrail.layers.activations import Gelu
from vitrail.layers.fast.dispatch import eager_on_cpu, fast_path, infers_on_cpu, is_plain
from vitrail.layers.fast.gelu import gelu_
from vitrail.layers.mlp import Mlp

# Elements of the hidden layer above which tokens are taken in pieces, and elements of a piece. Without gradients a
# piece stays in the caches between the layers. With them only blocks of memory that the allocator would fetch from the
# system each time, page by page (32 MB in glibc), are worth splitting.
_LARGE, _PIECE = 1 << 22, 1 << 20
_LARGE_TRAINING, _PIECE_TRAINING = 1 << 23, 1 << 21


def _rows_of_a_piece(layer: Mlp, x: Tensor) -> int | None:
    """Choose the number of tokens per piece; None for all at once."""
    hidden = layer.hidden_dim * (x.numel() // x.shape[-1])
    large, piece = (_LARGE_TRAINING, _PIECE_TRAINING) if torch.is_grad_enabled() else (_LARGE, _PIECE)
    return max(1, piece // layer.hidden_dim) if hidden > large else None


def _has_plain_parts(layer: Mlp) -> bool:
    fc1, act, fc2, drops = layer.fc1, layer.act, layer.fc2, (layer.drop1, layer.drop2)
    if not (is_plain(nn.Linear, fc1, fc2) and is_plain(Gelu, act) and is_plain(nn.Dropout, *drops)):
        return False
    return fc2.bias is not None and not any(drop.p and drop.training for drop in drops)


@fast_path("mlp", when=lambda layer, x: infers_on_cpu(x) and _has_plain_parts(layer))
def infer_in_place(layer: Mlp, x: Tensor) -> Tensor:
    """Overwrite the hidden layer, which nothing needs without gradients; in pieces where it is large."""
    tokens = x.reshape(-1, x.shape[-1])
    rows = _rows_of_a_piece(layer, x) or max(1, len(tokens))
    out = tokens.new_empty(len(tokens), layer.fc2.out_features)
    weight, act = layer.fc2.weight.t(), cast(Gelu, layer.act)
    for piece, result in zip(torch.split(tokens, rows), torch.split(out, rows), strict=True):
        hidden = gelu_(layer.fc1(piece), act.approximate)
        torch.addmm(layer.fc2.bias, hidden, weight, out=result)
    return out.view(*x.shape[:-1], out.shape[-1])


def _is_large(layer: Mlp, x: Tensor) -> bool:
    return eager_on_cpu(x) and _rows_of_a_piece(layer, x) is not None and _has_plain_parts(layer)


@fast_path("mlp", when=_is_large)
def run_in_pieces(layer: Mlp, x: Tensor) -> Tensor:
    """Run both layers on some tokens at a time."""
    rows = _rows_of_a_piece(layer, x)
    assert rows is not None
    pieces = torch.split(x.reshape(-1, x.shape[-1]), rows)
    out = torch.cat([layer.fc2(layer.act(layer.fc1(piece))) for piece in pieces])
    return out.view(*x.shape[:-1], out.shape[-1])
