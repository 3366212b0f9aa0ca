"""Load weights into a model: all of them, or an error and an unchanged model."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from vitrail.errors import ConfigError, WeightsError, closest, few, plural
from vitrail.weights.candidates import (
    Candidate,
    choose_candidate,
    find_candidates,
    prefixes_of_maps,
    prefixes_of_names,
    read_by_name,
)
from vitrail.weights.checkpoint import Checkpoint, State, join, unwrap
from vitrail.weights.kernels import BandRule, InputKernel, Wavelengths, fit_input_kernel, make_band_rule
from vitrail.weights.locations import Location, find_weights, read_card
from vitrail.weights.normalisation import describe, read_normalization
from vitrail.weights.read import read_location
from vitrail.weights.remedies import PYTHON, Spelling
from vitrail.weights.report import LoadReport
from vitrail.weights.rules import KeyMap
from vitrail.weights.token_learner import maps_of
from vitrail.weights.wrapped import network_inside

# Names of modules that serve training only and do not affect the logits.
_TRAINING = re.compile(
    r"(criterion|loss(es|_fn|_fns|_func)?|\w+_(loss|criterion)|loss_\w+|log_vars?|proj(ection|ector)?_?(head|mlp)?s?"
    r"|projector|predict(or|ion_head)|prototypes?|ssl_head|dino_head|ibot_head|mask_token|decoder|decoder_\w+|logit_(scale|bias)"
    r"|queue|queue_ptr|temperature|center|n_averaged|num_updates|(train|val|valid|test)_\w+|metrics?)(\..*)?"
)
# Buffers of a normalisation inside of the model; here the run normalises.
_NORMALISING = re.compile(r"(normali[sz]e(r|ation)?\.)?(pixel_|image_)?(mean|std)")
# Maximum number of patterns in a remedy.
_MAX_PATTERNS = 6
# Remedy for weights of a fixed model, as in a run folder.
_RESTORE = "restore the file: it is not of the model that is described beside it"


@runtime_checkable
class Loadable(Protocol):
    """A model or layer that the loader can load."""

    key_maps: Sequence[KeyMap]


@runtime_checkable
class Fitting(Protocol):
    """A model whose tensors the loader can resample.

    Attributes:
        classifier: Name of the classifier module.
        input_kernels: First convolutions, by the name of their weight.
        stream_prefixes: Prefixes of the keys of each stream, for models with several.
    """

    classifier: str
    input_kernels: Mapping[str, InputKernel]
    stream_prefixes: Mapping[str, str]

    def fit_tensor(
        self, key: str, value: Tensor, state: Mapping[str, Tensor], made_for: Mapping[str, Any]
    ) -> tuple[Tensor, str] | None:
        """Resample a tensor for ``key``, and describe how; None if impossible."""
        ...

    def adapt_state(self, state: State, report: LoadReport) -> State:
        """Complete a checkpoint of another kind of model, by our names; others are returned as they are."""
        ...


@runtime_checkable
class Structured(Protocol):
    """A model whose depth and width can be read off a checkpoint."""

    def read_structure(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read settings of depth and width off tensors by our names."""
        ...


@dataclass(frozen=True)
class _Options:
    """Options of :func:`load_weights`."""

    new_head: bool
    rule: BandRule | None
    spectral_from_image: bool
    allow_missing: tuple[str, ...]
    allow_unexpected: tuple[str, ...]
    key: str | None
    spelling: Spelling
    headless: bool


