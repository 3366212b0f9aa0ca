"""From the last tokens to the classifier: the part of the contract behind the setting ``global_pool``."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from torch import Tensor, nn

from vitrail.layers.head import AttentionPool, linear_classifier, pool_tokens
from vitrail.layers.init import init_linears
from vitrail.models.protocol import LibraryProtocol


class Pooling(LibraryProtocol):
    """Pooling and classifier of a family.

    Attributes:
        classifier: Name of the module that gives the logits.
        channels_first: Whether ``forward_features`` gives a map ``(B, C, H, W)`` instead of tokens.
        config: The settings the model was built with.
        num_class_tokens: Class tokens at the start of the prefix tokens, whose mean ``global_pool="token"`` reads.
        attn_pool: Attention of ``global_pool="map"``; None for another pooling.
    """

    classifier: ClassVar[str] = "head"
    channels_first: ClassVar[bool] = False
    config: Any
    head: nn.Module
    num_prefix: int = 0
    num_class_tokens: int = 1
    attn_pool: AttentionPool | None
    _num_classes: int = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.attn_pool = None

    @property
    def num_classes(self) -> int:
        """Width of the logits, as the classifier at hand has it; 0 without one."""
        head = self.get_classifier()
        if head is None or isinstance(head, nn.Identity):
            return 0 if head is not None else self._num_classes
        # The last linear layer decides: a classifier may be wrapped or have hidden layers.
        found = (getattr(part, "out_features", None) for part in head.modules())
        widths = [width for width in found if isinstance(width, int)]
        return widths[-1] if widths else self._num_classes

    @num_classes.setter
    def num_classes(self, value: int) -> None:
        # For a classifier that does not tell its width.
        self._num_classes = value

    def get_classifier(self) -> nn.Module | None:
        """Return the module that computes the logits, replaced or not; None for a family without one."""
        module: nn.Module = self
        for name in self.classifier.split("."):
            part = module._modules.get(name)
            if part is None:
                break
            module = part
        return None if module is self else module

    @property
    def global_pool(self) -> str:
        """Pooling of the last tokens, as the setting says; "avg" for a family without that setting."""
        return str(getattr(getattr(self, "config", None), "global_pool", "avg"))

    @property
    def pool_sizes(self) -> tuple[int, int]:
        """Channels of the last tokens, and heads with which ``global_pool="map"`` pools them: those of the last block.

        One head where the settings have no ``num_heads``.
        """
        heads: Any = getattr(self.config, "num_heads", 1)
        return self.num_features, heads if isinstance(heads, int) else heads[-1]

    @property
    def reads_class_token(self) -> bool:
        """Whether the classifier reads class tokens instead of the other tokens."""
        return self.global_pool == "token"

    def build_pool(self) -> AttentionPool | None:
        """Build the freshly initialised attention of ``global_pool="map"``; None for another pooling."""
        if self.global_pool != "map":
            return None
        settings = {name: getattr(self.config, name) for name in _OF_BLOCKS if hasattr(self.config, name)}
        pool = AttentionPool(*self.pool_sizes, **settings)
        init_linears(pool)
        return pool

    def pool(self, features: Tensor, dims: tuple[int, ...] = (1,)) -> Tensor:
        """Pool the last tokens by the setting ``global_pool``.

        Args:
            features: Output of ``forward_features``.
            dims: Dimensions of the positions, next to each other.

        Returns:
            Shape ``(B, C)``; ``features`` for ``global_pool=""``.
        """
        if self.attn_pool is not None:
            pooled: Tensor = self.attn_pool(self._in_a_row(features, dims)[:, self.num_prefix :])
            return pooled
        return pool_tokens(features, self.global_pool, dims, self.num_prefix, self.num_class_tokens)

    @property
    def weighs_tokens(self) -> bool:
        """Whether :meth:`pooling_weights` gives weights that depend on the tokens."""
        return self.attn_pool is not None

    def pooling_weights(self, features: Tensor) -> Tensor | None:
        """Compute the weights of the last tokens in a pooling that depends on them.

        Args:
            features: Output of ``forward_features``.

        Returns:
            Mean over the heads of the pooling's attention, shape ``(B, N)``, 0 for prefix tokens; None for another
            pooling.
        """
        if self.attn_pool is None:
            return None
        dims = (2, 3) if self.channels_first else tuple(range(1, features.ndim - 1))
        tokens = self._in_a_row(features, dims)
        weights = self.attn_pool.weights(tokens[:, self.num_prefix :]).mean(dim=1)
        return nn.functional.pad(weights, (self.num_prefix, 0))

    def _in_a_row(self, features: Tensor, dims: tuple[int, ...]) -> Tensor:
        """Reshape the output of ``forward_features`` to ``(B, N, C)``."""
        tokens = features.flatten(dims[0], dims[-1]) if len(dims) > 1 else features
        return tokens.transpose(1, 2) if self.channels_first else tokens

    def build_head(self, num_classes: int) -> nn.Module:
        """Build a freshly initialised classifier, a linear layer; the identity for no classes."""
        head = linear_classifier(self.num_features, num_classes)
        init_linears(head)
        return head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one; 0 classes leaves the features as they are.

        Args:
            num_classes: Width of the logits.
            global_pool: New pooling of the tokens; unchanged when not given.

        Raises:
            ConfigError: A pooling that the family does not have.
        """
        pool: Any = self.global_pool if global_pool is None else global_pool
        self.config = dataclasses.replace(self.config, num_classes=num_classes, global_pool=pool)
        self.num_classes = num_classes
        parameter = next(self.parameters())
        self.head = self.build_head(num_classes).to(parameter.device, parameter.dtype)
        if (self.attn_pool is None) == (pool == "map"):
            self.attn_pool = self.build_pool()
            if self.attn_pool is not None:
                self.attn_pool.to(parameter.device, parameter.dtype)


# Settings of the blocks that the attention of the pooling shares.
_OF_BLOCKS = ("mlp_ratio", "norm_layer", "act_layer")
