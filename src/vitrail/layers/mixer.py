"""The call of a block's token mixer: attention, or a module that replaces it."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from vitrail.errors import ConfigError
from vitrail.layers.attention import Attention
from vitrail.layers.fast.dispatch import is_plain

# Second arguments of modules that attend from one sequence to another.
_OF_KEYS = ("key", "keys", "k", "memory", "context")


def call_mixer(mixer: nn.Module, x: Tensor, *layout: Any, rotation: Tensor | None = None) -> Tensor:
    """Mix tokens by the attention of a block, or by a module in its place.

    Args:
        mixer: Attention, or any module that maps tokens to tokens of the same shape: ``forward(x)``, as of
            ``nn.Identity`` or ``nn.Sequential``, or ``forward(x, *layout)``.
        x: Tokens, shape ``(B, N, C)`` or ``(B, H, W, C)``.
        *layout: Grid and number of prefix tokens, for a mixer that takes them.
        rotation: Rotary positions, for attention of vitrail; another mixer has positions of its own, or none.

    Returns:
        Tokens, shaped as they came.

    Raises:
        ConfigError: A module that takes other arguments, or returns more than the tokens.
    """
    if isinstance(mixer, Attention):
        mixed: Any = mixer(x, *layout) if rotation is None else mixer(x, *layout, rotation)
    elif layout and len(mixer._modules) and is_plain(nn.Sequential, mixer):
        # Attention with a dropout behind it still reports on which grid it works.
        first, *others = mixer.children()
        mixed = call_mixer(first, x, *layout, rotation=rotation)
        for other in others:
            mixed = other(mixed)
    elif _takes_layout(type(mixer), len(layout)):
        mixed = mixer(x, *layout)
    else:
        mixed = mixer(x)
    if isinstance(mixed, tuple | list):
        raise ConfigError(
            f"{type(mixer).__name__} in place of attention returns a {type(mixed).__name__}; a mixer returns the "
            "tokens alone (docs/extend.md, 'A mixer of your own')"
        )
    tokens: Tensor = mixed
    return tokens


def _takes_layout(kind: type[nn.Module], count: int) -> bool:
    """Return whether a mixer's ``forward`` takes the layout beside the tokens.

    Raises:
        ConfigError: It takes neither the tokens alone nor the tokens and the layout.
    """
    signature = inspect.signature(kind.forward)
    names = list(signature.parameters)[1:]  # without self
    of_keys = len(names) > 1 and names[1] in _OF_KEYS
    if not of_keys and count and _binds(signature, 2 + count):
        return True
    if not of_keys and _binds(signature, 2):
        return False
    wanted = "forward(x, grid, num_prefix) or forward(x)" if count else "forward(x)"
    raise ConfigError(
        f"{kind.__name__} in place of attention has forward({', '.join(names)}); blocks call {wanted}: wrap it in a "
        "module of that form (docs/extend.md, 'A mixer of your own')"
    )


# As torch.compiler.assume_constant_result marks it, which would import the compiler: the answer depends on the class.
_takes_layout._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _binds(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True
