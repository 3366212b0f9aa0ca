"""What every model of vitrail can do, whatever its family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from vitrail.errors import ConfigError
from vitrail.weights.rules import KeyMap


@dataclass(frozen=True)
class FeatureInfo:
    """One level of a feature pyramid.

    Attributes:
        name: The module that produces it.
        channels: Its channels.
        stride: Input pixels per position, height and width.
    """

    name: str
    channels: int
    stride: tuple[int, int]


class Stream(NamedTuple):
    """One input of a model.

    Attributes:
        name: Its key in a batch (``"image"``, ``"spectral"``).
        chans: Bands.
        size: Height and width that the model was built for; others work too.
    """

    name: str
    chans: int
    size: tuple[int, int]


class VisionModel(nn.Module, ABC):
    """Base of the families.

    Attributes:
        key_maps: How to read the checkpoints of other libraries, the family's own first.
        config: The settings the model was built with.
        num_classes: Width of the logits.
        num_features: Width of what the classifier sees.
        num_prefix: Class and other tokens before those of the patches.
        feature_info: The levels that :meth:`forward_intermediates` can return, in order.
    """

    key_maps: ClassVar[Sequence[KeyMap]] = ()
    config: Any
    num_classes: int
    num_features: int
    num_prefix: int = 0
    feature_info: list[FeatureInfo]

    @property
    @abstractmethod
    def streams(self) -> tuple[Stream, ...]:
        """The inputs that ``forward`` takes, in order."""

    @abstractmethod
    def forward_features(self, *inputs: Tensor) -> Tensor:
        """Tokens after the last norm: ``(B, N, C)`` or ``(B, H, W, C)``, as the family has them."""

    @abstractmethod
    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify what :meth:`forward_features` gave; ``pre_logits`` stops before the classifier."""

    @abstractmethod
    def forward_intermediates(self, *inputs: Tensor, indices: int | Sequence[int] | None = None) -> list[Tensor]:
        """Feature pyramid: one ``(B, C, H, W)`` for each wanted level of :attr:`feature_info`."""

    @abstractmethod
    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a fresh one; 0 classes leaves the features as they are."""

    @abstractmethod
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass instead of keeping their activations."""

    @abstractmethod
    def no_weight_decay(self) -> set[str]:
        """Parameters that should not decay besides biases and norms (positions, class tokens)."""

    @abstractmethod
    def layer_groups(self) -> list[list[str]]:
        """Names of all parameters in groups from the input to the head, for layer-wise learning rates."""

    def fit_tensor(self, key: str, value: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, str] | None:
        """Make a checkpoint's tensor of another shape fit, and say how; None where that is impossible."""
        return None

    def forward(self, *inputs: Tensor) -> Tensor:
        """Classify.

        Args:
            *inputs: One tensor ``(B, C, H, W)`` for each of :attr:`streams`.

        Returns:
            Logits, shape ``(B, num_classes)``.

        Raises:
            ShapeError: Another number of bands, or an image smaller than a patch.
        """
        return self.forward_head(self.forward_features(*inputs))

    def level_indices(self, indices: int | Sequence[int] | None) -> list[int]:
        """Which levels of :attr:`feature_info` are wanted.

        Args:
            indices: Their numbers (negative ones count from the end), how many of the last, or None for all.

        Raises:
            ConfigError: A level that the model does not have.
        """
        levels = len(self.feature_info)
        if indices is None:
            return list(range(levels))
        wanted = range(levels - indices, levels) if isinstance(indices, int) else indices
        for index in wanted:
            if not -levels <= index < levels or (isinstance(indices, int) and index < 0):
                raise ConfigError(f"{type(self).__name__} has {levels} feature levels, asked for {indices}")
        return [index % levels for index in wanted]


def check_at_least(config: object, minimum: int, *names: str) -> None:
    """Refuse settings that are no whole numbers or too small.

    Raises:
        ConfigError: Naming the setting, the minimum and the value.
    """
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise ConfigError(f"{name} must be a whole number of at least {minimum}, got {value!r}")


def group_parameters(model: nn.Module, prefixes: Sequence[Sequence[str]]) -> list[list[str]]:
    """Sort a model's parameters into groups by the beginnings of their names.

    Args:
        model: The model.
        prefixes: For each group, beginnings of module or parameter names; what none claims joins the last.

    Returns:
        Names by group; together exactly all parameters.
    """
    groups: list[list[str]] = [[] for _ in prefixes]
    for name, _ in model.named_parameters():
        owner = next(
            (i for i, group in enumerate(prefixes) if any(name == p or name.startswith(p + ".") for p in group)),
            len(prefixes) - 1,
        )
        groups[owner].append(name)
    return groups
