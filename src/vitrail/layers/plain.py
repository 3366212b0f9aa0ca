"""Whether a layer may compute past the ``forward`` of a module in it: the one decision of every fast path.

A fast path uses a module's parameters without calling the module. That equals the call only where the module is of the
class that the fast path knows and where nothing is attached to the call.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

_OF_TORCH = (nn.Parameter, Tensor, type(None))


def is_plain(kind: type[nn.Module], *modules: nn.Module) -> bool:
    """Whether the call of each module computes what ``kind`` computes, and nothing observes or changes the call.

    Not so with a module of another class (replaced, wrapped, parametrised, a subclass), with a hook of any kind on the
    module or on all modules, with a ``forward`` of the instance's own, or with parameters of a tensor subclass.

    Args:
        kind: The class that the fast path knows.
        *modules: The modules that it would not call, or call more than once.
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
