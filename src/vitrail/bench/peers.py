"""Pairs of our models and their peers in other libraries, with the same weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vitrail.errors import ConfigError, VitrailError, WeightsError, first_line
from vitrail.extras import import_extra
from vitrail.models.base import VisionModel
from vitrail.models.peer import Peer
from vitrail.models.profile import example_inputs
from vitrail.models.registry import create_model, find_family, list_families
from vitrail.weights.load import load_weights

# Maximum difference of outputs, relative to the largest output.
_AGREEMENT = 1e-4

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Pair:
    """Our model and its peer, on the CPU.

    Attributes:
        ours: Our model, with the peer's weights.
        theirs: The peer.
        difference: Largest difference of the outputs for a random image, relative to the largest output.
    """

    ours: VisionModel
    theirs: nn.Module
    difference: float


def check_counterpart(library: str, name: str, settings: Settings) -> None:
    """Check that a model has a peer in a library.

    Args:
        library: A key of the family's ``peers``, such as "timm".
        name: A variant or a family.
        settings: Settings of the model, all or those that differ from the variant's.

    Raises:
        ConfigError: The library does not have the model.
        VitrailError: The library is not installed, or cannot be imported.
    """
    _plan(library, name, settings)
    import_extra(library, "peers")


def own_settings(library: str, name: str, settings: Settings) -> dict[str, Any]:
    """Complete settings so that our model computes the same function as the library's."""
    peer = find_family(name)[0].peers.get(library)
    return {**settings, **({} if peer is None else peer.settings)}


def build_counterpart(library: str, name: str, settings: Settings) -> nn.Module:
    """Build the peer of a model, with random weights.

    Args:
        library: A key of the family's ``peers``, such as "timm".
        name: A variant or a family.
        settings: Settings of our model.

    Raises:
        ConfigError: The library does not have the model.
        VitrailError: The library is not installed, or rejects the settings.
    """
    peer, values = _plan(library, name, settings)
    try:
        return peer.build(values)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise VitrailError(f"{library} cannot build {name} with these settings: {first_line(error)}") from error


def pair_up(library: str, name: str, settings: Settings) -> Pair:
    """Build a model and its peer with the same random weights.

    Args:
        library: A key of the family's ``peers``, such as "timm".
        name: A variant or a family.
        settings: Settings of the model, completed by :func:`own_settings`.

    Raises:
        ConfigError: The library does not have the model.
        VitrailError: The library is not installed, or the outputs differ.
    """
    theirs = build_counterpart(library, name, settings).eval()
    ours = create_model(name, **own_settings(library, name, settings)).eval()
    inputs = [torch.rand_like(x) for x in example_inputs(ours)]
    _randomise(theirs)
    try:
        load_weights(ours, theirs.state_dict(), source=library)
        with torch.no_grad():
            a, b = ours(*inputs), theirs(*inputs)
    except (AssertionError, RuntimeError, WeightsError) as error:
        raise VitrailError(f"{library} cannot take part with this {name}: {first_line(error)}") from error
    difference = float((a - b).abs().max() / b.abs().max())
    if not difference < _AGREEMENT:
        raise VitrailError(
            f"{library}'s {name} does not compute the same: with equal weights its output differs by "
            f"{difference:.1e} of the largest value, and {_AGREEMENT:g} is allowed; leave out --against {library}"
        )
    return Pair(ours, theirs, difference)


def _randomise(model: nn.Module) -> None:
    """Perturb all weights, so that no initial zeros or ones hide a wrong mapping."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1 if parameter.ndim == 1 else 0.02)


def _plan(library: str, name: str, settings: Settings) -> tuple[Peer, dict[str, Any]]:
    """Find the family's peer and complete the settings, before anything is imported."""
    libraries = sorted({known for family in list_families().values() for known in family.peers})
    if library not in libraries:
        raise ConfigError(f"models are measured against {' and '.join(libraries)}, not against {library!r}")
    family, base = find_family(name)
    values = dataclasses.asdict(family.config(**{**base, **own_settings(library, name, settings)}))
    peer = family.peers.get(library)
    missing = f"no {family.name}" if peer is None else peer.missing(values)
    if peer is None or missing:
        raise ConfigError(f"{library} has no counterpart of {name} ({missing}); leave out --against {library}")
    return peer, values
