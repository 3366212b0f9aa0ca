"""ViT, with TokenLearner at any layer if wanted.

Sources: Dosovitskiy et al. 2021, arXiv:2010.11929 (ViT); Ryoo et al. 2021, arXiv:2106.11297 (TokenLearner).
Parameter names are timm's, so that its checkpoints load unchanged.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vitrail.errors import ConfigError, closest
from vitrail.layers.attention import Attention
from vitrail.layers.block import Block
from vitrail.layers.checkpointing import run_block
from vitrail.layers.drop_path import drop_path_schedule
from vitrail.layers.head import POOLS, linear_classifier, pool_tokens
from vitrail.layers.init import init_linears, init_patch_projection
from vitrail.layers.patches import PatchEmbed
from vitrail.layers.positions import resample_positions, sincos_positions
from vitrail.layers.shapes import check_img_size, grid_size, to_pair
from vitrail.layers.token_learner import TokenFuser, TokenLearner
from vitrail.models.base import VisionModel, group_parameters
from vitrail.models.checkpoint_sizes import count_numbered, old_grid, read_width
from vitrail.models.checks import as_config, check_at_least, check_mlp_ratio, check_pool
from vitrail.models.facts import Ends, FeatureInfo, LevelTokens
from vitrail.models.family import Family, register_family
from vitrail.models.peer import Peer, build_timm, build_torchvision, missing_in_torchvision
from vitrail.weights.huggingface import block_rules
from vitrail.weights.rules import Drop, DropToken, KeyMap, Refuse, Rename

_NORM_EPS = 1e-6


@dataclass(frozen=True)
class TokenLearnerConfig:
    """Where a ViT learns its tokens, and how.

    Attributes:
        num_tokens: Tokens to learn.
        layer: Blocks before it, 0 to the depth; the middle when not given.
        version: "1.1" (softmax, weighted mean) or "1.0" (sigmoid, weighted sum).
        bottleneck_dim: Hidden width of the MLPs of version 1.1 and of the fuser.
        fuse: Whether every later block learns its own tokens and a TokenFuser spreads them back over all
            positions (the paper's section 2.2), instead of going on with the learned tokens alone.
    """

    num_tokens: int = 8
    layer: int | None = None
    version: str = "1.1"
    bottleneck_dim: int = 64
    fuse: bool = False


@dataclass(frozen=True)
class ViTConfig:
    """Settings of a ViT.

    Attributes:
        img_size: Height and width in pixels that the positions are learned for; other sizes run too.
        in_chans: Bands.
        num_classes: Width of the logits; 0 gives the pooled features.
        patch_size: Height and width of a patch in pixels.
        embed_dim: Width of a token.
        depth: Blocks.
        num_heads: Attention heads; must divide the width.
        mlp_ratio: Hidden width of the MLPs over the token width.
        qkv_bias: Whether queries, keys and values have a bias.
        class_token: Whether a class token is prepended.
        global_pool: "token" reads the class token, "avg" the mean over the other tokens, "max" the largest value of
            each channel, "avgmax" the mean of these two; "" classifies each token.
        fc_norm: Whether the last norm comes after the pooling; where "avg", "max" or "avgmax" pools when not given.
        drop_path_rate: Stochastic depth of the last block.
        pos_embed_init: What the learned positions begin as: "normal" (close to nothing) or "sincos" (sines and cosines
            of the place, from which few images teach more).
        token_learner: TokenLearner's settings; none without it.
    """

    img_size: int | tuple[int, int] = 224
    in_chans: int = 3
    num_classes: int = 1000
    patch_size: int | tuple[int, int] = 16
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    class_token: bool = True
    global_pool: Literal["token", "avg", "max", "avgmax", ""] = "token"
    fc_norm: bool | None = None
    drop_path_rate: float = 0.0
    pos_embed_init: Literal["normal", "sincos"] = "normal"
    token_learner: TokenLearnerConfig | None = None

    def __post_init__(self) -> None:
        """Check what the layers do not check themselves.

        Raises:
            ConfigError: A value out of range, or settings that contradict each other.
        """
        object.__setattr__(self, "img_size", to_pair(self.img_size, "img_size"))
        object.__setattr__(self, "patch_size", to_pair(self.patch_size, "patch_size"))
        check_at_least(self, 1, "in_chans", "embed_dim", "depth", "num_heads")
        check_at_least(self, 0, "num_classes")
        check_mlp_ratio(self.mlp_ratio, self.embed_dim)
        check_pool(self.global_pool, ("token", *POOLS))
        if self.pos_embed_init not in ("normal", "sincos"):
            raise ConfigError(f"pos_embed_init must be 'normal' or 'sincos', got {self.pos_embed_init!r}")
        if self.global_pool == "token" and not self.class_token:
            raise ConfigError("global_pool='token' needs class_token=True; use global_pool='avg' without one")
        if self.token_learner is not None:
            object.__setattr__(self, "token_learner", _complete_token_learner(self.token_learner, self.depth))


def _complete_token_learner(value: TokenLearnerConfig | Mapping[str, Any], depth: int) -> TokenLearnerConfig:
    if isinstance(value, Mapping):
        known = [f.name for f in dataclasses.fields(TokenLearnerConfig)]
        for key in value:
            if key not in known:
                raise ConfigError(f"token_learner has no setting {key!r}{closest(key, known)}")
        value = TokenLearnerConfig(**value)
    if not isinstance(value, TokenLearnerConfig):
        raise ConfigError(f"token_learner must hold settings (num_tokens: 8, ...), got {value!r}")
    check_at_least(value, 1, "num_tokens", "bottleneck_dim")
    layer = depth // 2 if value.layer is None else value.layer
    last = depth - 1 if value.fuse else depth
    if not 0 <= layer <= last:
        raise ConfigError(
            f"token_learner layer counts the blocks before it: 0 to {last} for {depth} blocks"
            f"{' with a fuser' if value.fuse else ''}, got {layer}"
        )
    return dataclasses.replace(value, layer=layer)


# Touvron et al. 2021, arXiv:2012.12877, section 4: its output is averaged with the class token's.
_DISTILLATION = DropToken(
    "dist_token",
    "pos_embed",
    1,
    r"head_dist\..*",
    "part of distillation, which this model does not have; its outputs are those of the class token alone",
)
# Tensors without which the blocks would compute something else.
_REFUSED = (
    Refuse(r"reg_token|register_tokens", "register tokens, which this ViT does not have"),
    Refuse(r".*\.(ls[12]\.gamma|gamma_[12]|layer_scale\w*(\..*)?)", "scaled residuals, which this ViT does not have"),
    Refuse(r"blocks\.\d+\.attn\.[qk]_norm\..*", "norms of queries and keys, which this ViT does not have"),
)


class ViT(VisionModel):
    """Vision transformer.

    Args:
        config: The settings.

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929; TokenLearner: Ryoo et al. 2021, arXiv:2106.11297.
    """

    config: ViTConfig

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config = as_config(ViTConfig, config)
        dim = config.embed_dim
        self.num_classes = config.num_classes
        self.num_features = dim
        self.num_prefix = int(config.class_token)
        self.patch_embed = PatchEmbed(config.in_chans, dim, config.patch_size)
        img_size, patch_size = to_pair(config.img_size), self.patch_embed.patch_size
        check_img_size(img_size, patch_size)
        self.grid = grid_size(img_size, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if config.class_token else None
        self.pos_embed = nn.Parameter(torch.zeros(1, self.num_prefix + self.grid[0] * self.grid[1], dim))
        rates = drop_path_schedule(config.drop_path_rate, config.depth)
        self.blocks = nn.ModuleList(
            Block(dim, Attention(dim, config.num_heads, config.qkv_bias), config.mlp_ratio, rate, _NORM_EPS)
            for rate in rates
        )
        learner = config.token_learner
        self.learn_at = config.depth + 1 if learner is None or learner.layer is None else learner.layer
        self.token_learners = nn.ModuleList()
        self.token_fusers = nn.ModuleList()
        if learner is not None:
            for _ in range(config.depth - self.learn_at if learner.fuse else 1):
                self.token_learners.append(
                    TokenLearner(dim, learner.num_tokens, learner.version, learner.bottleneck_dim)
                )
                if learner.fuse:
                    self.token_fusers.append(TokenFuser(dim, learner.num_tokens, learner.bottleneck_dim))
        # Where tokens are pooled the norm comes after the pooling, as in timm.
        pooled = config.global_pool not in ("token", "") if config.fc_norm is None else config.fc_norm
        self.norm = nn.Identity() if pooled else nn.LayerNorm(dim, eps=_NORM_EPS)
        self.fc_norm = nn.LayerNorm(dim, eps=_NORM_EPS) if pooled else nn.Identity()
        self.head = linear_classifier(dim, config.num_classes)
        self.grad_checkpointing = False
        on_grid = config.depth if self.token_fusers else min(config.depth, self.learn_at)
        self.feature_info = [FeatureInfo(f"blocks.{i}", dim, patch_size) for i in range(on_grid)]
        self._init_weights()

    def _init_weights(self) -> None:
        # TokenLearner and TokenFuser have begun as their authors have them.
        init_linears(self.blocks, self.head)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if self.config.pos_embed_init == "sincos":
            with torch.no_grad():
                self.pos_embed[:, self.num_prefix :] = sincos_positions(self.grid, self.config.embed_dim)
        if self.cls_token is not None:
            nn.init.normal_(self.cls_token, std=1e-6)
        init_patch_projection(self.patch_embed.proj)

    @property
    def ends(self) -> tuple[Ends, ...]:
        """Patches at both ends; none where a TokenLearner without fuser leaves no grid."""
        if self.learn_at <= len(self.blocks) and not self.token_fusers:
            return ()
        size = self.patch_embed.patch_size
        return (Ends("image", self.num_features, size, self.num_features, size),)

    def embed(self, x: Tensor) -> tuple[Tensor, ...]:
        """Patches ``(B, H, W, C)`` before positions, as :meth:`VisionModel.embed`."""
        return (self.patch_embed(x),)

    def forward_embedded(self, *embedded: Tensor) -> tuple[Tensor, ...]:
        """Patches after the last norm, ``(B, H, W, C)``, as :meth:`VisionModel.forward_embedded`."""
        (patches,) = embedded
        tokens = self.norm(self._run(*self._place(patches))[0])
        return (tokens[:, self.num_prefix :].reshape(patches.shape),)

    def lacks_grid(self) -> str:
        """A TokenLearner without fuser leaves no grid."""
        if self.ends:
            return ""
        return (
            "the tokens after a TokenLearner without fuser form no grid; set token_learner.fuse true, or leave "
            "token_learner out"
        )

    def lacks_visible(self) -> str:
        """A TokenLearner needs all patches."""
        return "a TokenLearner needs all patches; leave token_learner out" if len(self.token_learners) else ""

    def lacks_positions(self) -> str:
        """Learned tokens have no positions."""
        return "every layer attends among learned tokens, which have no positions" if self.learn_at == 0 else ""

    def level_module(self, index: int) -> nn.Module:
        """The block, or after a TokenLearner the fuser, which adds to the patches beside the block."""
        learner = index - self.learn_at
        return self.token_fusers[learner] if self.token_fusers and learner >= 0 else self.blocks[index]

    def reads_level(self, index: int) -> bool:
        """After the last block a class token alone is read."""
        return not (self.global_pool == "token" and index == len(self.blocks) - 1)

    def forward_visible(self, embedded: Tensor, keep: Tensor) -> Tensor:
        """Run a subset of the patches, as :meth:`VisionModel.forward_visible`.

        Source: He et al. 2022, arXiv:2111.06377, section 3, "MAE encoder".
        """
        if lack := self.lacks_visible():
            raise ConfigError(f"forward_visible is not possible: {lack}")
        tokens, _ = self._place(embedded)
        P = self.num_prefix
        chosen = tokens[:, P:].gather(1, keep[..., None].expand(-1, -1, tokens.shape[-1]))
        x = torch.cat([tokens[:, :P], chosen], dim=1)
        for block in self.blocks:
            x = self._run_block(block, x, None)
        out: Tensor = self.norm(x)
        return out

    def _embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        return self._place(self.patch_embed(x))

    def _place(self, patches: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Patches ``(B, H, W, C)`` as a row with the prefix tokens, and with positions; and their grid."""
        grid = (patches.shape[1], patches.shape[2])
        tokens = patches.flatten(1, 2)
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        return tokens + resample_positions(self.pos_embed, self.grid, grid, self.num_prefix), grid

    def _learn(self, x: Tensor, grid: tuple[int, int], index: int) -> Tensor:
        """Replace the tokens of the grid by learned ones; prefix tokens stay as they are."""
        prefix, tokens = x[:, : self.num_prefix], x[:, self.num_prefix :]
        learned = self.token_learners[index](tokens.reshape(x.shape[0], *grid, self.num_features))
        return torch.cat([prefix, learned], dim=1)

    def _run_block(self, block: nn.Module, x: Tensor, grid: tuple[int, int] | None) -> Tensor:
        checkpointing = self.grad_checkpointing and self.training
        return run_block(block, x, grid, self.num_prefix, checkpointing=checkpointing)

    def _run(
        self, tokens: Tensor, grid: tuple[int, int], levels: Sequence[int] = (), stop: int | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Run all blocks, or a number of them; also give the tokens after the wanted blocks."""
        found: list[Tensor] = []
        P = self.num_prefix
        for i, block in enumerate(self.blocks[:stop]):
            if self.token_fusers and i >= self.learn_at:
                learned = self._run_block(block, self._learn(tokens, grid, i - self.learn_at), None)
                spread = self.token_fusers[i - self.learn_at](learned[:, P:], tokens[:, P:])
                tokens = torch.cat([learned[:, :P], tokens[:, P:] + spread], dim=1)
            elif i >= self.learn_at:
                if i == self.learn_at:
                    tokens = self._learn(tokens, grid, 0)
                tokens = self._run_block(block, tokens, None)
            else:
                tokens = self._run_block(block, tokens, grid)
            if i in levels:
                found.append(tokens)
        if self.learn_at == len(self.blocks) and stop is None:
            tokens = self._learn(tokens, grid, 0)
        return tokens, found

    def forward_features(self, x: Tensor) -> Tensor:
        """Tokens after the last norm.

        Args:
            x: Images, shape ``(B, in_chans, H, W)``.

        Returns:
            Shape ``(B, N, C)``, prefix tokens first; ``N`` counts the learned tokens where there are any.

        Raises:
            ShapeError: No batch of images of the right number of bands and type, or smaller than a patch.
        """
        tokens: Tensor = self.norm(self._run(*self._embed(x))[0])
        return tokens

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool ``(B, N, C)`` and classify: ``(B, num_classes)``, or ``(B, C)`` with ``pre_logits``."""
        pooled = self.fc_norm(pool_tokens(features, self.config.global_pool, (1,), self.num_prefix))
        out: Tensor = pooled if pre_logits else self.head(pooled)
        return out

    def run_levels(
        self, inputs: Sequence[Any], wanted: Sequence[int], stop: int | None
    ) -> tuple[Tensor, dict[int, LevelTokens]]:
        """Run blocks on the patch grid, as :meth:`VisionModel.run_levels`.

        After a TokenLearner without fuser tokens have no grid, so :attr:`feature_info` ends there.
        """
        (x,) = inputs
        P = self.num_prefix
        tokens, grid = self._embed(x)
        tokens, found = self._run(tokens, grid, wanted, stop)
        maps = [row[:, P:].reshape(row.shape[0], *grid, row.shape[2]) for row in found]
        prefixes = [row[:, :P] if P else None for row in found]
        return self.norm(tokens), dict(zip(wanted, map(LevelTokens, maps, prefixes), strict=True))

    def norm_level(self, index: int, tokens: Tensor) -> Tensor:
        """Apply the last norm to tokens ``(..., C)``; it fits those of every block."""
        out: Tensor = self.norm(tokens)
        return out

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one, as :meth:`VisionModel.reset_classifier`."""
        if global_pool is not None:
            # The norm stays where it is.
            self.config = dataclasses.replace(self.config, fc_norm=not isinstance(self.fc_norm, nn.Identity))
        super().reset_classifier(num_classes, global_pool)

    def _keep_levels(self, count: int) -> None:
        learner = self.config.token_learner
        if count <= self.learn_at:
            learner, self.learn_at = None, count + 1
        self.blocks = self.blocks[:count]
        kept = max(0, count - self.learn_at) if self.token_fusers else 0
        self.token_learners, self.token_fusers = self.token_learners[:kept], self.token_fusers[:kept]
        self.config = dataclasses.replace(self.config, depth=count, token_learner=learner)

    def layer_groups(self) -> list[list[str]]:
        """Embedding, then each block with the TokenLearner before it, then norm and head."""
        blocks = [[f"blocks.{i}"] for i in range(len(self.blocks))]
        for index in range(len(self.token_learners)):
            at = min(self.learn_at + index, len(blocks) - 1)
            blocks[at] += [f"token_learners.{index}", f"token_fusers.{index}"]
        return group_parameters(self, [["patch_embed", "pos_embed", "cls_token"], *blocks, ["norm", "fc_norm", "head"]])

    def fit_tensor(
        self, key: str, value: Tensor, state: Mapping[str, Tensor], made_for: Mapping[str, Any]
    ) -> tuple[Tensor, str] | None:
        """Resample positions that were learned for another grid (a square one where no settings tell)."""
        if key != "pos_embed" or value.ndim != 3 or value.shape[-1] != self.num_features:
            return None
        prefix = int("cls_token" in state)
        old = old_grid(value.shape[1] - prefix, self.patch_embed.patch_size, made_for)
        if old is None or prefix != self.num_prefix:
            return None
        how = f"positions from {old[0]} x {old[1]} to {self.grid[0]} x {self.grid[1]}, bicubic"
        return resample_positions(value, old, self.grid, prefix), how

    @classmethod
    def read_structure(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Depth and width, as far as the shapes show them."""
        depth = count_numbered(state, "blocks")
        return read_width(state, "patch_embed.proj.weight") | ({"depth": depth} if depth else {})

    @classmethod
    def read_settings(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Also whether there is a class token, and what is pooled."""
        pooled = "fc_norm.weight" in state
        names = {"class_token": "cls_token" in state, "global_pool": "avg" if pooled else "token"}
        return {**super().read_settings(state), **names}

    key_maps = (
        KeyMap(
            "timm",  # also vitrail's own names, DeiT's, MAE's and DINO's
            (r"patch_embed\.proj\.weight", r"blocks\.0\.attn\.qkv\.weight", r"pos_embed"),
            (
                *_REFUSED,
                _DISTILLATION,
                Drop(r"pre_logits\b.*", "representation layer of the pre-training head, not used"),
            ),
        ),
        KeyMap(
            "huggingface",
            (
                r"((vit|deit)\.)?embeddings\.patch_embeddings\.projection\.weight",
                r"((vit|deit)\.)?embeddings\.position_embeddings",
            ),
            (
                Rename(r"(?:vit|deit)\.(.*)", r"\1"),
                Rename(r"embeddings\.register_tokens", "register_tokens"),
                *_REFUSED,
                Drop(r"pooler\..*", "pooler of the pre-training head, not part of the classifier"),
                Rename(r"embeddings\.mask_token", "mask_token"),
                Rename(r"embeddings\.distillation_token", "dist_token"),
                Rename(r"distillation_classifier\.(.*)", r"head_dist.\1"),
                Rename(r"cls_classifier\.(.*)", r"head.\1"),
                Rename(r"embeddings\.cls_token", "cls_token"),
                Rename(r"embeddings\.position_embeddings", "pos_embed"),
                _DISTILLATION,
                Rename(r"embeddings\.patch_embeddings\.projection\.(.*)", r"patch_embed.proj.\1"),
                Rename(r"(?:encoder\.layer|layers)\.(\d+)\.(.*)", r"blocks.\1.\2"),
                *block_rules(r"blocks\.\d+", "attention"),
                Rename(r"layernorm\.(.*)", r"norm.\1"),
                Rename(r"classifier\.(.*)", r"head.\1"),
            ),
        ),
        KeyMap(
            "torchvision",
            (r"conv_proj\.weight", r"encoder\.pos_embedding"),
            (
                Rename(r"class_token", "cls_token"),
                Rename(r"conv_proj\.(.*)", r"patch_embed.proj.\1"),
                Rename(r"encoder\.pos_embedding", "pos_embed"),
                Rename(r"encoder\.layers\.encoder_layer_(\d+)\.(.*)", r"blocks.\1.\2"),
                Rename(r"(blocks\.\d+)\.ln_([12])\.(.*)", r"\1.norm\2.\3"),
                Rename(r"(blocks\.\d+)\.self_attention\.in_proj_(weight|bias)", r"\1.attn.qkv.\2"),
                Rename(r"(blocks\.\d+)\.self_attention\.out_proj\.(.*)", r"\1.attn.proj.\2"),
                Rename(r"(blocks\.\d+)\.mlp\.(?:0|linear_1)\.(.*)", r"\1.mlp.fc1.\2"),
                Rename(r"(blocks\.\d+)\.mlp\.(?:3|linear_2)\.(.*)", r"\1.mlp.fc2.\2"),
                Rename(r"encoder\.ln\.(.*)", r"norm.\1"),
                Rename(r"heads\.head\.(.*)", r"head.\1"),
            ),
        ),
    )


# arXiv:2010.11929, table 1, and the smaller widths of Touvron et al. 2021, arXiv:2012.12877, table 1.
_WIDTHS: dict[str, dict[str, int]] = {
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
}
_SIZES = (
    "tiny_patch16_224 tiny_patch16_384 small_patch8_224 small_patch16_224 small_patch16_384 small_patch32_224 "
    "small_patch32_384 base_patch8_224 base_patch16_224 base_patch16_384 base_patch32_224 base_patch32_384 "
    "large_patch14_224 large_patch16_224 large_patch16_384 large_patch32_224 large_patch32_384 huge_patch14_224"
).split()


def _variants() -> dict[str, dict[str, Any]]:
    variants: dict[str, dict[str, Any]] = {}
    for size in _SIZES:
        width, patch, pixels = size.split("_")
        settings: dict[str, Any] = {
            **_WIDTHS[width],
            "patch_size": int(patch.removeprefix("patch")),
            "img_size": int(pixels),
        }
        if width == "huge":
            # timm's variant has no classifier unless asked for one: the weights under this name are features.
            settings["num_classes"] = 0
        variants[f"vit_{size}"] = settings
        if patch == "patch16" and pixels == "224":
            # 8 or 16 tokens learned at the middle of the network: arXiv:2106.11297, section 3.
            for tokens in (8, 16):
                variants[f"vit_{size}_tokenlearner{tokens}"] = {
                    **settings,
                    "token_learner": {"num_tokens": tokens},
                }
            variants[f"vit_{size}_tokenlearner8_fuser"] = {
                **settings,
                "token_learner": {"num_tokens": 8, "fuse": True},
            }
    return variants


_SHARED_WITH_TIMM = (
    "img_size", "in_chans", "num_classes", "mlp_ratio", "qkv_bias", "drop_path_rate", "patch_size", "embed_dim",
    "depth", "num_heads", "class_token", "global_pool",
)  # fmt: skip


def _build_timm(settings: Mapping[str, Any]) -> nn.Module:
    return build_timm("vit_small_patch16_224", settings, _SHARED_WITH_TIMM)


def _build_torchvision(settings: Mapping[str, Any]) -> nn.Module:
    return build_torchvision(
        "VisionTransformer",
        image_size=to_pair(settings["img_size"])[0],
        patch_size=to_pair(settings["patch_size"])[0],
        num_layers=settings["depth"],
        num_heads=settings["num_heads"],
        hidden_dim=settings["embed_dim"],
        mlp_dim=int(settings["embed_dim"] * settings["mlp_ratio"]),
        num_classes=settings["num_classes"],
    )


def _missing_in_timm(settings: Mapping[str, Any]) -> str:
    return "no TokenLearner" if settings["token_learner"] is not None else ""


def _missing_in_torchvision(settings: Mapping[str, Any]) -> str:
    if settings["token_learner"] is not None:
        return "no TokenLearner"
    if settings["global_pool"] != "token":
        return "no mean over tokens"
    return missing_in_torchvision(settings, "img_size", "patch_size")


register_family(
    Family(
        name="vit",
        config=ViTConfig,
        build=ViT,
        variants=_variants(),
        test_config={
            "img_size": 32,
            "patch_size": 8,
            "embed_dim": 24,
            "depth": 2,
            "num_heads": 3,
            "num_classes": 5,
        },
        published={"vit_base_patch16_384": 77.9},
        layers=(TokenFuser, TokenLearner),
        source="Dosovitskiy et al. 2021, arXiv:2010.11929; TokenLearner: Ryoo et al. 2021, arXiv:2106.11297",
        peers={
            "timm": Peer(_build_timm, _missing_in_timm),
            "torchvision": Peer(_build_torchvision, _missing_in_torchvision),
        },
    )
)