def load_weights(
    model: nn.Module,
    weights: str | Path | Mapping[str, Any] | Checkpoint,
    source: str = "auto",
    *,
    key: str | None = None,
    new_head: bool = False,
    bands: str | None = None,
    band_wavelengths: Wavelengths | None = None,
    source_wavelengths: Wavelengths | None = None,
    spectral_from_image: bool = False,
    settings: Mapping[str, Any] | None = None,
    allow_missing: str | Iterable[str] = (),
    allow_unexpected: str | Iterable[str] = (),
    dry_run: bool = False,
    spelling: Spelling = PYTHON,
) -> LoadReport:
    """Load a checkpoint of any known source into a model.

    Nothing is loaded unless everything fits: on an error the model keeps the weights it had. Positions, tables of
    relative positions and patch kernels of another size are resampled, and the report says so.

    Args:
        model: A model that :func:`vitrail.create_model` made, an encoder (``features_only=True``), or either inside of
            a wrapper: compiled, data-parallel, ``nn.Sequential``, a LightningModule. An encoder leaves the
            checkpoint's classifier out.
        weights: A file (``.safetensors``, one that ``torch.save`` wrote, or the ``.index.json`` of several), a run
            folder or another with a saved model, ``"hf://owner/name"`` or ``"hf://owner/name/file"`` on the Hugging
            Face hub, or tensors by name, in other mappings or not.
        source: ``"auto"``, or one of the sources of the model's family (``timm``, ``huggingface``, ...).
        key: Path or prefix of the weights to load where a file holds several (a model and its average, teacher and
            student), for example ``"model"`` or ``"student.backbone"``. When not given, averages and teachers come
            first, and the report says so.
        new_head: Leave the checkpoint's classifier out, whatever its number of classes; the model keeps its own.
        bands: Rule that converts kernels for the checkpoint's bands to the model's, where these differ: "mean",
            "repeat" or "wavelength"; see :class:`~vitrail.weights.kernels.BandRule`.
        band_wavelengths: For "wavelength", the wavelength of each band of the model in nm, in a mapping by stream
            (``"image"``, ``"spectral"``) where there are several.
        source_wavelengths: The same for the checkpoint's bands; red, green and blue when not given.
        spectral_from_image: Start a spectral stream that the checkpoint lacks from its image stream.
        settings: Settings of the model that the weights were made for, where the file does not say: the grid of
            oblong positions cannot be read off their number.
        allow_missing: Names or shell patterns of our keys that need not be in the checkpoint; a tensor there
            whose shape does not fit is then left out too.
        allow_unexpected: Names or shell patterns of keys in the checkpoint that may be left out.
        dry_run: Report what would happen, and load nothing.
        spelling: Spelling of options in the remedies of errors.

    Returns:
        Report of what happened to each key.

    Raises:
        WeightsError: Unreadable, of another family, missing or unexpected keys, a shape that does not fit, or
            other bands without a rule.
        ConfigError: Unknown source or rule, or an option that the model does not support.
    """
    headless = any(getattr(part, "headless", False) for part in model.modules())
    model = network_inside(model, Loadable, "given weights", alone=False)
    rule = make_band_rule(bands, band_wavelengths, source_wavelengths, spelling)
    options = _Options(
        new_head,
        rule,
        spectral_from_image,
        _patterns(allow_missing),
        _patterns(allow_unexpected),
        key,
        spelling,
        headless,
    )
    location: Location | None = None
    if isinstance(weights, (str, Path)):
        where = str(weights)
        location = find_weights(weights)
        checkpoint = read_location(location)
        made_for = checkpoint.settings or (read_card(location.card)["settings"] if location.card else {})
    else:
        where = "the given state dict"
        checkpoint = weights if isinstance(weights, Checkpoint) else unwrap(weights, where)
        made_for = {}
    accepted, report = _plan(model, checkpoint, source, options, settings or made_for, where)
    report.normalization, giver = read_normalization(location, checkpoint)
    report.notes += [
        f"normalised by {describe(pair)} ({stream} stream, {giver})" for stream, pair in report.normalization.items()
    ]
    if not dry_run:
        if any(value.is_meta for value in model.state_dict().values()):
            raise ConfigError(
                f"{type(model).__name__} is on the meta device, which holds no weights; build it on another"
            )
        model.load_state_dict(accepted, strict=False)
    return report


