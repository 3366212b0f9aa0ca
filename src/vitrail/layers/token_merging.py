"""Token merging: each block averages its most similar pairs of patch tokens, between attention and MLP.

Source: Bolya et al. 2023, arXiv:2210.09461, section 3. With one class token results are those of the authors' code.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.layers.attention import Attention
from vitrail.layers.block import Block
from vitrail.layers.symbolic import one_node
from vitrail.layers.tap import AttentionTap, Grid, TokenLayout


class Merged(NamedTuple):
    """Origin of the merged patch tokens of a batch.

    Attributes:
        sizes: Number of patches in each token, shape ``(B, N)``.
        source: Index of the token that holds each patch, shape ``(B, patches)``.
    """

    sizes: Tensor
    source: Tensor


class Matching(NamedTuple):
    """Tokens of set A to merge, and those that stay.

    Attributes:
        kept: Indices in A of tokens that stay, ascending, shape ``(B, len(A) - r)``.
        merged: Indices in A of the r tokens to merge, shape ``(B, r)``.
        partner: Index in B of the token that each of them merges into, shape ``(B, r)``.
    """

    kept: Tensor
    merged: Tensor
    partner: Tensor


def match_tokens(a: Tensor, b: Tensor, r: int) -> Matching:
    """Match tokens of two sets: an edge from each token in A to its most similar in B; the r best edges stay.

    Args:
        a: Keys of set A, shape ``(B, len(A), d)``.
        b: Keys of set B, shape ``(B, len(B), d)``.
        r: Number of pairs.

    Source: Bolya et al. 2023, arXiv:2210.09461, section 3, "Bipartite soft matching", steps 2 and 3.
    """
    similarity = F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).transpose(-2, -1)
    best, nearest = similarity.max(dim=-1)
    order = best.argsort(dim=-1, descending=True)
    merged, kept = order[:, :r], order[:, r:].sort(dim=-1)[0]
    return Matching(kept, merged, nearest.gather(1, merged))


def merge_sets(a: Tensor, b: Tensor, matching: Matching) -> Tensor:
    """Add the merged tokens of A to their partners in B, and concatenate both sets.

    Args:
        a: Values of set A, shape ``(B, len(A), C)``.
        b: Values of set B, shape ``(B, len(B), C)``.
        matching: The matching.

    Returns:
        Shape ``(B, len(A) - r + len(B), C)``.
    """
    # A product with a 0/1 matrix, which is deterministic on every device; scatter_add is not.
    joins = one_hot(matching.partner, b.shape[1]).to(b.dtype)
    return torch.cat([take(a, matching.kept), b + joins.transpose(1, 2) @ take(a, matching.merged)], dim=1)


def new_indices(first: int, count: int, matching: Matching) -> Tensor:
    """Return the index after merging of each token before it, shape ``(B, count)``.

    Args:
        first: Index of the first token of set A: 0 or 1.
        count: Number of tokens before merging.
        matching: The matching.
    """
    kept, merged, partner = matching
    batch, stay = kept.shape
    positions = torch.arange(count, device=kept.device)
    in_a = kept.new_zeros(batch, stay + merged.shape[1])
    in_a = in_a.scatter(1, kept, positions[:stay].expand(batch, -1)).scatter(1, merged, stay + partner)
    in_b = stay + positions[: count - in_a.shape[1]].expand(batch, -1)
    # Sets A and B one after the other, in the order of the tokens.
    interleaved = [i // 2 + (0 if i % 2 == first else in_a.shape[1]) for i in range(count)]
    return torch.cat([in_a, in_b], dim=1)[:, torch.tensor(interleaved, device=kept.device)]


class TokenMerging(nn.Module):
    """Merge the r most similar pairs of patch tokens; prefix tokens are never merged.

    1. Assign patch tokens to sets A and B, alternately.
    2. Draw an edge from each token in A to its most similar token in B, by the cosine of their keys.
    3. Keep the r most similar edges.
    4. Merge connected tokens by their mean, weighted by size.
    5. Concatenate the sets.

    Args:
        r: Number of pairs; at most half of the patch tokens are merged.

    Source: Bolya et al. 2023, arXiv:2210.09461, section 3, "Bipartite soft matching" and "Tracking Token Size".
    """

    def __init__(self, r: int) -> None:
        super().__init__()
        self.r = r
        self.tap = AttentionTap()

    def extra_repr(self) -> str:
        """Show the number of pairs."""
        return f"r={self.r}"

    @one_node
    def forward(self, x: Tensor, keys: Tensor, num_prefix: int, merged: Merged | None) -> tuple[Tensor, Merged | None]:
        """Merge.

        Args:
            x: Tokens, shape ``(B, P + N, C)``, prefix tokens first.
            keys: Keys of the tokens, mean over heads, shape ``(B, P + N, d)``.
            num_prefix: Number of prefix tokens P.
            merged: Merging of the blocks before; None for none.

        Returns:
            Tokens, shape ``(B, P + N - r, C)``: prefix, the rest of A, B. And the merging so far.
        """
        prefix, patches = x[:, :num_prefix], x[:, num_prefix:]
        r = min(self.r, patches.shape[1] // 2)
        if not r:
            return x, merged
        if merged is None:
            merged = unmerged(patches)
        # As in the authors' code sets alternate along the whole sequence, prefix included.
        first = num_prefix % 2
        a, b = slice(first, None, 2), slice(1 - first, None, 2)
        keys = keys[:, num_prefix:].detach()
        matching = match_tokens(keys[:, a], keys[:, b], r)
        sizes = merged.sizes[:, :, None]
        total = merge_sets((patches * sizes)[:, a], (patches * sizes)[:, b], matching)
        summed = merge_sets(sizes[:, a], sizes[:, b], matching)
        indices = new_indices(first, patches.shape[1], matching)
        if self.tap.armed:
            shares = one_hot(indices, summed.shape[1]).transpose(1, 2) * sizes.transpose(1, 2)
            self.tap.report(shares / summed, TokenLayout("match", num_prefix=num_prefix))
        x = torch.cat([prefix, (total / summed).to(x.dtype)], dim=1)
        return x, Merged(summed[:, :, 0], indices.gather(1, merged.source))


class Unmerge(nn.Module):
    """Copy each merged token to all of its patches, so that the tokens form the grid again."""

    def __init__(self) -> None:
        super().__init__()
        self.tap = AttentionTap()

    @one_node
    def forward(self, x: Tensor, num_prefix: int, merged: Merged | None) -> Tensor:
        """Map tokens ``(B, P + N, C)`` to ``(B, P + patches, C)``."""
        if merged is None:
            return x
        if self.tap.armed:
            weights = one_hot(merged.source, merged.sizes.shape[1]).to(x.dtype)
            self.tap.report(weights, TokenLayout("match", num_prefix=num_prefix))
        return torch.cat([x[:, :num_prefix], take(x[:, num_prefix:], merged.source)], dim=1)


class ProportionalAttention(Attention):
    """Attention in which a key counts as often as it has patches: softmax(Q K^T / sqrt(d) + log s).

    Source: Bolya et al. 2023, arXiv:2210.09461, equation 1.
    """

    @one_node
    def forward(  # type: ignore[override]  # also returns its keys
        self, x: Tensor, grid: Grid | None, num_prefix: int, merged: Merged | None
    ) -> tuple[Tensor, Tensor]:
        """Mix tokens.

        Args:
            x: Tokens, shape ``(B, P + N, C)``.
            grid: Height and width of the grid of the patches, before any merging; for the tap.
            num_prefix: Number of prefix tokens P, each of size 1.
            merged: Merging of the blocks before; None for none.

        Returns:
            Tokens, shape of ``x``, and their keys, mean over heads, shape ``(B, P + N, d)``.
        """
        bias = None
        if merged is not None:
            grid, bias = None, F.pad(merged.sizes.log(), (num_prefix, 0)).to(x.dtype)[:, None, None]
        layout = TokenLayout("global", query_grid=grid, key_grid=grid, num_prefix=num_prefix)
        q, k, v = self.project(x, layout)
        return self.mix_heads(q, k, v, layout, bias), k.mean(dim=1)


class MergingBlock(Block):
    """Transformer block that merges tokens between attention and MLP."""

    attn: ProportionalAttention
    token_merging: TokenMerging

    def forward(  # type: ignore[override]  # also returns the merging
        self, x: Tensor, grid: Grid | None, num_prefix: int, merged: Merged | None
    ) -> tuple[Tensor, Merged | None]:
        """Mix the tokens, merge the similar ones, then mix the channels of each.

        Args:
            x: Tokens, shape ``(B, P + N, C)``.
            grid: Height and width of the grid of the patches.
            num_prefix: Number of prefix tokens P.
            merged: Merging of the blocks before; None for none.

        Returns:
            Tokens, shape ``(B, P + N - r, C)``, and the merging so far.
        """
        attended, keys = self.attn(self.norm1(x), grid, num_prefix, merged)
        x = x + self.drop_path1(self.ls1(attended))
        x, merged = self.token_merging(x, keys, num_prefix, merged)
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x)))), merged


def set_merging(block: Any, r: int | None) -> None:
    """Set the number r of token pairs that a block merges, in place; parameters and their names stay.

    Args:
        block: A :class:`~vitrail.layers.block.Block` with plain attention, or a :class:`MergingBlock`.
        r: Number of pairs; None makes it a plain block again.
    """
    merges = r is not None
    # The class is exchanged, as the authors' code does, so that hooks and parameters stay where they are.
    block.__class__ = MergingBlock if merges else Block
    block.attn.__class__ = ProportionalAttention if merges else Attention
    if r is not None:
        block.token_merging = TokenMerging(r)
    elif "token_merging" in block._modules:
        del block.token_merging


def lacks_merging(block: nn.Module) -> str:
    """Return the reason why a block cannot merge tokens; empty where it can."""
    if type(block) not in (Block, MergingBlock):
        return f"{type(block).__name__} is not a plain transformer block"
    if type(block.attn) not in (Attention, ProportionalAttention):
        return f"{type(block.attn).__name__} in place of attention gives no keys to match"
    return ""


def unmerged(patches: Tensor) -> Merged:
    """Return the sizes and sources of tokens ``(B, N, C)`` before any merging."""
    batch, count = patches.shape[:2]
    source = torch.arange(count, device=patches.device).expand(batch, -1)
    return Merged(torch.ones(batch, count, dtype=torch.float32, device=patches.device), source)


def take(x: Tensor, indices: Tensor) -> Tensor:
    """Select tokens: ``(B, N, C)`` and indices ``(B, n)`` to ``(B, n, C)``."""
    return x.gather(1, indices[:, :, None].expand(-1, -1, x.shape[2]))


def one_hot(indices: Tensor, count: int) -> Tensor:
    """Return whether an index is each of ``count`` values: ``(B, n)`` to bool ``(B, n, count)``."""
    return indices[:, :, None] == torch.arange(count, device=indices.device)
