"""Base of the families for point clouds: inputs, levels and pooling."""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from vitrail.errors import ConfigError, ShapeError
from vitrail.layers.masked import masked_max, masked_mean
from vitrail.layers.modes import in_graph
from vitrail.layers.symbolic import resolve_annotations
from vitrail.models.base import VisionModel
from vitrail.models.checks import check_at_least, check_rates
from vitrail.models.facts import Ends, FeatureInfo, LevelTokens, Stream, describe
from vitrail.models.modality import POINTS
from vitrail.models.settings import check_choices
from vitrail.weights.kernels import InputKernel

COORDINATES = 3


@dataclass(frozen=True)
class PointSettings:
    """Settings that all families of point clouds have.

    Attributes:
        num_points: Points of a cloud that the model is made for; other numbers run too.
        in_chans: Numbers of a point: 3 coordinates, then its attributes (intensity, colour).
        num_classes: Number of logits; 0 gives the features before them.
        per_point: Whether logits are those of each point, from its features and the pooled ones, instead of the cloud.
        num_widths: Setting that lists layer widths -> how many it lists.
    """

    num_widths: ClassVar[Mapping[str, int]] = {}
    num_points: int = 1024
    in_chans: int = 3
    num_classes: int = 40
    per_point: bool = False

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ConfigError: A value out of range.
        """
        check_at_least(self, 1, "num_points")
        check_at_least(self, 0, "num_classes")
        check_at_least(self, COORDINATES, "in_chans")
        check_choices(self)
        check_rates(self, *(field.name for field in fields(self) if field.name.endswith("_rate")))
        check_widths(self, self.num_widths)


@dataclass(frozen=True)
class GraphSettings(PointSettings):
    """Settings of families with graphs of nearest points, beside those of :class:`PointSettings`.

    Attributes:
        num_neighbors: Neighbours of a point in the graph of nearest points, itself among them.
    """

    num_neighbors: int = 20

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ConfigError: A value out of range.
        """
        super().__post_init__()
        check_at_least(self, 1, "num_neighbors")


