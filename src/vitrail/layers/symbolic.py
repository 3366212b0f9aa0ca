"""torch.fx: a layer whose steps depend on the size of the map is one node of a symbolic graph.

``torch.fx.symbolic_trace`` runs a model on proxies without a size, so that no decision by size can be recorded.
"""

from __future__ import annotations

import contextlib
import functools
import typing
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from torch import nn
from torch.fx import Proxy

from vitrail.errors import ConfigError

Function = TypeVar("Function", bound=Callable[..., Any])


def one_node(function: Function) -> Function:
    """Make a function, or a module's ``forward``, a single node of torch.fx graphs.

    The node of a ``forward`` is a call of the module, that of a function a call of the function.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        proxy = _find_proxy((*args, *kwargs.values()))
        if proxy is None:
            return function(*args, **kwargs)
        tracer: Any = proxy.tracer
        if args and isinstance(args[0], nn.Module):
            if args[0] is tracer.root:
                raise ConfigError(
                    f"torch.fx cannot trace a {type(args[0]).__name__} by itself: its steps depend on the size of the "
                    "input; trace the model, in which it is one node"
                )
            return tracer.create_proxy("call_module", tracer.path_of_module(args[0]), args[1:], kwargs)
        return tracer.create_proxy("call_function", call, args, kwargs)

    return call  # type: ignore[return-value]  # the signature is the function's


def resolve_annotations(function: Function) -> Function:
    """Replace annotations that are text by their types, which torch.fx writes into its graphs and pickles."""
    with contextlib.suppress(NameError):  # a type that is imported for type checkers alone
        function.__annotations__ = typing.get_type_hints(function)
    return function


def is_symbolic(value: object) -> bool:
    """Return whether a value is a proxy in a graph that torch.fx records."""
    return issubclass(type(value), Proxy)


def _find_proxy(values: Iterable[Any]) -> Proxy | None:
    for value in values:
        if isinstance(value, Proxy):
            return value
        if isinstance(value, tuple):
            for part in value:
                if isinstance(part, Proxy):
                    return part
    return None
