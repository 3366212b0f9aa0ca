"""SimMIM: squares of an image are masked, and a light head on the model's last tokens reconstructs their pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from vitrail.data.transforms import NormalizeStreams
from vitrail.errors import ConfigError
from vitrail.layers.gelu import Gelu
from vitrail.models.base import VisionModel
from vitrail.tasks.masking import (
    choose_mask_size,
    grid_size,
    insert_mask_tokens,
    mask_pixels,
    masked_mean,
    normalize_patches,
    num_masked,
    random_masks,
    unpatchify,
    upsample_mask,
)
from vitrail.tasks.pretraining import PretrainingTask

Pair = tuple[int, int]

# The stride up to which one linear layer gives the pixels; the published head's.
_DIRECT_STRIDE = 32


class PixelHead(nn.Module):
    """From last tokens to pixels: one linear layer, whose outputs are the pixels of a token's square.

    Where a token stands for more than 32 pixels a side, the map is first doubled: a linear layer gives four tokens of
    half the width each, as often as it takes.

    Args:
        dim: Width of the tokens.
        stride: Pixels per token, height and width.
        chans: Bands.

    Source: Xie et al. 2022, arXiv:2111.09886, section 3.3 (the linear layer).
    """

    def __init__(self, dim: int, stride: Pair, chans: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.doublings = nn.ModuleList()
        while max(stride) > _DIRECT_STRIDE and stride[0] % 2 == 0 and stride[1] % 2 == 0:
            narrow = -(-dim // 2)
            self.doublings.append(nn.Sequential(nn.Linear(dim, 4 * narrow), Gelu()))
            dim, stride = narrow, (stride[0] // 2, stride[1] // 2)
        self.stride = stride
        self.pixels = nn.Linear(dim, chans * stride[0] * stride[1])

    def forward(self, tokens: Tensor, img_size: Pair) -> Tensor:
        """Map ``(B, h, w, dim)`` to ``(B, chans, *img_size)``, float32."""
        x = self.norm(tokens)
        for doubling in self.doublings:
            x = doubling(x)
            B, h, w, C = x.shape
            x = x.view(B, h, w, 2, 2, C // 4).permute(0, 1, 3, 2, 4, 5).reshape(B, 2 * h, 2 * w, C // 4)
        return unpatchify(self.pixels(x).float(), self.stride, img_size)


class SimMIMTask(PretrainingTask):
    """Masked image modelling with any model, of one or two streams.

    Masked pixels are replaced by zeros before the model is called, so that none reaches it through overlapping
    kernels either, and the first tokens of masked squares by a learned mask token, so that a masked square is no
    grey one. Each stream has masks of its own. A stream whose ratio is 1 is reconstructed from the other alone; one
    whose ratio is 0 is shown whole and not reconstructed.

    Args:
        model: Is trained.
        normalize: Makes its inputs from a batch whose streams are in 0..1.
        augment: Changes a batch's streams before that, in training only.
        mask_ratios: For each stream the share that is hidden.
        mask_size: Side of a masked square in pixels; chosen by :func:`~vitrail.tasks.masking.choose_mask_size` when
            not given.
        normalize_target: Whether each square is reconstructed by its own mean and deviation.
        loss_on: "masked" or "all" pixels.

    Raises:
        ConfigError: A model whose last tokens lie on no grid, ratios that hide nothing or everything, or a size that
            is no multiple of the model's first stride.

    Source: Xie et al. 2022, arXiv:2111.09886, section 3; masks and losses of two streams, each reconstructed from
    both, after Bachmann et al. 2022, arXiv:2204.01678.
    """

    unused: ClassVar[bool] = True

    def __init__(
        self,
        model: VisionModel,
        normalize: NormalizeStreams,
        augment: nn.Module | None = None,
        *,
        mask_ratios: Mapping[str, float],
        mask_size: int | None = None,
        normalize_target: bool = False,
        loss_on: str = "masked",
    ) -> None:
        super().__init__(model, normalize, augment)
        self.ends = {end.stream: end for end in model.ends}
        if not self.ends:
            raise ConfigError(
                "after a TokenLearner without fuser no token stands for a place in the image, so that none can be "
                "reconstructed; give token_learner.fuse true, or leave token_learner out"
            )
        self.ratios = dict(mask_ratios)
        if set(self.ratios) != set(self.ends):
            raise ConfigError(
                f"task.name simmim needs a mask ratio for each of the streams {', '.join(self.ends)}, got "
                f"{', '.join(self.ratios)}"
            )
        if not any(self.ratios.values()) or all(ratio == 1 for ratio in self.ratios.values()):
            raise ConfigError(
                "task.mask_ratio must leave something to see and something to reconstruct, got "
                + ", ".join(f"{ratio:g} of {name}" for name, ratio in self.ratios.items())
            )
        self.normalize_target, self.loss_on = normalize_target, loss_on
        self.sizes: dict[str, Pair] = {}
        self.mask_tokens, self.heads = nn.ParameterDict(), nn.ModuleDict()
        for stream in model.streams:
            end, ratio = self.ends[stream.name], self.ratios[stream.name]
            size = choose_mask_size(stream.size, end.first_stride, mask_size)
            self.sizes[stream.name] = size
            grid = grid_size(stream.size, size)
            if ratio:
                num_masked(grid[0] * grid[1], ratio)
                self.mask_tokens[stream.name] = nn.Parameter(
                    nn.init.trunc_normal_(torch.empty(end.first_dim), std=0.02)
                )
                self.heads[stream.name] = PixelHead(end.last_dim, end.last_stride, stream.chans)

    def draw_masks(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Random masks for each stream of which something is hidden, ``(B, h, w)``."""
        masks: dict[str, Tensor] = {}
        for name, x in inputs.items():
            if self.ratios[name]:
                grid = grid_size((x.shape[2], x.shape[3]), self.sizes[name])
                masks[name] = random_masks(len(x), grid, self.ratios[name], x.device)
        return masks

    def reconstruct(self, inputs: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All pixels of the masked streams, from what is visible of all streams.

        Args:
            inputs: Normalised streams, in the model's order, shape ``(B, C, H, W)`` each.
            masks: For each masked stream what is hidden, shape ``(B, h, w)``.

        Returns:
            For each masked stream, shape ``(B, C, H, W)``.
        """
        shown = [mask_pixels(x, masks[n], self.sizes[n]) if n in masks else x for n, x in inputs.items()]
        embedded = [
            insert_mask_tokens(tokens, masks[n], self.sizes[n], self.ends[n].first_stride, self.mask_tokens[n])
            if n in masks
            else tokens
            for n, tokens in zip(inputs, self.model.embed(*shown), strict=True)
        ]
        last = dict(zip(inputs, self.model.forward_embedded(*embedded), strict=True))
        return {n: self.heads[n](last[n], (inputs[n].shape[2], inputs[n].shape[3])) for n in masks}

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Mean absolute error of the reconstruction, the mean over the streams; with two also that of each."""
        streams = self.streams(batch)
        inputs = dict(zip(streams, self.normalize(streams), strict=True))
        masks = self.draw_masks(inputs)
        losses: dict[str, Tensor] = {}
        for name, predicted in self.reconstruct(inputs, masks).items():
            x, size = inputs[name], self.sizes[name]
            target = normalize_patches(x, size) if self.normalize_target else x
            pixels = upsample_mask(masks[name], size, (x.shape[2], x.shape[3])) if self.loss_on == "masked" else None
            losses[name] = masked_mean((predicted - target).abs(), pixels)
        total = torch.stack(list(losses.values())).mean()
        several = {f"loss_{name}": loss.detach() for name, loss in losses.items()} if len(losses) > 1 else {}
        return {"loss": total, **several}
