"""Loading foreign or own weights into a model: all of it, or an error and the model as it was."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

from torch import Tensor, nn

from vitrail.errors import ConfigError, WeightsError, closest
from vitrail.weights.read import read_state_dict, unwrap
from vitrail.weights.report import LoadReport
from vitrail.weights.rules import KeyMap, State


class Loadable(Protocol):
    """What a model, or a layer with a life of its own, tells the loader."""

    key_maps: Sequence[KeyMap]


@runtime_checkable
class Fitting(Protocol):
    """What a model may tell the loader besides."""

    def fit_tensor(self, key: str, value: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, str] | None:
        """Make a tensor of another shape fit our ``key`` (resample positions, say), and say how; None: cannot."""
        ...


def load_weights(
    model: nn.Module,
    weights: str | Path | Mapping[str, Tensor],
    source: str = "auto",
    *,
    allow_missing: Iterable[str] = (),
    allow_unexpected: Iterable[str] = (),
) -> LoadReport:
    """Load a checkpoint of any known source into a model.

    Nothing is loaded unless everything fits: on an error the model keeps the weights it had.

    Args:
        model: A model that :func:`vitrail.create_model` made.
        weights: A file (``.safetensors``, or one that ``torch.save`` wrote) or tensors by name.
        source: ``"auto"``, or one of the sources of the model's family (``timm``, ``huggingface``, ...).
        allow_missing: Names or shell patterns of our keys that need not be in the checkpoint; a tensor there
            whose shape does not fit is then left out too (``["head.*"]`` for another number of classes).
        allow_unexpected: Names or shell patterns of keys in the checkpoint that may be left out.

    Returns:
        The account of what happened to each key.

    Raises:
        WeightsError: Unreadable, of another family, missing or unexpected keys, or a shape that does not fit.
        ConfigError: An unknown source.
    """
    where = str(weights) if isinstance(weights, (str, Path)) else "the given state dict"
    state = read_state_dict(weights) if isinstance(weights, (str, Path)) else unwrap(weights, where)
    key_map = _choose_map(model, state, source, where)
    report = LoadReport(source=key_map.source)
    state = key_map.apply(state, report)
    own = model.state_dict()
    accepted = _fit(model, own, state, report, tuple(allow_missing), where)
    report.missing = [key for key in own if key not in accepted]
    report.unexpected = [key for key in state if key not in own]
    _refuse(report, tuple(allow_missing), tuple(allow_unexpected), where)
    model.load_state_dict({**own, **accepted})
    report.loaded = list(accepted)
    return report


def _choose_map(model: nn.Module, state: State, source: str, where: str) -> KeyMap:
    maps = {"vitrail": KeyMap("vitrail", ()), **{m.source: m for m in cast(Loadable, model).key_maps}}
    if source != "auto":
        if source not in maps:
            raise ConfigError(f"unknown source {source!r} for {type(model).__name__}{closest(source, maps)}")
        return maps[source]
    keys = list(state)
    for key_map in cast(Loadable, model).key_maps:
        if key_map.recognises(keys):
            return key_map
    if set(keys) == set(model.state_dict()):
        return maps["vitrail"]
    raise WeightsError(
        f"{where} is no checkpoint of {type(model).__name__} from {', '.join(maps)}; its first keys are "
        f"{', '.join(keys[:3])}. Name the source, or build the model of the family that the file belongs to"
    )


def _fit(
    model: nn.Module, own: State, state: State, report: LoadReport, allow_missing: tuple[str, ...], where: str
) -> State:
    accepted: State = {}
    for key, value in state.items():
        target = own.get(key)
        if target is None:
            continue
        if value.shape != target.shape:
            fitted = model.fit_tensor(key, value, state) if isinstance(model, Fitting) else None
            if fitted is not None:
                value, report.resampled[key] = fitted
        if value.shape == target.shape:
            accepted[key] = value
        elif _allowed(key, allow_missing):
            report.dropped[key] = f"shape {tuple(value.shape)} where the model has {tuple(target.shape)}"
        else:
            raise WeightsError(
                f"{where}: {key} has shape {tuple(value.shape)} where the model has {tuple(target.shape)}; build the "
                f"model to match, or allow it to be left out with allow_missing=[{key!r}]"
            )
    return accepted


def _refuse(report: LoadReport, allow_missing: tuple[str, ...], allow_unexpected: tuple[str, ...], where: str) -> None:
    missing = [key for key in report.missing if not _allowed(key, allow_missing)]
    unexpected = [key for key in report.unexpected if not _allowed(key, allow_unexpected)]
    if missing or unexpected:
        parts = [f"{len(missing)} missing ({', '.join(missing[:3])})"] if missing else []
        parts += [f"{len(unexpected)} unexpected ({', '.join(unexpected[:3])})"] if unexpected else []
        raise WeightsError(
            f"{where} does not fit: {' and '.join(parts)} keys read as {report.source}; nothing was loaded. "
            "Name what may differ with allow_missing or allow_unexpected"
        )


def _allowed(key: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)
