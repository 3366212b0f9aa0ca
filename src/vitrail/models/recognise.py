"""Recognition of a file of weights: its layout, family, variants and inputs."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from vitrail.config.typed import as_tuples
from vitrail.errors import ConfigError, WeightsError, plural
from vitrail.layers.shapes import grid_size
from vitrail.models.family import Family
from vitrail.models.registry import create_model, list_families
from vitrail.weights.candidates import (
    Candidate,
    choose_candidate,
    find_candidates,
    prefixes_of_maps,
    read_by_name,
)
from vitrail.weights.checkpoint import Checkpoint, State
from vitrail.weights.load import apply_map, count_not_finite, load_weights, outside
from vitrail.weights.normalisation import Normalization
from vitrail.weights.remedies import PYTHON, Spelling
from vitrail.weights.report import LoadReport
from vitrail.weights.rules import KeyMap
from vitrail.weights.token_learner import maps_of

# Share of a checkpoint's keys that must have a family's names, numbers aside, or the other way round.
_ENOUGH = 0.6
# Settings in which every use of a variant differs; they make it no other variant.
_FREE = ("num_classes", "in_chans")
# Settings that change a model's outputs and may show in no shape.
_STRUCTURE = ("num_heads", "dim_head")
# Tokens that some models of a family have; a checkpoint's are read as they are.
_OPTIONAL_TOKENS = ("dist_token",)


@dataclass(frozen=True)
class Fit:
    """A model that a checkpoint fits.

    Attributes:
        name: A variant, or a family.
        settings: Settings in which the model must differ from it.
        report: Report of loading it.
    """

    name: str
    settings: dict[str, Any]
    report: LoadReport


@dataclass(frozen=True)
class Input:
    """An input that a checkpoint was made for.

    Attributes:
        stream: Its name.
        bands: Number of bands.
        patch_size: Height and width of a patch; None where there are no patches.
        img_size: Height and width of the image; None where the weights do not show it.
    """

    stream: str
    bands: int
    patch_size: tuple[int, int] | None = None
    img_size: tuple[int, int] | None = None

    @property
    def grid(self) -> tuple[int, int] | None:
        """Height and width in patches."""
        if self.img_size is None or self.patch_size is None:
            return None
        return grid_size(self.img_size, self.patch_size)


@dataclass(frozen=True)
class WeightsFacts:
    """Facts about a checkpoint.

    Attributes:
        source: Library whose names and layout it has; "vitrail" for a file that vitrail wrote.
        family: Family, or the layer that it is of.
        format: "safetensors", "torch" or "memory".
        num_classes: Width of its logits, 0 without a classifier; None for a layer.
        inputs: Inputs that it was made for.
        window_size: Window of its relative positions, in tokens; None where it has none.
        tensors: Number of tensors.
        parameters: Values in them, the running statistics and other buffers among them.
        bytes: Their size in bytes.
        dtypes: Precision -> number of tensors.
        not_finite: Its keys -> values that are infinite or no number.
        metadata: Metadata of a safetensors file.
        notes: Steps that unpacked the tensors.
        fits: Models it can be loaded into as it is, the nearest variants.
        problem: Reason why there is none.
        settings: Settings of the family that the tensors show, those that differ from its defaults.
        unread: Settings of depth and width that no tensor shows.
        normalization: Mean and standard deviation by which the images were normalised, by stream; empty where nothing
            gives them.
    """

    source: str
    family: str
    format: str
    num_classes: int | None
    inputs: tuple[Input, ...]
    window_size: tuple[int, int] | None
    tensors: int
    parameters: int
    bytes: int
    dtypes: dict[str, int]
    not_finite: dict[str, int]
    metadata: dict[str, str]
    notes: tuple[str, ...]
    fits: tuple[Fit, ...] = ()
    problem: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    normalization: Normalization = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Convert the facts to plain values, for JSON."""
        content = dataclasses.asdict(self)
        for written, own in zip(content["inputs"], self.inputs, strict=True):
            written["grid"] = own.grid
        plain: dict[str, Any] = json.loads(json.dumps(content))
        return plain


@dataclass
class _Search:
    """The fitting variants found so far, why others do not fit, and options with which each is tried."""

    options: Mapping[str, Any]
    fits: list[Fit] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Found:
    """Weights of a known family or layer in a checkpoint.

    Attributes:
        reading: The weights.
        notes: Notes to report on their choice.
        family: The family; None for a layer.
        layer: Name of the layer; empty for a family.
        key_map: Rules that read them.
        mapped: Tensors by our names.
    """

    reading: Candidate
    notes: tuple[str, ...]
    family: Family | None
    layer: str
    key_map: KeyMap
    mapped: State


