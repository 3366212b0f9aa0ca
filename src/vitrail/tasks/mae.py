"""MAE: a ViT sees a few patches of an image, and a small decoder reconstructs the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from vitrail.data.transforms import NormalizeStreams
from vitrail.errors import ConfigError
from vitrail.layers.positions import sincos_positions
from vitrail.models.base import VisionModel
from vitrail.models.vit import Block, ViT
from vitrail.tasks.masking import (
    mask_pixels,
    masked_mean,
    normalize_patches,
    num_masked,
    patchify,
    random_masks,
    unpatchify,
    upsample_mask,
)
from vitrail.tasks.pretraining import PretrainingTask

# As the authors': heads of 32, tokens normalised as in the encoder.
_DIM_HEAD = 32
_NORM_EPS = 1e-6


class Decoder(nn.Module):
    """From the visible tokens to the pixels of all patches.

    Args:
        in_dim: Width of the encoder's tokens.
        dim: Width of the decoder's, a multiple of 32.
        depth: Blocks.
        values: Numbers of a patch.

    Source: He et al. 2022, arXiv:2111.06377, section 3, "MAE decoder".
    """

    def __init__(self, in_dim: int, dim: int, depth: int, values: int) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(in_dim, eps=_NORM_EPS)
        self.embed = nn.Linear(in_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(dim))
        self.blocks = nn.ModuleList(Block(dim, dim // _DIM_HEAD, 4.0, True, 0.0) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=_NORM_EPS)
        self.head = nn.Linear(dim, values)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, visible: Tensor, keep: Tensor, grid: tuple[int, int]) -> Tensor:
        """Reconstruct.

        Args:
            visible: The encoder's tokens, shape ``(B, P + K, C)``, prefix tokens first.
            keep: Places of the K visible patches, row-major, shape ``(B, K)``.
            grid: Of the patches.

        Returns:
            Shape ``(B, *grid, values)``.
        """
        tokens = self.embed(self.norm_in(visible))
        B, N, C = tokens.shape
        P = N - keep.shape[1]
        every = self.mask_token.to(tokens.dtype).expand(B, grid[0] * grid[1], C)
        every = every.scatter(1, keep[..., None].expand(-1, -1, C), tokens[:, P:])
        x = torch.cat([tokens[:, :P], every + sincos_positions(grid, C, every.device).to(every.dtype)], dim=1)
        for block in self.blocks:
            x = block(x, grid, P)
        out: Tensor = self.head(self.norm(x[:, P:]))
        return out.view(B, *grid, -1)


class MAETask(PretrainingTask):
    """Masked autoencoding.

    Masked pixels are replaced by zeros before the model is called, and the tokens of masked patches are left out.

    Args:
        model: Is trained.
        normalize: Makes its inputs from a batch whose streams are in 0..1.
        augment: Changes a batch's streams before that, in training only.
        mask_ratio: Share of the patches that are hidden.
        normalize_target: Whether each patch is reconstructed by its own mean and deviation.
        loss_on: "masked" or "all" pixels.
        decoder_dim: Width of the decoder; half the model's, as a multiple of 32, when not given.
        decoder_depth: Its blocks.

    Raises:
        ConfigError: A model that is no ViT, one with a TokenLearner, or a ratio that leaves no patch visible.

    Source: He et al. 2022, arXiv:2111.06377, section 3.
    """

    betas: ClassVar[tuple[float, float]] = (0.9, 0.95)
    unused: ClassVar[bool] = True

    def __init__(
        self,
        model: VisionModel,
        normalize: NormalizeStreams,
        augment: nn.Module | None = None,
        *,
        mask_ratio: float = 0.75,
        normalize_target: bool = True,
        loss_on: str = "masked",
        decoder_dim: int | None = None,
        decoder_depth: int = 4,
    ) -> None:
        super().__init__(model, normalize, augment)
        if not isinstance(model, ViT):
            raise ConfigError(
                f"task.name mae needs a ViT, whose blocks run on any set of patches, got {model.name or type(model)}; "
                "take task.name simmim"
            )
        if len(model.token_learners):
            raise ConfigError(
                "task.name mae runs on visible patches alone, and a TokenLearner needs them all; leave "
                "model.token_learner out, or take task.name simclr"
            )
        if not 0 < mask_ratio < 1:
            raise ConfigError(f"task.mask_ratio must be above 0 and below 1 for mae, got {mask_ratio}")
        num_masked(model.grid[0] * model.grid[1], mask_ratio)
        self.mask_ratio, self.normalize_target, self.loss_on = mask_ratio, normalize_target, loss_on
        self.patch = model.patch_embed.patch_size
        dim = decoder_dim or max(_DIM_HEAD, model.num_features // 2 // _DIM_HEAD * _DIM_HEAD)
        values = self.patch[0] * self.patch[1] * model.streams[0].chans
        self.decoder = Decoder(model.num_features, dim, decoder_depth, values)

    def reconstruct(self, x: Tensor, mask: Tensor) -> Tensor:
        """All pixels from those that are visible.

        Args:
            x: Normalised images, shape ``(B, C, H, W)``.
            mask: Hidden patches, shape ``(B, h, w)``, as many in each image.

        Returns:
            Shape ``(B, C, H, W)``; each patch by its own mean and deviation where targets are normalised so.
        """
        assert isinstance(self.model, ViT)
        (patches,) = self.model.embed(mask_pixels(x, mask, self.patch))
        flat = mask.flatten(1)
        visible = int((~flat[0]).sum())
        keep = flat.to(torch.uint8).argsort(dim=1, stable=True)[:, :visible]
        tokens = self.model.forward_visible(patches, keep)
        squares = self.decoder(tokens, keep, (mask.shape[1], mask.shape[2]))
        return unpatchify(squares.float(), self.patch, (x.shape[2], x.shape[3]))

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Mean squared error of the reconstruction."""
        (x,) = self.normalize(self.streams(batch))
        grid = tuple(patchify(x[:1, :1], self.patch).shape[1:3])
        mask = random_masks(len(x), (grid[0], grid[1]), self.mask_ratio, x.device)
        predicted = self.reconstruct(x, mask)
        target = normalize_patches(x, self.patch) if self.normalize_target else x
        pixels = upsample_mask(mask, self.patch, (x.shape[2], x.shape[3])) if self.loss_on == "masked" else None
        return {"loss": masked_mean((predicted - target).square(), pixels)}
