"""Saving a model to a folder and getting it back, with nothing else to know: model.safetensors and model.json."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from vitrail.config.typed import as_tuples
from vitrail.errors import ConfigError, RunError, WeightsError
from vitrail.files import write_json
from vitrail.models.base import VisionModel
from vitrail.models.features_only import FeatureEncoder
from vitrail.models.registry import complete_settings, create_model, list_families
from vitrail.models.twin import check_rebuilt
from vitrail.weights.load import load_weights
from vitrail.weights.locations import CARD_FILE, WEIGHTS_FILE, Location, find_weights, read_card
from vitrail.weights.read import read_checkpoint
from vitrail.weights.wrapped import network_inside
from vitrail.weights.write import write_weights

# Arguments of create_model that build an encoder, as model.json records them.
_ENCODER = ("features_only", "out_indices")


def model_settings(model: nn.Module) -> tuple[str, dict[str, Any]]:
    """Return the arguments of :func:`~vitrail.models.registry.create_model` that build a model again.

    Args:
        model: A model of a registered family, an encoder, or a wrapper around one.

    Returns:
        Its variant's or family's name, and all settings as plain values that JSON has.

    Raises:
        ConfigError: No registered family builds it.
    """
    network: VisionModel = network_inside(model, VisionModel, "saved")
    family = next((f for f in list_families().values() if isinstance(network.config, f.config)), None)
    if family is None:
        raise ConfigError(f"{type(network).__name__} belongs to no registered family, so that it cannot be built again")
    name = network.name if network.name in family.variants else family.name
    # The classifier may have been replaced since the model was built.
    settings = {**dataclasses.asdict(network.config), "num_classes": network.num_classes}
    for key, value in settings.items():
        if isinstance(value, nn.Module):
            raise ConfigError(
                f"the setting {key} is a module ({type(value).__name__}), which no file of settings holds; save the "
                "state_dict, and build the model again in Python"
            )
    return name, json.loads(json.dumps(settings))


def save_pretrained(model: nn.Module, folder: str | Path, facts: Mapping[str, Any] | None = None) -> Path:
    """Write a model's weights and description into a folder, from which :func:`from_pretrained` builds it again.

    Args:
        model: The model, an encoder (``features_only=True``), or a wrapper around either.
        folder: Made where there is none; files of the same names are replaced, each whole or not at all.
        facts: Further entries of model.json, for example ``{"classes": [...], "bands": [...]}``.

    Returns:
        The folder.

    Raises:
        ConfigError: A model of no registered family, facts that JSON cannot hold, or a model with changed parts
            (another patch embedding, mixer or norm), which its settings would build as another one.
        RunError: The folder cannot be written.
    """
    folder = Path(folder)
    network: VisionModel = network_inside(model, VisionModel, "saved")
    name, settings = model_settings(network)
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file; choose a folder")
    taken = {"name", "settings", *_ENCODER} & set(facts or ())
    if taken:
        raise ConfigError(f"facts contains the reserved keys {', '.join(sorted(taken))}; remove them")
    encoder = _encoder_settings(model)
    card = {"name": name, "settings": settings, **encoder, **(facts or {})}
    try:
        json.dumps(card)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"facts must be plain values that JSON can hold: {error}") from error
    check_rebuilt(network, name, settings)
    write_weights(folder / WEIGHTS_FILE, network.state_dict(), name, settings, encoder)
    write_json(folder / CARD_FILE, card)
    return folder


def from_pretrained(
    where: str | Path,
    *,
    new_head: bool = False,
    bands: str | None = None,
    band_wavelengths: Any = None,
    source_wavelengths: Any = None,
    allow_missing: str | Iterable[str] = (),
    allow_unexpected: str | Iterable[str] = (),
    spectral_from_image: bool = False,
    **settings: Any,
) -> VisionModel:
    """Build a model and load its weights.

    Args:
        where: A run folder, a folder that :func:`save_pretrained` wrote, a single file that either wrote, or
            ``"hf://owner/name"`` on the Hugging Face hub.
        new_head: As for :func:`~vitrail.weights.load.load_weights`, for another ``num_classes``.
        bands: The same, for another ``in_chans``.
        band_wavelengths: The same.
        source_wavelengths: The same.
        allow_missing: As for :func:`~vitrail.weights.load.load_weights`.
        allow_unexpected: The same.
        spectral_from_image: The same.
        **settings: Settings in which the model is to differ (``num_classes``, ``img_size``, ``patch_size``, ...), and
            ``features_only`` and ``out_indices`` as for :func:`~vitrail.models.registry.create_model`: an encoder with
            the weights, whatever the classifier. By default a saved encoder is an encoder of the same levels again;
            ``features_only=False`` builds the model inside.

    Returns:
        The model, on the CPU, in evaluation mode.

    Raises:
        WeightsError: No such file, damaged, or weights that do not fit the settings.
        ConfigError: An unknown setting, or a value out of range.

    Example:
        >>> model = from_pretrained("runs/leaves", num_classes=7, new_head=True)
    """
    place = find_weights(where)
    name, own, encoder = _described(place, str(where))
    if not settings.get("features_only", True):
        encoder = {}
    try:
        model = create_model(name, **{**own, **encoder, **settings})
    except (TypeError, AttributeError) as error:
        raise WeightsError(f"{where} does not describe a model of this version: {error}") from error
    load_weights(
        model,
        place.weights,
        "vitrail",
        new_head=new_head,
        bands=bands,
        band_wavelengths=band_wavelengths,
        source_wavelengths=source_wavelengths,
        allow_missing=allow_missing,
        allow_unexpected=allow_unexpected,
        spectral_from_image=spectral_from_image,
        settings=complete_settings(name, own),
    )
    return model.eval()


def _encoder_settings(model: nn.Module) -> dict[str, Any]:
    """Arguments of ``create_model`` that build an encoder of the same levels; none for a whole model."""
    encoder = next((part for part in model.modules() if isinstance(part, FeatureEncoder)), None)
    return {} if encoder is None else dict(zip(_ENCODER, (True, [*encoder.feature_info.out_indices]), strict=True))


def _described(place: Location, where: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Read name, settings and those of an encoder from model.json or the file's own metadata."""
    if place.card is not None:
        card = read_card(place.card)
        return card["name"], card["settings"], {key: card[key] for key in _ENCODER if key in card}
    checkpoint = read_checkpoint(place.weights)
    name, settings = checkpoint.metadata.get("model"), checkpoint.settings
    if name is None or settings is None:
        raise WeightsError(
            f"{where} does not say which model it is of: there is no model.json, nor vitrail's metadata. `vitrail "
            "weights` recognises it; then create_model(NAME) and load_weights(model, ...)"
        )
    own = as_tuples(settings)
    return name, own, json.loads(checkpoint.metadata.get("encoder", "{}"))