class PointCloudModel(VisionModel):
    """Model of point clouds.

    A point without finite coordinates is not a point: clouds of fewer points are padded with NaN, and a point is
    removed by writing NaN. Tokens of such points are NaN in :meth:`forward_features` too.

    Attributes:
        feature_info: One level per layer, on the grid of the points, in their order.
        neck: Layers between the pooled features and the classifier.
    """

    modality = POINTS
    neck: nn.Module
    input_kernels: ClassVar[dict[str, InputKernel]] = {}

    @property
    def streams(self) -> tuple[Stream, ...]:
        """Coordinates, then attributes where there are any."""
        size, attributes = (self.config.num_points,), self.config.in_chans - COORDINATES
        points = Stream("points", COORDINATES, size, channels_last=True)
        return (points, Stream("features", attributes, size, channels_last=True)) if attributes else (points,)

    @property
    def ends(self) -> tuple[Ends, ...]:
        """None: points lie on no grid from which parts could be left out."""
        return ()

    def lacks_grid(self) -> str:
        """Return the reason why pre-training by masks is not possible."""
        return f"{type(self).__name__} takes points, which lie on no grid"

    def lacks_visible(self) -> str:
        """Return the reason why :meth:`forward_visible` is not possible."""
        return self.lacks_grid()

    def embed(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        """Refuse, with :meth:`lacks_grid`."""
        raise ConfigError(f"embed is not possible: {self.lacks_grid()}")

    def forward_embedded(self, *embedded: Tensor) -> tuple[Tensor, ...]:
        """Refuse, with :meth:`lacks_grid`."""
        raise ConfigError(f"forward_embedded is not possible: {self.lacks_grid()}")

    @resolve_annotations
    def forward(self, x: Tensor, features: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Classify point clouds.

        Args:
            x: Coordinates, shape ``(B, N, 3)``; NaN where a cloud has fewer points.
            features: Attributes of the points, shape ``(B, N, in_chans - 3)``.
            mask: True for real points, shape ``(B, N)``, beside those that are NaN.

        Returns:
            Logits, shape ``(B, num_classes)``; with ``per_point`` ``(B, N, num_classes)``, NaN where there is no point.

        Raises:
            ShapeError: Inputs of another shape or type.
        """
        return self.forward_head(self.forward_features(x, features, mask))

    def forward_features(self, x: Tensor, features: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Compute the features of the points; arguments are those of :meth:`forward`.

        Returns:
            Shape ``(B, N, C)``; NaN where there is no point.
        """
        points, mask = self._take(x, features, mask)
        return self._mark(self.encode(points, mask, None)[0], mask)

    @abstractmethod
    def encode(self, points: Tensor, mask: Tensor | None, stop: int | None) -> tuple[Tensor, list[Tensor]]:
        """Run the layers before the pooling.

        Args:
            points: Coordinates and attributes, shape ``(B, N, in_chans)``; 0 where there is no point.
            mask: True for real points, shape ``(B, N)``; None where all are.
            stop: Number of levels to run; None for all layers.

        Returns:
            Features of the points, shape ``(B, N, C)``, and the values of the levels, shape ``(B, N, ...)`` each.
        """

    def run_levels(
        self, inputs: Sequence[Any], wanted: Sequence[int], stop: int | None
    ) -> tuple[Tensor, dict[int, LevelTokens]]:
        """Run the layers up to a level, as :meth:`VisionModel.run_levels`; vectors of a point follow one another."""
        points, mask = self._take(*inputs)
        out, levels = self.encode(points, mask, stop)
        return self._mark(out, mask), {index: LevelTokens(levels[index].flatten(2)) for index in wanted}

    def level_as_map(self, index: int, output: Tensor, size: tuple[Any, ...]) -> Tensor:
        """Permute the values of a level, ``(B, N, ...)``, to ``(B, C, N)``."""
        return output.flatten(2).transpose(1, 2)

    def norm_level(self, index: int, tokens: Tensor) -> Tensor:
        """Return the tokens: no norm stands alone at the end."""
        return tokens

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool features ``(B, N, C)`` and classify; ``pre_logits`` stops before the last linear layer."""
        last = nn.Identity() if pre_logits else self.head
        if not self.config.per_point:
            out: Tensor = last(self.neck(self.pool_points(features)))
            return out
        mask = known_mask(~features[..., 0].isnan())
        joined = features if mask is None else features.masked_fill(~mask[..., None], 0.0)
        if self.config.global_pool:
            pooled = self.pool_points(features).unsqueeze(1).expand(-1, features.shape[1], -1)
            joined = torch.cat([joined, pooled], dim=-1)
        if mask is None or not self.training:
            of_points = last(self.neck(joined.flatten(0, 1)))
            return self._mark(of_points.view(*joined.shape[:2], of_points.shape[-1]), mask)
        # Statistics of the batch norms are those of the real points.
        of_points = last(self.neck(joined[mask]))
        marked: Tensor = of_points.new_full((*mask.shape, of_points.shape[-1]), float("nan"))
        return marked.index_put((mask,), of_points)

    def pool_points(self, features: Tensor) -> Tensor:
        """Pool features ``(B, N, C)``, NaN where there is no point, by the setting ``global_pool``."""
        mask = known_mask(~features[..., 0].isnan())
        if mask is not None:
            features = features.masked_fill(~mask[..., None], 0.0)
        pool = self.config.global_pool
        if not pool:
            return features
        parts = [masked_max(features, mask)] if "max" in pool else []
        if "avg" in pool:
            parts.append(masked_mean(features, mask))
        return torch.cat(parts, dim=-1)

    @property
    def weighs_tokens(self) -> bool:
        """Whether :meth:`pooling_weights` gives weights, which it does for every pooling of points."""
        return bool(self.config.global_pool)

    def pooling_weights(self, features: Tensor) -> Tensor | None:
        """Compute the weights of the points in the pooling.

        A maximum weighs a point by its share of the features whose largest value it has.

        Args:
            features: Output of :meth:`forward_features`.

        Returns:
            Shape ``(B, N)``; each row sums to one. None without a pooling.
        """
        pool = self.config.global_pool
        if not pool:
            return None
        real = ~features[..., 0].isnan()
        parts = []
        if "max" in pool:
            first = features.masked_fill(~real[..., None], float("-inf")).argmax(dim=1)
            share = torch.zeros_like(features[..., 0]).masked_fill(~real, 0.0)
            parts.append(share.scatter_add(1, first, torch.full_like(first, 1.0 / first.shape[1], dtype=share.dtype)))
        if "avg" in pool:
            parts.append(real / real.sum(dim=1, keepdim=True))
        return torch.stack(parts).mean(dim=0)

    def _take(
        self, x: Tensor, features: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Check the inputs; return the points ``(B, N, in_chans)`` and the mask of real ones, None where all are."""
        attributes = self.config.in_chans - COORDINATES
        given = (x,) if features is None else (x, features)
        shapes = [tuple(part.shape[2:]) for part in given]
        right = shapes == [(COORDINATES,), (attributes,)][: 1 + bool(attributes)]
        if not right or not all(part.is_floating_point() for part in given):
            wanted = "(B, N, 3)" + (f" and attributes of shape (B, N, {attributes})" if attributes else "")
            raise ShapeError(
                f"{type(self).__name__} takes points of shape {wanted}, floating-point numbers, got {describe(given)}"
                f" of type {', '.join(str(part.dtype) for part in given)}"
            )
        finite = x.isfinite().all(dim=-1)
        mask = known_mask(finite if mask is None else finite & mask.bool())
        points = torch.cat(given, dim=-1) if features is not None else x
        return (points if mask is None else points.masked_fill(~mask[..., None], 0.0)), mask

    def _mark(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return x if mask is None else x.masked_fill(~mask[..., None], float("nan"))


def known_mask(mask: Tensor) -> Tensor | None:
    """Return None for a mask of points that are all real, so that layers need none; a graph has the mask always."""
    if in_graph(mask):
        return mask
    return None if mask.is_meta or bool(mask.all()) else mask


def check_widths(config: object, counts: Mapping[str, int]) -> None:
    """Refuse lists of layer widths of another length, or with a width below 1; make them tuples.

    Args:
        config: The settings.
        counts: Setting -> how many widths it has.

    Raises:
        ConfigError: Naming the setting and the value.
    """
    for name, count in counts.items():
        widths = getattr(config, name)
        if len(widths) != count or min(widths) < 1:
            raise ConfigError(f"{name} must be {count} whole numbers of at least 1, got {widths!r}")
        object.__setattr__(config, name, tuple(widths))


PointPool = Literal["avg", "max", "catavgmax", ""]


def point_levels(names: Sequence[str], channels: Sequence[int]) -> list[FeatureInfo]:
    """Describe the levels of a model of points, each on the points themselves."""
    return [FeatureInfo(name, width, (1,)) for name, width in zip(names, channels, strict=True)]


def neck_width(width: int, config: PointSettings) -> int:
    """Compute how many features the classifier gets of a cloud, or with ``per_point`` of each point.

    Args:
        width: Features of a point.
        config: Settings with ``global_pool``.
    """
    pool = config.global_pool  # type: ignore[attr-defined]  # every family has it, by its modality
    pooled = width * (2 if pool == "catavgmax" else 1)
    return pooled + width if config.per_point and pool else pooled


def pointnet_neck(pooled: int, hidden_dims: Sequence[int], drop_rate: float) -> nn.Sequential:
    """Build the two hidden layers of PointNet's classifier, by the names of the authors of VN-PointNet."""
    hidden, width = hidden_dims
    return nn.Sequential(
        OrderedDict(
            fc1=nn.Linear(pooled, hidden),
            bn1=nn.BatchNorm1d(hidden),
            act1=nn.ReLU(),
            fc2=nn.Linear(hidden, width),
            drop=nn.Dropout(drop_rate),
            bn2=nn.BatchNorm1d(width),
            act2=nn.ReLU(),
        )
    )


def dgcnn_neck(
    pooled: int, hidden_dims: Sequence[int], drop_rate: float, norms: tuple[str, str], bias: bool
) -> nn.Sequential:
    """Build the two hidden layers of DGCNN's classifier.

    Args:
        pooled: Pooled features.
        hidden_dims: Widths of both layers.
        drop_rate: Dropout rate after each.
        norms: Names of the batch norms.
        bias: Whether the first layer has biases.
    """
    hidden, width = hidden_dims
    return nn.Sequential(
        OrderedDict(
            [
                ("linear1", nn.Linear(pooled, hidden, bias=bias)),
                (norms[0], nn.BatchNorm1d(hidden)),
                ("act1", nn.LeakyReLU(0.2)),
                ("dp1", nn.Dropout(drop_rate)),
                ("linear2", nn.Linear(hidden, width)),
                (norms[1], nn.BatchNorm1d(width)),
                ("act2", nn.LeakyReLU(0.2)),
                ("dp2", nn.Dropout(drop_rate)),
            ]
        )
    )


def split_vectors(points: Tensor) -> Tensor:
    """View points ``(B, N, S)`` as lists of one vector, ``(B, N, S, 1)``."""
    return points.unsqueeze(-1)


def join_mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Append the mean over all points to the features ``(B, N, ..., C)`` of each: ``(B, N, ..., 2 C)``."""
    mean = masked_mean(x, mask).unsqueeze(1)
    return torch.cat([x, mean.expand_as(x)], dim=-1)