def _plan(
    model: nn.Module, checkpoint: Checkpoint, source: str, options: _Options, made_for: Mapping[str, Any], where: str
) -> tuple[State, LoadReport]:
    """Match the checkpoint to the model; return the tensors to load and the report."""
    candidate, key_map, notes = _choose(model, checkpoint, source, options, where)
    report = LoadReport(source=key_map.source, notes=[*checkpoint.notes, *notes], key=candidate.key)
    report.dropped |= outside(candidate)
    own = model.state_dict()
    state = apply_map(key_map.keeping(own), candidate.state, report, where)
    if isinstance(model, Fitting):
        state = model.adapt_state(state, report)
    head = _head_keys(model, {*own, *state})
    if options.new_head and not isinstance(model, Fitting):
        raise ConfigError(f"new_head needs a model with a classifier, got {type(model).__name__}")
    if options.new_head or options.headless:
        why = "new_head: the model keeps its own classifier" if options.new_head else "an encoder has no classifier"
        report.dropped |= {key: why for key in state if key in head}
        state = {key: value for key, value in state.items() if key not in head}
    if options.spectral_from_image:
        state = _copy_image_stream(model, own, state, report, where)
    state = _drop_training(own, state, report)
    accepted = _fit(model, own, state, report, options, made_for, where)
    report.loaded = list(accepted)
    lacking = [key for key in own if key not in accepted]
    report.new_head = [key for key in lacking if options.new_head and key in head]
    report.missing = [key for key in lacking if key not in report.new_head]
    report.unexpected = [key for key in state if key not in own]
    _refuse(report, options, head, where, _differing_structure(model, state, options.spelling))
    return accepted, report


def _choose(
    model: nn.Module, checkpoint: Checkpoint, source: str, options: _Options, where: str
) -> tuple[Candidate, KeyMap, list[str]]:
    """Choose the candidate and its key map, with notes for the report.

    Raises:
        ConfigError: An unknown source.
        WeightsError: No key map recognises any, or several weights could be meant.
    """
    own = KeyMap("vitrail", ())
    own_maps = maps_of(type(model))
    known = {"vitrail": own, **{m.source: m for m in own_maps}}
    if source != "auto" and source not in known:
        raise ConfigError(f"unknown source {source!r} for {type(model).__name__}{closest(source, known)}")
    maps = own_maps if source == "auto" else [known[source]]
    names = model.state_dict() if source in ("auto", "vitrail") else {}
    candidates = find_candidates(
        checkpoint, lambda state: prefixes_of_maps(state, maps) or prefixes_of_names(state, names)
    )
    if candidates:
        candidate, notes = choose_candidate(candidates, checkpoint, options.key, where, options.spelling)
        keys = list(candidate.state)
        return candidate, next((m for m in maps if m.recognised_by and m.recognises(keys)), known["vitrail"]), notes
    candidate = read_by_name(checkpoint)
    if source != "auto":
        return candidate, known[source], []
    advice = f", or name the source with {options.spelling.give('source')}" if options.spelling.has("source") else ""
    raise WeightsError(
        f"{where} is not a checkpoint of {type(model).__name__} from {', '.join(known)}; its first keys are "
        f"{', '.join(list(candidate.state)[:3])}. `vitrail weights` reports what a file is; build the model of its "
        f"family{advice}"
    )


def outside(candidate: Candidate) -> dict[str, str]:
    """List tensors outside of the candidate, with the reason why they are dropped."""
    start = f"not under {candidate.prefix + '.'!r}, no tensor of the model"
    return {join(candidate.path, key): start for key in candidate.outside}


def apply_map(key_map: KeyMap, state: State, report: LoadReport, where: str) -> State:
    """Convert a state dict to our names and layouts.

    Raises:
        WeightsError: A tensor has another form than the source gives it, or the model lacks what it belongs to.
    """
    try:
        return key_map.apply(state, report)
    except WeightsError as error:
        raise WeightsError(f"{where}: {error}") from error
    except (RuntimeError, IndexError) as error:
        raise WeightsError(
            f"{where} cannot be read as {key_map.source}: {' '.join(str(error).split())[:200]}"
        ) from error


def _drop_training(own: State, state: State, report: LoadReport) -> State:
    """Leave out tensors that training scripts keep beside a model under names of their own."""
    kept: State = {}
    for key, value in state.items():
        if key not in own and _TRAINING.fullmatch(key):
            report.dropped[key] = "by its name a part of training, which takes no part in the logits"
        elif key not in own and _NORMALISING.fullmatch(key):
            report.dropped[key] = "normalises images inside of the model; here the run normalises them"
        else:
            kept[key] = value
    return kept


