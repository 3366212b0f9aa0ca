"""Fast paths: which exist, when they apply, and how to switch them off.

``@with_fast_path("mlp")`` on a plain function allows replacements; ``@fast_path("mlp", when=condition)`` in a module of
this package registers one. At each call the first one whose condition holds runs, else the plain function. With
``VITRAIL_FAST=0`` in the environment the plain code runs everywhere.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from vitrail.errors import ConfigError
from vitrail.layers.modes import in_compiler, in_graph

Function = TypeVar("Function", bound=Callable[..., Any])

_PATHS: dict[str, list[tuple[Callable[..., bool], Callable[..., Any]]]] = {}
_OF_TORCH = (nn.Parameter, Tensor, type(None))


def _read_switch() -> bool:
    value = os.environ.get("VITRAIL_FAST", "1")
    if value not in ("0", "1"):
        raise ConfigError(f"VITRAIL_FAST must be 0 (plain code everywhere) or 1, got {value!r}")
    return value == "1"


FAST_AT_START = _read_switch()
_off: frozenset[str] = frozenset()


def with_fast_path(name: str) -> Callable[[Function], Function]:
    """Replace a plain function or method by the fast paths of a name where their conditions hold."""
    paths = _PATHS.setdefault(name, [])

    def decorate(plain: Function) -> Function:
        @functools.wraps(plain)
        def call(*args: Any, **kwargs: Any) -> Any:
            if FAST_AT_START and name not in _off:
                for applies, fast in paths:
                    if applies(*args, **kwargs):
                        return fast(*args, **kwargs)
            return plain(*args, **kwargs)

        return call  # type: ignore[return-value]  # the signature is the plain function's

    return decorate


def fast_path(name: str, when: Callable[..., bool]) -> Callable[[Function], Function]:
    """Register a fast path; earlier ones of the same name come first.

    Args:
        name: As in :func:`with_fast_path`.
        when: Condition; takes the arguments of the function.
    """

    def register(fast: Function) -> Function:
        _PATHS.setdefault(name, []).append((when, fast))
        return fast

    return register


def fast_path_names() -> tuple[str, ...]:
    """List the fast paths."""
    return tuple(sorted(_PATHS))


@contextlib.contextmanager
def without_fast_paths(*names: str) -> Iterator[None]:
    """Run the plain code inside a with statement, for tests and benchmarks.

    Args:
        *names: Fast paths to switch off; all of them when none is named.

    Raises:
        ConfigError: An unknown name.
    """
    global _off
    for name in names:
        if name not in _PATHS:
            raise ConfigError(f"unknown fast path {name!r}; there are {', '.join(fast_path_names())}")
    before = _off
    _off = before | frozenset(names or _PATHS)
    try:
        yield
    finally:
        _off = before


def is_plain(kind: type[nn.Module], *modules: nn.Module) -> bool:
    """Return whether the call of each module computes what ``kind`` computes, and nothing observes or changes the call.

    Not so with a module of another class (replaced, wrapped, parametrised, a subclass), with a hook of any kind on the
    module or on all modules, with a ``forward`` of the instance's own, or with parameters of a tensor subclass.

    Args:
        kind: The class that the fast path knows.
        *modules: Modules that it would not call, or call more than once.
    """
    if torch_module._has_any_global_hook():  # type: ignore[no-untyped-call]
        return False
    for module in modules:
        if type(module) is not kind:
            return False
        own = module.__dict__
        if (
            own["_forward_hooks"]
            or own["_forward_pre_hooks"]
            or own["_backward_hooks"]
            or own["_backward_pre_hooks"]
            or "forward" in own
        ):
            return False
        for parameter in own["_parameters"].values():
            if type(parameter) not in _OF_TORCH:
                return False
    return True


def eager(x: Tensor) -> bool:
    """Return whether ``x`` is a plain tensor in eager code without transforms, whose values may be cached."""
    return not in_graph(x)


def eager_on_cpu(x: Tensor) -> bool:
    """Return whether ``x`` is eager as for :func:`eager`, and on the CPU."""
    return not in_graph(x) and x.device.type == "cpu"


def infers_on_cpu(x: Tensor) -> bool:
    """Return whether :func:`eager_on_cpu` holds, in float32, without gradients and without autocast.

    Only there may a layer overwrite its intermediate values: a compiler arranges memory better by itself, and exported
    or differentiated code should be the plain one.
    """
    return (
        eager_on_cpu(x)
        and x.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )


def compiled_on_cpu(x: Tensor) -> bool:
    """Return whether torch.compile makes a graph for the CPU, which may call custom operators.

    A compiler recomputes a mask or an index that it sees being made for each score. Not on a GPU, where a custom
    operator would split a CUDA graph.
    """
    return in_compiler() and x.device.type == "cpu"