def recognise(
    checkpoint: Checkpoint,
    where: str,
    settings: Mapping[str, Any] | None = None,
    *,
    key: str | None = None,
    options: Mapping[str, Any] | None = None,
    spelling: Spelling = PYTHON,
) -> WeightsFacts:
    """Recognise the source, family, settings and inputs of a checkpoint.

    Args:
        checkpoint: The checkpoint as read.
        where: Its name, for errors.
        settings: Settings of the model that it was made for, where something beside the file tells them.
        key: Path or prefix of the weights of several, as for :func:`~vitrail.weights.load.load_weights`.
        options: Options of :func:`~vitrail.weights.load.load_weights`, with which each variant is tried.
        spelling: Spelling of options in the remedies of errors.

    Raises:
        WeightsError: It has the names of no family, or several weights could be meant.
    """
    found = _find(checkpoint, where, key, spelling)
    if found.family is None:
        problem = f"it is one layer, no whole model: load it into vitrail.layers.{found.layer}"
        return _facts(checkpoint, found, found.key_map.source, found.layer, {}, problem=problem)
    family = found.family
    own = checkpoint.settings or settings
    source = "vitrail" if checkpoint.settings is not None else found.key_map.source
    search = _Search({**(options or {}), "spelling": spelling})
    try:
        read = family.build.read_settings(found.mapped)
        _search(search, family, read, found, checkpoint, own)
    except (IndexError, TypeError, ValueError, ZeroDivisionError) as error:
        raise WeightsError(f"{where} has the names of {family.name} and tensors of shapes that it never has") from error
    problem = ""
    if not search.fits:
        why = f" ({search.reasons[0]})" if search.reasons else ""
        problem = f"no variant of {family.name} fits{why}; build the family with the settings it was made with"
    facts = _facts(checkpoint, found, source, family.name, read, tuple(search.fits), problem)
    shown = {**read, **family.build.read_structure(found.mapped)}
    defaults = {f.name: f.default for f in dataclasses.fields(family.config)}
    differing = {key: value for key, value in shown.items() if key in defaults and defaults[key] != value}
    unread = tuple(name for name in _STRUCTURE if name in defaults and name not in shown)
    return dataclasses.replace(facts, settings=differing, unread=unread)


def _find(checkpoint: Checkpoint, where: str, key: str | None, spelling: Spelling) -> _Found:
    """Find the weights of a family, or of a layer, in a checkpoint.

    Raises:
        WeightsError: There are none, they are refused with a reason, or several could be meant.
    """
    known = [(family, _known_names(family)) for family in list_families().values()]
    refusals: list[WeightsError] = []
    maps = [key_map for family, _ in known for key_map in family.key_maps]

    def of_families(state: State) -> list[str]:
        return [
            p
            for p in prefixes_of_maps(state, maps)
            if _find_family(_below(state, p), known, where, refusals) is not None
        ]

    readings = find_candidates(checkpoint, of_families)
    if readings:
        reading, notes = choose_candidate(readings, checkpoint, key, where, spelling)
        best = _find_family(reading.state, known, where, refusals)
        assert best is not None
        return _Found(reading, tuple(notes), best[0], "", *best[1:])
    if refusals:
        raise refusals[0]
    for layer in (layer for family, _ in known for layer in family.layers):
        layer_maps = maps_of(layer)
        readings = find_candidates(checkpoint, partial(prefixes_of_maps, maps=layer_maps))
        if readings:
            reading, notes = choose_candidate(readings, checkpoint, key, where, spelling)
            key_map = next(m for m in layer_maps if m.recognises(list(reading.state)))
            return _Found(reading, tuple(notes), None, layer.__name__, key_map, {})
    state = read_by_name(checkpoint).state
    raise WeightsError(
        f"{where} is of no family that vitrail knows ({', '.join(list_families())}); it holds "
        f"{plural(len(state), 'tensor')}, the first of them {', '.join(list(state)[:3])}"
    )


def _below(state: State, prefix: str) -> State:
    start = f"{prefix}." if prefix else ""
    return {key[len(start) :]: value for key, value in state.items() if key.startswith(start)}


def _known_names(family: Family) -> set[str]:
    return {_pattern(key) for key in family.tensor_names}


def _search(
    search: _Search,
    family: Family,
    read: dict[str, Any],
    found: _Found,
    checkpoint: Checkpoint,
    own: Mapping[str, Any] | None,
) -> None:
    """Try the model that the file names, or else the variants; sizes given by the file are added to ``read``."""
    written = checkpoint.metadata.get("model")
    if own is not None and written is not None:
        _try(search, written, _differing(family, written, own), found, own)
        sizes = {key: value for key, value in as_tuples(own).items() if key.endswith(("img_size", "window_size"))}
        read |= {key: value for key, value in sizes.items() if value is not None}
    if not search.fits:
        _try_variants(search, family, read, found)


