"""Find the model inside of a wrapper: torch.compile, data-parallel training, an encoder or a training loop."""

from __future__ import annotations

from typing import Any

from torch import nn

from vitrail.errors import ConfigError

# Names under which torch.compile, (Distributed)DataParallel and FSDP hold the model.
_INNER = ("_orig_mod", "module", "_fsdp_wrapped_module")


def unwrapped(model: nn.Module, kind: type[Any] | None = None) -> nn.Module:
    """Return the module inside of torch.compile, DataParallel, DistributedDataParallel and FSDP.

    Args:
        model: Any module.
        kind: Class of the wanted module, which is looked into no further.
    """
    while isinstance(model, nn.Module):
        # A compiled module answers for the attributes of the module inside, and so seems to be of its kind.
        if kind is not None and isinstance(model, kind) and "_orig_mod" not in model._modules:
            break
        inner = next((model._modules[name] for name in _INNER if model._modules.get(name) is not None), None)
        if inner is None:
            break
        model = inner
    return model


def network_inside(model: nn.Module, kind: type[Any], done: str, alone: bool = True) -> Any:
    """Return the model itself, or the only one inside of a wrapper.

    Args:
        model: A model, or a module around one: compiled, data-parallel, a feature encoder, ``nn.Sequential``, a
            LightningModule.
        kind: Class of the models; the outermost module of it is returned.
        done: Purpose, a participle for the error (``"explained"``).
        alone: Whether the wrapper must hold the model alone. A module beside it, a normalisation for instance, would be
            left out. A LightningModule may hold anything beside its model.

    Raises:
        ConfigError: No model of vitrail, several, or one beside other modules.
    """
    network: Any = unwrapped(model, kind)
    while not isinstance(network, kind):
        parts = list(network.children()) if isinstance(network, nn.Module) else []
        inside = [part for part in parts if any(isinstance(module, kind) for module in part.modules())]
        lightning = any(base.__name__ == "LightningModule" for base in type(network).__mro__)
        if not inside:
            hint = f"; give its .model, a {kind.__name__}" if isinstance(getattr(network, "model", None), kind) else ""
            raise ConfigError(f"only models of vitrail can be {done}, not {type(network).__name__}{hint}")
        if len(inside) > 1 or (alone and len(parts) > 1 and not lightning):
            found = [name for name, module in network.named_modules() if isinstance(module, kind)]
            names = [name for name in found if not any(name.startswith(f"{other}.") for other in found)]
            beside = "several models" if len(names) > 1 else "other modules beside a model"
            raise ConfigError(
                f"{type(network).__name__} holds {beside} of vitrail, and one model alone can be {done}; give "
                + " or ".join(_access(name) for name in names)
            )
        network = unwrapped(inside[0], kind)
    return network


def _access(name: str) -> str:
    """Format the Python access to a submodule: ``[1].model``."""
    return "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in name.split("."))