def _head_keys(model: nn.Module, keys: Iterable[str]) -> set[str]:
    """Select the keys of the classifier."""
    name = model.classifier if isinstance(model, Fitting) else None
    # DeiT's distillation token has a second classifier.
    return set() if name is None else {key for key in keys if key.startswith((f"{name}.", f"{name}_dist."))}


def _copy_image_stream(model: nn.Module, own: State, state: State, report: LoadReport, where: str) -> State:
    prefixes = model.stream_prefixes if isinstance(model, Fitting) else {}
    wanted = [key for key in own if "spectral" in prefixes and key.startswith(prefixes["spectral"])]
    if not wanted:
        raise ConfigError(f"spectral_from_image needs a model with a spectral stream, {type(model).__name__} has none")
    if any(key in state for key in wanted):
        raise WeightsError(f"{where} has a spectral stream of its own; load it without spectral_from_image")
    copies = {key: prefixes["image"] + key.removeprefix(prefixes["spectral"]) for key in wanted}
    report.copied = {key: other for key, other in copies.items() if other in state}
    return state | {key: state[other] for key, other in report.copied.items()}


def _fit(
    model: nn.Module,
    own: State,
    state: State,
    report: LoadReport,
    options: _Options,
    made_for: Mapping[str, Any],
    where: str,
) -> State:
    accepted: State = {}
    casts: dict[str, int] = {}
    for key, value in state.items():
        target = own.get(key)
        if target is None:
            continue
        _check_values(key, value, target, where)
        if isinstance(model, Fitting):
            value, how = _adapt(model, key, value, target, state, options, made_for, where)
            if how:
                report.resampled[key] = how
        if value.shape == target.shape:
            accepted[key] = _convert(key, value, target, report, casts)
        elif _allowed(key, options.allow_missing):
            report.dropped[key] = f"shape {tuple(value.shape)} where the model has {tuple(target.shape)}"
        else:
            raise WeightsError(f"{where}: {_misfit(model, key, value, target, state, options.spelling)}")
    report.notes += [f"{plural(count, 'tensor')} converted from {kind}" for kind, count in casts.items()]
    return accepted


def _check_values(key: str, value: Tensor, target: Tensor, where: str) -> None:
    """Raise an error for values that cannot be copied into the model's tensor without changing their meaning."""
    if value.is_meta or value.layout != torch.strided or value.is_quantized:
        raise WeightsError(f"{where}: {key} is stored without values, sparse or quantised; save it as a plain tensor")
    if value.is_floating_point() != target.is_floating_point() or value.is_complex():
        kinds = f"{_name(value.dtype)} where the model has {_name(target.dtype)}"
        raise WeightsError(f"{where}: {key} is {kinds}; quantised or packed weights must be unpacked first")


def _adapt(
    model: Fitting,
    key: str,
    value: Tensor,
    target: Tensor,
    state: State,
    options: _Options,
    made_for: Mapping[str, Any],
    where: str,
) -> tuple[Tensor, str]:
    role = model.input_kernels.get(key)
    if role is not None:
        value, how = fit_input_kernel(key, value, target.shape, role, options.rule, where, options.spelling)
        fitted = None if value.shape == target.shape else model.fit_tensor(key, value, state, made_for)
        return (value, how) if fitted is None else (fitted[0], "; ".join(part for part in (how, fitted[1]) if part))
    # Equal in number is not equal in kind: 2 x 8 positions are not 4 x 4, where the settings tell.
    fitted = model.fit_tensor(key, value, state, made_for) if made_for or value.shape != target.shape else None
    if fitted is None or (fitted[0].shape == value.shape and torch.equal(fitted[0], value)):
        return value, ""
    return fitted


def _convert(key: str, value: Tensor, target: Tensor, report: LoadReport, casts: dict[str, int]) -> Tensor:
    if value.dtype != target.dtype and value.is_floating_point():
        kind = f"{_name(value.dtype)} to {_name(target.dtype)}"
        casts[kind] = casts.get(kind, 0) + 1
        value = value.to(target.dtype)
    if bad := count_not_finite(value):
        report.not_finite[key] = bad
    return value


