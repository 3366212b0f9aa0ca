"""Methods that tools of timm and of Hugging Face call on a model, in terms of vitrail's own methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import nn

from vitrail.errors import ConfigError
from vitrail.models.facts import Stream
from vitrail.weights.kernels import InputKernel


class LibraryProtocol(nn.Module, ABC):
    """Names by which other libraries know a model's settings and switches."""

    classifier: ClassVar[str]
    input_kernels: ClassVar[Mapping[str, InputKernel]]
    name: str
    num_features: int
    num_prefix: int

    @property
    @abstractmethod
    def streams(self) -> tuple[Stream, ...]:
        """The inputs that ``forward`` takes, in order."""

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Number of logits."""

    @abstractmethod
    def layer_groups(self) -> list[list[str]]:
        """Group the names of all parameters from the input to the head, for layer-wise learning rates."""

    @abstractmethod
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass instead of keeping their activations."""

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: Mapping[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Turn gradient checkpointing on, as Hugging Face's Trainer calls it.

        Args:
            activation_checkpointing_kwargs: Settings of ``torch.utils.checkpoint``, which every block has already.
            every_n_layers: 1; every block is recomputed.
            offload: False; the inputs of the blocks stay on the device.

        Raises:
            ConfigError: Another value.
        """
        if every_n_layers != 1 or offload:
            raise ConfigError(
                f"every_n_layers {every_n_layers} and offload {offload} are not supported: every block is recomputed, "
                "on its device; use every_n_layers=1 and offload=False"
            )
        self.set_grad_checkpointing(True)

    def activation_checkpointing_disable(self) -> None:
        """Turn gradient checkpointing off."""
        self.set_grad_checkpointing(False)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None, **settings: Any
    ) -> None:
        """Turn gradient checkpointing on, by :meth:`activation_checkpointing_enable` under its older name."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **settings)

    def gradient_checkpointing_disable(self) -> None:
        """Turn gradient checkpointing off."""
        self.set_grad_checkpointing(False)

    @property
    def num_prefix_tokens(self) -> int:
        """:attr:`num_prefix` under timm's name."""
        return self.num_prefix

    @property
    def head_hidden_size(self) -> int:
        """Width of the classifier's input."""
        return self.num_features

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """Model facts for timm's tools: input size, classifier, first convolution."""
        first = self.streams[0]
        return {
            "architecture": self.name,
            "url": "",
            "num_classes": self.num_classes,
            "input_size": first.shape,
            "fixed_input_size": False,
            "pool_size": None,
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "mean": (0.485, 0.456, 0.406) if first.chans == 3 else (0.5,) * first.chans,
            "std": (0.229, 0.224, 0.225) if first.chans == 3 else (0.5,) * first.chans,
            "first_conv": next(iter(self.input_kernels)).removesuffix(".weight"),
            "classifier": self.classifier,
        }

    @property
    def default_cfg(self) -> dict[str, Any]:
        """The same, under timm's older name."""
        return self.pretrained_cfg

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """Return the layer of a parameter or module by its name, as timm's layer-wise learning rates take it.

        Args:
            coarse: Not used; layers are those of :meth:`layer_groups`.
        """
        layers = {name: layer for layer, group in enumerate(self.layer_groups()) for name in group}

        def find(name: str) -> int:
            inside = (layer for parameter, layer in layers.items() if parameter.startswith(f"{name}."))
            return layers[name] if name in layers else next(inside, 0)

        return find
