"""MAE: the encoder runs on the visible patches, and a small decoder reconstructs the masked ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from vitrail.data.normalization import NormalizeStreams
from vitrail.errors import ConfigError
from vitrail.layers.attention import Attention
from vitrail.layers.block import Block
from vitrail.layers.positions import sincos_positions, sincos_sequence
from vitrail.layers.shapes import product
from vitrail.models.base import VisionModel
from vitrail.models.modality import VIDEO, Modality
from vitrail.tasks.masking import (
    Grid,
    grid_of,
    mask_pixels,
    masked_mean,
    normalize_patches,
    normalize_tubelets,
    num_masked,
    random_masks,
    tube_masks,
    unpatchify,
    upsample_mask,
)
from vitrail.tasks.pretraining import PretrainingTask

# As in the authors' code: 32 channels a head, LayerNorm as in the encoder.
_DIM_HEAD = 32
_NORM_EPS = 1e-6


class Decoder(nn.Module):
    """Reconstruct the pixels of all patches from the visible tokens.

    Args:
        in_dim: Channels of the encoder's tokens.
        dim: Channels of the decoder's tokens, a multiple of 32.
        depth: Number of blocks.
        values: Values of a patch, ``ph * pw * C``.

    Source: He et al. 2022, arXiv:2111.06377, section 3, "MAE decoder"; of clips: Tong et al. 2022, arXiv:2203.12602,
    appendix, with sine positions in the order of the tubelets.
    """

    def __init__(self, in_dim: int, dim: int, depth: int, values: int) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(in_dim, eps=_NORM_EPS)
        self.embed = nn.Linear(in_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(dim))
        self.blocks = nn.ModuleList(
            Block(dim, Attention(dim, dim // _DIM_HEAD), norm_eps=_NORM_EPS) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim, eps=_NORM_EPS)
        self.head = nn.Linear(dim, values)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, visible: Tensor, keep: Tensor, grid: Grid) -> Tensor:
        """Insert mask tokens, add positions and decode.

        Args:
            visible: The encoder's tokens, shape ``(B, P + K, C)``, prefix tokens first.
            keep: Indices of the K visible patches, row-major, shape ``(B, K)``.
            grid: Rows and columns of patches, the times of tubelets before them.

        Returns:
            Shape ``(B, *grid, values)``.
        """
        tokens = self.embed(self.norm_in(visible))
        B, N, C = tokens.shape
        P = N - keep.shape[1]
        every = self.mask_token.to(tokens.dtype).expand(B, product(grid), C)
        every = every.scatter(1, keep[..., None].expand(-1, -1, C), tokens[:, P:])
        if len(grid) == 2:
            positions = sincos_positions((grid[0], grid[1]), C, every.device)
        else:
            positions = sincos_sequence(product(grid), C, every.device)
        x = torch.cat([tokens[:, :P], every + positions.to(every.dtype)], dim=1)
        for block in self.blocks:
            x = block(x, grid, P)
        out: Tensor = self.head(self.norm(x[:, P:]))
        return out.view(B, *grid, -1)


def default_mask_ratio(modality: Modality) -> float:
    """Return the published share of masked patches: 0.75 of images, 0.9 of clips, whose frames repeat each other."""
    return 0.9 if modality is VIDEO else 0.75


class MAETask(PretrainingTask):
    """Masked autoencoding.

    Masked pixels are set to 0 before the patch embedding, and the encoder skips the tokens of masked patches. Clips are
    masked by tubes (:func:`tube_masks`), and their target is normalised by tubelet (:func:`normalize_tubelets`).

    Args:
        model: Model to train.
        normalize: Normalises streams in 0..1 to the model's inputs.
        augment: Augmentation of a batch's streams in 0..1, in training only.
        mask_ratio: Share of masked patches; :func:`default_mask_ratio` when not given.
        normalize_target: Whether the target is normalised by patch (:func:`normalize_patches`).
        loss_on: "masked" or "all" pixels.
        decoder_dim: Channels of the decoder; by default half of the model's, as a multiple of 32.
        decoder_depth: Number of decoder blocks.

    Raises:
        ConfigError: A model that cannot run on visible patches alone, or a ratio that leaves no patch visible.

    Source: He et al. 2022, arXiv:2111.06377, section 3; of clips: Tong et al. 2022, arXiv:2203.12602, section 3.
    """

    betas: ClassVar[tuple[float, float]] = (0.9, 0.95)
    unused: ClassVar[bool] = True

    def __init__(
        self,
        model: VisionModel,
        normalize: NormalizeStreams,
        augment: nn.Module | None = None,
        *,
        mask_ratio: float | None = None,
        normalize_target: bool = True,
        loss_on: str = "masked",
        decoder_dim: int | None = None,
        decoder_depth: int = 4,
    ) -> None:
        super().__init__(model, normalize, augment)
        if lack := model.lacks_visible():
            other = "simclr" if model.lacks_grid() or model.modality is VIDEO else "simmim"
            raise ConfigError(
                f"task.name mae needs a model that runs on visible patches alone, and {model.name} cannot: {lack}; or "
                f"use task.name {other}"
            )
        mask_ratio = default_mask_ratio(model.modality) if mask_ratio is None else mask_ratio
        if not 0 < mask_ratio < 1:
            raise ConfigError(f"task.mask_ratio must be above 0 and below 1 for mae, got {mask_ratio}")
        self.mask_ratio, self.normalize_target, self.loss_on = mask_ratio, normalize_target, loss_on
        self.patch = model.mask_unit()
        self.tubes = model.modality is VIDEO
        grid = grid_of(model.streams[0].size, self.patch)
        num_masked(product(grid[1:] if self.tubes else grid), mask_ratio)
        dim = decoder_dim or max(_DIM_HEAD, model.num_features // 2 // _DIM_HEAD * _DIM_HEAD)
        values = product(self.patch) * model.streams[0].chans
        self.decoder = Decoder(model.num_features, dim, decoder_depth, values)

    def reconstruct(self, x: Tensor, mask: Tensor) -> Tensor:
        """Reconstruct images from their visible patches.

        Args:
            x: Normalised images or clips, shape ``(B, C, H, W)`` or ``(B, C, T, H, W)``.
            mask: Shape ``(B, h, w)`` or ``(B, t, h, w)``, True where masked, with equally many masked patches in each.

        Returns:
            The shape of ``x``, in the units of the target.
        """
        (patches,) = self.model.embed(mask_pixels(x, mask, self.patch))
        flat = mask.flatten(1)
        visible = int((~flat[0]).sum())
        keep = flat.to(torch.uint8).argsort(dim=1, stable=True)[:, :visible]
        tokens = self.model.forward_visible(patches, keep)
        patches_out = self.decoder(tokens, keep, tuple(mask.shape[1:]))
        return unpatchify(patches_out.float(), self.patch, tuple(x.shape[2:]))

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute the mean squared error of the reconstruction."""
        (x,) = self.normalize(self.streams(batch))
        size = tuple(x.shape[2:])
        draw, normalize = (tube_masks, normalize_tubelets) if self.tubes else (random_masks, normalize_patches)
        mask = draw(len(x), grid_of(size, self.patch), self.mask_ratio, x.device)
        predicted = self.reconstruct(x, mask)
        target = normalize(x, self.patch) if self.normalize_target else x
        pixels = upsample_mask(mask, self.patch, size) if self.loss_on == "masked" else None
        return {"loss": masked_mean((predicted - target).square(), pixels)}
