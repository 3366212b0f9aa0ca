"""The model of vitrail inside of what torch.compile, data-parallel training or a training loop put around it."""

from __future__ import annotations

from torch import nn

from vitrail.errors import ConfigError
from vitrail.models.base import VisionModel

# Names under which torch.compile, (Distributed)DataParallel and FSDP hold the model.
_INNER = ("_orig_mod", "module", "_fsdp_wrapped_module")


def unwrapped(model: nn.Module) -> nn.Module:
    """The module that torch.compile, DataParallel, DistributedDataParallel and FSDP were given."""
    while not isinstance(model, VisionModel) and isinstance(model, nn.Module):
        inner = next((model._modules[name] for name in _INNER if model._modules.get(name) is not None), None)
        if inner is None:
            break
        model = inner
    return model


def network_of(model: nn.Module) -> VisionModel:
    """The model to explain: itself, or the only one inside of a wrapper.

    A LightningModule may hold anything beside its model. Any other module must hold the model alone: a module beside
    it, a normalisation for instance, would be left out.

    Raises:
        ConfigError: No model of vitrail, several, or one beside other modules.
    """
    network = unwrapped(model)
    while not isinstance(network, VisionModel):
        parts = list(network.children()) if isinstance(network, nn.Module) else []
        inside = [part for part in parts if any(isinstance(module, VisionModel) for module in part.modules())]
        lightning = any(kind.__name__ == "LightningModule" for kind in type(network).__mro__)
        if not inside:
            raise ConfigError(f"only models of vitrail can be explained, not {type(network).__name__}")
        if len(inside) > 1 or (len(parts) > 1 and not lightning):
            names = [name for name, module in network.named_modules() if isinstance(module, VisionModel)]
            raise ConfigError(
                f"{type(network).__name__} holds other modules beside a model of vitrail; explain the model itself: "
                + " or ".join(f".{name}" for name in names)
            )
        network = unwrapped(inside[0])
    return network
