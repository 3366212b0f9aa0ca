"""A model whose blocks share one width and one grid: the part of the contract that ViT and ViViT share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.errors import ConfigError
from vitrail.layers.checkpointing import run_block
from vitrail.layers.patches import take_patches
from vitrail.layers.tap import Grid
from vitrail.models.base import VisionModel, group_parameters
from vitrail.models.facts import Ends, LevelTokens


class Isotropic(VisionModel):
    """Patches in a sequence through blocks of one width, with TokenLearner before any of them if wanted.

    A subclass sets in its ``__init__`` the attributes below, ``norm``, ``fc_norm``, ``head_drop``, ``head``,
    ``num_features``, ``num_prefix``, ``feature_info`` and ``grad_checkpointing``.

    Attributes:
        blocks: The blocks.
        block_prefix: Tokens before those of the patches in the sequences of the blocks.
        patch_stride: Pixels, of a clip also frames, from one patch to the next.
        sliced: Whether each slice of time is a sequence of its own.
        learn_at: Index of the block before which a TokenLearner stands; more than all blocks without one.
        token_learners: One TokenLearner, or with fusers one for each block from ``learn_at``.
        token_fusers: TokenFusers of the same blocks.
    """

    blocks: nn.ModuleList
    block_prefix: int
    patch_stride: Grid
    sliced: bool = False
    learn_at: int
    token_learners: nn.ModuleList
    token_fusers: nn.ModuleList
    fc_norm: nn.Module
    head_drop: nn.Module
    head: nn.Module
    grad_checkpointing: bool

    @abstractmethod
    def tokenize(self, patches: Tensor) -> tuple[Tensor, Grid, Tensor | None]:
        """Bring patches into a sequence after the prefix tokens, with positions.

        Args:
            patches: Output of :meth:`embed`, shape ``(B, H, W, C)``.

        Returns:
            Tokens, shape ``(B, P + H * W, C)``; the grid; rotary positions or None.
        """

    def run_blocks(
        self,
        x: Tensor,
        grid: Grid | None,
        rotation: Tensor | None = None,
        levels: Sequence[int] = (),
        stop: int | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Run all blocks, or a number of them.

        Args:
            x: Tokens, shape ``(B, P + N, C)``.
            grid: Grid of the patches; None for a subset of them.
            rotation: Rotary positions.
            levels: Indices of blocks whose outputs are wanted.
            stop: Number of blocks to run; all when not given.

        Returns:
            The last tokens, and those after the wanted blocks.
        """
        found: list[Tensor] = []
        for i, block in enumerate(self.blocks[:stop]):
            learner = i - self.learn_at
            if learner < 0:
                x = self.run_block(block, x, grid, rotation)
            elif self.token_fusers:
                x = self.run_on_learned(block, x, grid, learner)
            else:
                x = self.learn(x, grid, 0) if learner == 0 else x
                x = self.run_block(block, x, self.learned_grid(grid))
            if i in levels:
                found.append(x)
        if self.learn_at == len(self.blocks) and stop is None:
            x = self.learn(x, grid, 0)
        return x, found

    def run_block(self, block: nn.Module, x: Tensor, grid: Grid | None, rotation: Tensor | None = None) -> Tensor:
        """Run one block; its activations are recomputed in the backward pass where checkpointing is set."""
        extra = () if rotation is None else (rotation,)
        checkpointing = self.grad_checkpointing and self.training
        out: Tensor = run_block(block, x, grid, self.block_prefix, *extra, checkpointing=checkpointing)
        return out

    def run_on_learned(self, block: nn.Module, x: Tensor, grid: Grid | None, index: int) -> Tensor:
        """Run a block on learned tokens, and add its output to all tokens by a TokenFuser."""
        P = self.block_prefix
        learned = self.run_block(block, self.learn(x, grid, index), self.learned_grid(grid))
        spread = self.fuse(learned[:, P:], x[:, P:], grid, index)
        return torch.cat([learned[:, :P], x[:, P:] + spread], dim=1)

    def learn(self, x: Tensor, grid: Grid | None, index: int) -> Tensor:
        """Replace the tokens of the grid by learned ones; prefix tokens stay as they are."""
        assert grid is not None, "patches are not dropped before a TokenLearner"
        P = self.block_prefix
        learned = self.token_learners[index](x[:, P:].reshape(-1, *grid, self.num_features))
        if self.sliced:
            learned = learned.reshape(x.shape[0], learned.shape[1] // grid[0], self.num_features)
        return torch.cat([x[:, :P], learned], dim=1)

    def fuse(self, learned: Tensor, x: Tensor, grid: Grid | None, index: int) -> Tensor:
        """Spread learned tokens over the tokens of the grid."""
        spread: Tensor = self.token_fusers[index](learned, x)
        return spread

    def learned_grid(self, grid: Grid | None) -> Grid | None:
        """Return the grid of learned tokens; they have none."""
        return None

    def finish(self, x: Tensor, grid: Grid) -> Tensor:
        """Apply the last norm."""
        out: Tensor = self.norm(x)
        return out

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool ``(B, N, C)`` and classify: ``(B, num_classes)``, or ``(B, C)`` with ``pre_logits``."""
        pooled = self.fc_norm(self.pool(features))
        out: Tensor = pooled if pre_logits else self.head(self.head_drop(pooled))
        return out

    @property
    def ends(self) -> tuple[Ends, ...]:
        """Patches at both ends; none where a TokenLearner without fuser leaves no grid."""
        if self.learn_at <= len(self.blocks) and not self.token_fusers:
            return ()
        width, stride = self.num_features, self.patch_stride
        return (Ends(self.streams[0].name, width, stride, width, stride),)

    def forward_embedded(self, *embedded: Tensor) -> tuple[Tensor, ...]:
        """Encode embedded patches ``(B, H, W, C)``, as :meth:`VisionModel.forward_embedded`."""
        (patches,) = embedded
        tokens = self.norm(self.run_blocks(*self.tokenize(patches))[0])
        return (tokens[:, self.num_prefix :].reshape(patches.shape),)

    def forward_visible(self, embedded: Tensor, keep: Tensor) -> Tensor:
        """Run a subset of the patches, as :meth:`VisionModel.forward_visible`.

        Source: He et al. 2022, arXiv:2111.06377, section 3, "MAE encoder"; of clips Tong et al. 2022, arXiv:2203.12602,
        section 3.3.
        """
        if lack := self.lacks_visible():
            raise ConfigError(f"forward_visible is not possible: {lack}")
        tokens, _, rotation = self.tokenize(embedded)
        x, rotation = take_patches(tokens, rotation, keep, self.num_prefix)
        for block in self.blocks:
            x = self.run_block(block, x, None, rotation)
        out: Tensor = self.norm(x)
        return out

    def run_levels(
        self, inputs: Sequence[Any], wanted: Sequence[int], stop: int | None
    ) -> tuple[Tensor, dict[int, LevelTokens]]:
        """Run blocks on the grid of patches, as :meth:`VisionModel.run_levels`.

        After a TokenLearner without fuser tokens have no grid, so :attr:`feature_info` ends there.
        """
        (x,) = inputs
        tokens, grid, rotation = self.tokenize(*self.embed(x))
        tokens, found = self.run_blocks(tokens, grid, rotation, wanted, stop)
        B, P, C = x.shape[0], self.block_prefix, self.num_features
        maps = [row[:, P:].reshape(B, *grid, C) for row in found]
        prefixes = [row[:, :P].reshape(B, P * (grid[0] if self.sliced else 1), C) if P else None for row in found]
        features = self.norm(tokens) if stop is not None else self.finish(tokens, grid)
        return features, dict(zip(wanted, map(LevelTokens, maps, prefixes), strict=True))

    def norm_level(self, index: int, tokens: Tensor) -> Tensor:
        """Apply the last norm to tokens ``(..., C)``; it fits those of every block."""
        out: Tensor = self.norm(tokens)
        return out

    def level_module(self, index: int) -> nn.Module:
        """Return the block, or after a TokenLearner the fuser, which adds to the patches beside the block."""
        learner = index - self.learn_at
        return self.token_fusers[learner] if self.token_fusers and learner >= 0 else self.blocks[index]

    def reads_level(self, index: int) -> bool:
        """Return False for the last block where the class token alone is read after it."""
        return not (self.global_pool == "token" and index == len(self.blocks) - 1)

    def lacks_grid(self) -> str:
        """Return the reason why the last tokens form no grid: a TokenLearner without fuser."""
        if self.ends:
            return ""
        return (
            "the tokens after a TokenLearner without fuser form no grid; set token_learner.fuse true, or leave "
            "token_learner out"
        )

    def lacks_visible(self) -> str:
        """Return the reason why all patches are needed: a TokenLearner."""
        return "a TokenLearner needs all patches; leave token_learner out" if len(self.token_learners) else ""

    def lacks_positions(self) -> str:
        """Return the reason why no tokens have positions: all layers attend among learned tokens."""
        return "every layer attends among learned tokens, which have no positions" if self.learn_at == 0 else ""

    def layer_groups(self) -> list[list[str]]:
        """Group by embedding, each block with the TokenLearner before it, :meth:`later_groups`, then norm and head."""
        blocks = [[f"blocks.{i}"] for i in range(len(self.blocks))]
        for index in range(len(self.token_learners)):
            at = min(self.learn_at + index, len(blocks) - 1)
            blocks[at] += [f"token_learners.{index}", f"token_fusers.{index}"]
        first = ["stem", "patch_embed", "pos_embed", "time_embed", "cls_token", "dist_token", "reg_token"]
        # The last group takes what no other claims.
        return group_parameters(self, [first, *blocks, *self.later_groups(), []])

    def later_groups(self) -> list[list[str]]:
        """Return prefixes of the names of parameters between the blocks and the head, by group."""
        return []