def count_not_finite(value: Tensor) -> int:
    """Count infinite and NaN values."""
    if not value.is_floating_point():
        return 0
    wide = value.float() if value.element_size() == 1 else value  # 8-bit floats have no sum
    # A finite sum proves that all values are finite, without a copy.
    return 0 if math.isfinite(wide.sum().item()) else int((~torch.isfinite(wide)).sum())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _misfit(model: nn.Module, key: str, value: Tensor, target: Tensor, state: State, spelling: Spelling) -> str:
    shapes = f"{key} has shape {tuple(value.shape)} where the model has {tuple(target.shape)}"
    if not spelling.has("allow_missing"):
        return f"{shapes}; {_RESTORE}"
    if key in _head_keys(model, (key,)):
        classes = "as many classes"
        counts = value.ndim and target.shape[:1] == (getattr(model, "num_classes", None),)
        if spelling.sets_classes and spelling.setting and counts:
            classes = spelling.settings({"num_classes": value.shape[0]})
        return (
            f"{shapes}: another number of classes. {spelling.on('new_head')} leaves the checkpoint's out; or build the "
            f"model with {classes}"
        )
    if settings := _differing_structure(model, state, spelling):
        return f"{shapes}; build the model with {settings}, as that of the weights"
    return f"{shapes}; build the model to match, or leave it out with {spelling.give('allow_missing', [key])}"


def _differing_structure(model: nn.Module, state: State, spelling: Spelling) -> str:
    """List settings of depth and width that differ between weights and model."""
    read = model.read_structure(state) if isinstance(model, Structured) else {}
    config = getattr(model, "config", None)
    return spelling.settings({name: value for name, value in read.items() if getattr(config, name, value) != value})


def _refuse(report: LoadReport, options: _Options, head: set[str], where: str, settings: str) -> None:
    missing = [key for key in report.missing if not _allowed(key, options.allow_missing)]
    unexpected = [key for key in report.unexpected if not _allowed(key, options.allow_unexpected)]
    if missing or unexpected:
        kinds = (("missing", missing), ("unexpected", unexpected))
        parts = [f"{len(keys)} {kind} ({few(keys)})" for kind, keys in kinds if keys]
        raise WeightsError(
            f"{where} does not fit: {' and '.join(parts)} keys read as {report.source}; nothing was loaded. "
            f"{_remedy(missing, unexpected, head, options.spelling, settings)}"
        )


def _remedy(missing: list[str], unexpected: list[str], head: set[str], spelling: Spelling, settings: str) -> str:
    """Name the settings that would fit, and the options that allow missing and unexpected keys."""
    if not spelling.has("allow_missing"):
        return _RESTORE[0].upper() + _RESTORE[1:]
    if head.issuperset([*missing, *unexpected]):
        return f"Only the classifier differs: {spelling.on('new_head')} leaves it out"
    remedies = [
        f"allow these with {spelling.give(option, _groups(keys))}"
        for option, keys in (("allow_missing", missing), ("allow_unexpected", unexpected))
        if keys
    ]
    build = f"Build the model with {settings}, as that of the weights; or w" if settings else "W"
    return f"{build}here their absence is right, {' and '.join(remedies)}"


def _groups(keys: Sequence[str]) -> list[str] | None:
    """Build shell patterns for keys, one for each block or, if there are too many, for each first part of the names.

    Returns:
        The patterns; None if there are too many.
    """
    for start_of in (_block_of, _first_of):
        groups: dict[str, list[str]] = {}
        for key in keys:
            groups.setdefault(start_of(key), []).append(key)
        patterns = [group[0] if len(group) == 1 else f"{start}.*" for start, group in groups.items()]
        if len(patterns) <= _MAX_PATTERNS:
            return patterns
    return None


def _first_of(key: str) -> str:
    return key.partition(".")[0]


def _block_of(key: str) -> str:
    """Return a name up to its last number, ``layers.0.blocks.1``; its first part without a number."""
    parts = key.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[-1] + 1]) if numbers else parts[0]


def _patterns(given: str | Iterable[str]) -> tuple[str, ...]:
    # A string is one pattern, not a sequence of characters.
    return (given,) if isinstance(given, str) else tuple(given)


def _allowed(key: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)