def _find_family(
    state: State, known: Sequence[tuple[Family, set[str]]], where: str, refusals: list[WeightsError]
) -> tuple[Family, KeyMap, State] | None:
    """Find the family and layout that match most keys, and the tensors by our names; refusals are collected."""
    best: tuple[Family, KeyMap, State] | None = None
    best_share = _ENOUGH
    for family, names in known:
        for key_map in family.key_maps:
            if not key_map.recognises(list(state)):
                continue
            try:
                whole = key_map.keeping(_OPTIONAL_TOKENS)
                mapped = apply_map(whole, dict(state), LoadReport(key_map.source), where)
            except WeightsError as error:
                refusals.append(error)
                continue
            if _of_more_axes(family, mapped):
                continue
            # Most keys are known, or most known names are there: a TokenLearner adds keys, one stream less leaves out.
            patterns = {_pattern(key) for key in mapped}
            share = max(sum(_pattern(key) in names for key in mapped) / len(mapped), len(patterns & names) / len(names))
            if share > best_share:
                best, best_share = (family, key_map, mapped), share
    return best


def _of_more_axes(family: Family, mapped: State) -> bool:
    """Return whether the input's kernel has more axes than the family's inputs: a clip's, for a model of images."""
    axes = len(family.modality.axes)
    return any(mapped[key].ndim > 2 + axes for key in family.build.input_kernels if key in mapped)


def _pattern(key: str) -> str:
    return re.sub(r"\d+", "#", key)


def _try_variants(
    search: _Search,
    family: Family,
    read: Mapping[str, Any],
    found: _Found,
) -> None:
    """Try the variants of the checkpoint's width, those first that differ least from the settings read.

    Models of point clouds have no kernel of the input that shows a width: all variants of theirs are tried.
    """
    kernels = (found.mapped[key].shape[0] for key in family.build.input_kernels if key in found.mapped)
    width = next(kernels, None)
    tried: list[Any] = []
    fewest: int | None = None
    for count, name, differing, config in sorted(_candidates(family, read), key=lambda item: item[:2]):
        first = family.build.first_width(config)
        if (None not in (first, width) and first != width) or config in tried:
            continue
        if fewest is not None and count > fewest:
            break
        tried.append(config)
        if _try(search, name, differing, found, {}):
            fewest = count
    if not tried and width is not None:
        search.reasons.append(f"none begins {width} wide")


def _candidates(family: Family, read: Mapping[str, Any]) -> Iterator[tuple[int, str, dict[str, Any], Any]]:
    """Yield for each variant: number of differing settings, its name, the differing settings, config."""
    for name, base in family.variants.items():
        known = {key: value for key, value in read.items() if key in family.settings}
        try:
            config = family.config(**{**base, **known})
        except ConfigError:
            continue
        plain = family.config(**base)
        differing = {key: value for key, value in known.items() if getattr(plain, key) != getattr(config, key)}
        yield len(differing.keys() - set(_FREE)), name, differing, config


def _try(
    search: _Search,
    name: str,
    settings: dict[str, Any],
    found: _Found,
    made_for: Mapping[str, Any],
) -> bool:
    """Build a model without memory, and see whether everything loads."""
    try:
        with torch.device("meta"):
            model = create_model(name, **settings)
        source = found.key_map.source
        report = load_weights(model, found.reading.state, source, settings=made_for, dry_run=True, **search.options)
    except (ConfigError, WeightsError, TypeError) as error:
        search.reasons.append(f"{name}: {error}")
        return False
    report.dropped |= outside(found.reading)
    report.key = found.reading.key
    search.fits.append(Fit(name, settings, report))
    return True


def _differing(family: Family, name: str, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's own settings that differ from those of its name."""
    try:
        plain = family.config(**family.variants.get(name, {}))
        config = family.config(**as_tuples(own))
    except (ConfigError, TypeError):
        return as_tuples(own)
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    return {key: value for key, value in values.items() if value != getattr(plain, key)}


def _facts(
    checkpoint: Checkpoint,
    found: _Found,
    source: str,
    family: str,
    read: Mapping[str, Any],
    fits: tuple[Fit, ...] = (),
    problem: str = "",
) -> WeightsFacts:
    state = found.reading.state
    dtypes: dict[str, int] = {}
    not_finite: dict[str, int] = {}
    for key, value in state.items():
        kind = str(value.dtype).removeprefix("torch.")
        dtypes[kind] = dtypes.get(kind, 0) + 1
        if bad := count_not_finite(value):
            not_finite[key] = bad
    return WeightsFacts(
        source=source,
        family=family,
        format=checkpoint.format,
        num_classes=read.get("num_classes"),
        inputs=tuple(
            # Without patches an image size is only what the window suggests.
            Input(stream, read[bands], patch, read.get(f"{prefix}img_size") if patch else None)
            for stream, bands, prefix in (("image", "in_chans", ""), ("spectral", "spectral_chans", "spectral_"))
            if bands in read
            for patch in (read.get(f"{prefix}patch_size"),)
        ),
        window_size=read.get("window_size"),
        tensors=len(state),
        parameters=sum(value.numel() for value in state.values()),
        bytes=sum(value.numel() * value.element_size() for value in state.values()),
        dtypes=dtypes,
        not_finite=not_finite,
        metadata=checkpoint.metadata,
        notes=(*checkpoint.notes, *found.notes),
        fits=fits,
        problem=problem,
    )
