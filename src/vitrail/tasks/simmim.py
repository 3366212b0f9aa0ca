"""SimMIM: patches are masked, and a light head on the last feature map reconstructs their pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from vitrail.data.normalization import NormalizeStreams
from vitrail.errors import ConfigError
from vitrail.layers.activations import Gelu
from vitrail.layers.shapes import grid_size
from vitrail.models.base import VisionModel
from vitrail.tasks.masking import (
    choose_mask_size,
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

# Largest stride that one linear layer predicts, as in the published head.
_DIRECT_STRIDE = 32


class PixelHead(nn.Module):
    """Predict pixels from the last feature map with one linear layer.

    For strides above 32 the feature map is first upsampled: a linear layer splits each token into 2 x 2 tokens of half
    the channels, until the stride is 32 or odd.

    Args:
        dim: Channels of the feature map.
        stride: Pixels per token, height and width.
        chans: Number of bands.

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

    Masked pixels are set to 0 before the patch embedding, so that they do not leak through overlapping kernels. The
    tokens of masked patches are replaced by a learned mask token. Each stream has its own masks. A stream with ratio 1
    is reconstructed from the other stream alone; a stream with ratio 0 is fully visible and not reconstructed.

    Args:
        model: Model to train.
        normalize: Normalises streams in 0..1 to the model's inputs.
        augment: Augmentation of a batch's streams in 0..1, in training only.
        mask_ratios: Share of masked patches, by stream.
        mask_size: Side of a masked patch in pixels; by default :func:`~vitrail.tasks.masking.choose_mask_size`.
        normalize_target: Whether the target is normalised by patch.
        loss_on: "masked" or "all" pixels.

    Raises:
        ConfigError: The model's last tokens form no grid, the ratios mask nothing or everything, or the mask size is
            not a multiple of the model's first stride.

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
            raise ConfigError(f"task.name simmim reconstructs the grid of the last tokens: {model.lacks_grid()}")
        self.ratios = dict(mask_ratios)
        if set(self.ratios) != set(self.ends):
            raise ConfigError(
                f"task.name simmim needs a mask ratio for each of the streams {', '.join(self.ends)}, got "
                f"{', '.join(self.ratios)}"
            )
        if not any(self.ratios.values()) or all(ratio == 1 for ratio in self.ratios.values()):
            raise ConfigError(
                "task.mask_ratio must leave visible and masked patches, got "
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
        """Sample masks ``(B, h, w)`` of each stream whose ratio is above 0."""
        masks: dict[str, Tensor] = {}
        for name, x in inputs.items():
            if self.ratios[name]:
                grid = grid_size((x.shape[2], x.shape[3]), self.sizes[name])
                masks[name] = random_masks(len(x), grid, self.ratios[name], x.device)
        return masks

    def reconstruct(self, inputs: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Reconstruct the masked streams from the visible patches of all streams.

        Args:
            inputs: Normalised streams, in the model's order, shape ``(B, C, H, W)`` each.
            masks: Mask of each masked stream, shape ``(B, h, w)``, True where masked.

        Returns:
            Pixels of each masked stream, shape ``(B, C, H, W)``.
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
        """Compute the mean absolute error, averaged over streams; with two streams also that of each."""
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
