"""Find a model's weights in a checkpoint: candidates by mapping and prefix, and the choice among them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from vitrail.errors import WeightsError, few, plural
from vitrail.weights.checkpoint import Checkpoint, State, join
from vitrail.weights.remedies import PYTHON, Spelling
from vitrail.weights.rules import KeyMap

# Name parts of the wrappers DataParallel, torch.compile, FSDP and activation checkpointing.
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# Averaged weights in order of preference; a teacher is an average of its student.
_AVERAGES = (
    "state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema_net", "ema", "params_ema", "averaged_model",
    "average_model", "swa_model", "swa", "shadow", "teacher", "teacher_backbone", "target_encoder",
)  # fmt: skip
# Plain weights, by the names of training scripts.
_PLAIN = (
    "state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "weights", "params",
    "student", "student_backbone", "encoder_q", "base_encoder", "query_encoder", "online_encoder", "online_network",
    "online_model", "backbone", "encoder", "task",
)  # fmt: skip
# Momentum encoders, which only serve training (MoCo, BYOL).
_MOMENTUM = (
    "momentum_encoder", "encoder_momentum", "backbone_momentum", "key_encoder", "encoder_k", "target_network",
    "target_model",
)  # fmt: skip
# Share of a model's keys that identifies its weights without a key map.
_MIN_SHARE = 0.8


@dataclass(frozen=True)
class Candidate:
    """One model's weights in a checkpoint.

    Attributes:
        path: Path of their mapping.
        prefix: Prefix of their names.
        state: Tensors by name without the prefix.
        inner: Number of names by wrapper that was removed inside of them.
        outside: Names of other tensors of the mapping.
    """

    path: str
    prefix: str
    state: State
    inner: dict[str, int] = field(default_factory=dict)
    outside: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Path and prefix, as ``key`` selects this candidate."""
        return join(self.path, self.prefix)


def find_candidates(checkpoint: Checkpoint, recognise: Callable[[State], Iterable[str]]) -> list[Candidate]:
    """List all candidates of a checkpoint.

    Args:
        checkpoint: The checkpoint.
        recognise: Function from the tensors of a mapping to the prefixes of a model's weights.
    """
    candidates = []
    for path, state in checkpoint.states.items():
        clean = {_clean(key): key for key in state}
        if len(clean) < len(state):  # two names would be one: nothing is removed
            clean = {key: key for key in state}
        prefixes = sorted(set(recognise({short: state[key] for short, key in clean.items()})), key=len)
        candidates += [_read(path, state, clean, prefix, prefixes) for prefix in prefixes]
    return candidates


def _read(path: str, state: State, clean: dict[str, str], prefix: str, others: Sequence[str]) -> Candidate:
    start = f"{prefix}." if prefix else ""
    # Nested prefixes are other models.
    below = tuple(f"{other}." for other in others if other != prefix and other.startswith(start))
    mine = {short: key for short, key in clean.items() if short.startswith(start) and not short.startswith(below)}
    whole = _longest_prefix(prefix, mine.values())
    if whole:  # names without it are not in the wrapped model: a counter beside it, say
        mine = {short: key for short, key in mine.items() if key.startswith(whole + ".")}
    inner: dict[str, int] = {}
    for key in mine.values():
        rest = key[len(whole) + 1 if whole else 0 :].split(".")
        for part in {part for part in rest if part in _WRAPPERS}:
            inner[part] = inner.get(part, 0) + 1
    taken = set(mine.values())
    return Candidate(
        path,
        whole,
        {short[len(start) :]: state[key] for short, key in mine.items()},
        inner,
        tuple(key for key in state if key not in taken),
    )


def _clean(key: str) -> str:
    *modules, name = key.split(".")
    return ".".join([*(part for part in modules if part not in _WRAPPERS), name])


def _longest_prefix(prefix: str, keys: Iterable[str]) -> str:
    """Return the longest prefix, wrappers such as 'module.' included, that most keys share."""
    counts: dict[str, int] = {}
    total = 0
    for key in keys:
        total += 1
        parts = key.split(".")[:-1]
        for end in range(len(parts) + 1):
            start = ".".join(parts[:end])
            if ".".join(part for part in parts[:end] if part not in _WRAPPERS) == prefix:
                counts[start] = counts.get(start, 0) + 1
    common = [start for start, count in counts.items() if count > total / 2]
    return max(common, key=len, default=prefix)


def prefixes_of_maps(state: State, maps: Iterable[KeyMap]) -> list[str]:
    """Find the prefixes of names that a key map recognises.

    Args:
        state: Tensors by name.
        maps: Key maps; those without ``recognised_by`` are skipped.
    """
    found: dict[str, list[KeyMap]] = {}
    for key_map in maps:
        if not key_map.recognised_by:
            continue
        # The shortest prefix: names that a pattern has on its own (vit.) stay names.
        anchor = re.compile(rf"(?:(.*?)\.)??(?:{key_map.recognised_by[0]})")
        for prefix in {match[1] or "" for key in state if (match := anchor.fullmatch(key))}:
            if key_map.recognises(_names_below(state, prefix)):
                found.setdefault(prefix, []).append(key_map)
    inside: set[str] = set()
    for prefix, its_maps in found.items():
        nested = tuple(
            other for other in found if other != prefix and f"{other}.".startswith(f"{prefix}." if prefix else "")
        )
        rest = [key for key in state if not key.startswith(tuple(f"{other}." for other in nested))]
        if nested and not any(m.recognises(_names_below(rest, prefix)) for m in its_maps):
            inside.update(nested)  # parts of this model that resemble another
    return [prefix for prefix in found if prefix not in inside]


def _names_below(keys: Iterable[str], prefix: str) -> list[str]:
    start = f"{prefix}." if prefix else ""
    return [key[len(start) :] for key in keys if key.startswith(start)]


def prefixes_of_names(state: State, names: Iterable[str]) -> list[str]:
    """Find the prefix of at least 80 % of a model's own names.

    Args:
        state: Tensors by name.
        names: Names of the model.
    """
    own = set(names)
    counts: dict[str, int] = {}
    for key in state:
        parts = key.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in own:
                prefix = ".".join(parts[:start])
                counts[prefix] = counts.get(prefix, 0) + 1
    most = max(counts.values(), default=0)
    if most < _MIN_SHARE * len(own) or not most:
        return []
    return [prefix for prefix, count in counts.items() if count == most]


def read_by_name(checkpoint: Checkpoint) -> Candidate:
    """Choose weights without a known model: the mapping with the most common name, without common prefixes."""
    path = min(checkpoint.states, key=lambda path: (_rank(path), -len(checkpoint.states[path])))
    state = checkpoint.states[path]
    prefix = ""
    while True:
        parts = {key[len(prefix) :].partition(".")[0] if "." in key[len(prefix) :] else "" for key in state}
        part = parts.pop() if len(parts) == 1 else ""
        if part not in (*_WRAPPERS, *_PLAIN):
            break
        prefix += f"{part}."
    return Candidate(path, prefix[:-1], {key[len(prefix) :]: value for key, value in state.items()})


def choose_candidate(
    candidates: Sequence[Candidate], checkpoint: Checkpoint, key: str | None, where: str, spelling: Spelling = PYTHON
) -> tuple[Candidate, list[str]]:
    """Choose a candidate: averages and teachers first, then plain weights, then other names, then momentum encoders.

    Args:
        candidates: Candidates, at least one.
        checkpoint: Their checkpoint.
        key: Path, prefix, or consecutive parts of it; None for the default order.
        where: Name of the checkpoint, for errors.
        spelling: Spelling of options in remedies.

    Returns:
        The candidate, and notes for the report.

    Raises:
        WeightsError: No candidate has the key, or the choice is ambiguous.
    """
    wanted = [candidate for candidate in candidates if key is None or _named_by(candidate.key, key)]
    names = [candidate.key or "the names without a prefix" for candidate in candidates]
    if not wanted:
        assert key is not None
        if any(_named_by(path, key) for path in checkpoint.unnamed):
            raise WeightsError(
                f"{where}: {key!r} is a list of tensors without names, which cannot be matched to a model's; "
                f"the file has weights under {', '.join(names)}"
            )
        raise WeightsError(f"{where} has no weights of this model under {key!r}, only under {', '.join(names)}")
    best = min(_rank(candidate.key) for candidate in wanted)
    first = [candidate for candidate in wanted if _rank(candidate.key) == best]
    if len(first) > 1 and not all(_equal(candidate, first[0]) for candidate in first):
        keys = [candidate.key for candidate in first if candidate.key]
        raise WeightsError(
            f"{where} has several weights of this model, under {', '.join(keys)}; choose one, for example "
            f"{spelling.give('key', keys[0])}"
        )
    candidate = first[0]
    return candidate, _describe(candidate, candidates, checkpoint, spelling)


def _equal(one: Candidate, other: Candidate) -> bool:
    return one.state.keys() == other.state.keys() and all(v is other.state[k] for k, v in one.state.items())


def _named_by(path: str, key: str) -> bool:
    return f".{key}." in f".{path}."


def _rank(key: str) -> tuple[int, int]:
    """Rank a key by the order of :func:`choose_candidate`."""
    parts = [part for part in key.split(".") if part]
    averages = [_AVERAGES.index(part) for part in parts if part in _AVERAGES]
    if averages:
        return 0, min(averages)
    if any(part in _MOMENTUM for part in parts):
        return 3, 0
    if all(part in (*_PLAIN, *_WRAPPERS) for part in parts):
        return 1, min((_PLAIN.index(part) for part in parts if part in _PLAIN), default=0)
    return 2, 0


def _describe(
    candidate: Candidate, candidates: Sequence[Candidate], checkpoint: Checkpoint, spelling: Spelling
) -> list[str]:
    notes = []
    others = [other.key for other in candidates if other is not candidate]
    if others:
        # Lightning stores an average as state_dict, and the plain weights as current_model_state.
        averaged = _rank(candidate.key)[0] == 0 or any(other.startswith("current_model_state") for other in others)
        kind = "an average of the weights" if averaged else "the weights"
        notes.append(
            f"took {candidate.key!r} ({kind}), not {' or '.join(map(repr, others))}; choose with "
            f"{spelling.give('key', others[0])}"
        )
    elif candidate.path:
        notes.append(f"took {candidate.path!r}")
    if candidate.prefix:
        notes.append(f"removed the prefix {candidate.prefix + '.'!r} from {plural(len(candidate.state), 'name')}")
    notes += [f"removed {part + '.'!r} inside of {plural(count, 'name')}" for part, count in candidate.inner.items()]
    beside = _beside(candidate, checkpoint)
    if beside:
        notes.append(f"left out beside the weights: {few(beside, 12)}")
    return notes


def _beside(candidate: Candidate, checkpoint: Checkpoint) -> list[str]:
    """List the other contents of the file, by their topmost path outside of the path to the weights."""
    path = candidate.path.split(".") if candidate.path else []
    tensors: dict[str, int] = {}
    kinds: dict[str, str] = {}

    def top(other: str) -> str:
        parts = other.split(".")
        common = next((i for i, part in enumerate(parts) if i >= len(path) or part != path[i]), len(parts) - 1)
        return ".".join(parts[: common + 1])

    for other, state in checkpoint.states.items():
        if other != candidate.path:
            for name in [top(other)] * len(state) if other else state:
                tensors[name] = tensors.get(name, 0) + 1
    for other, count in checkpoint.unnamed.items():
        kinds[top(other)] = f"{plural(count, 'tensor')} without names"
    for other, kind in checkpoint.beside.items():
        shown = "" if other != top(other) or kind in ("int", "float", "str", "bool", "NoneType") else kind
        kinds.setdefault(top(other), shown)
    names = [*kinds, *(name for name in tensors if name not in kinds)]
    out = []
    for name in names:
        parts = [plural(tensors[name], "tensor")] if name in tensors else []
        parts += [kinds[name]] if kinds.get(name) else []
        out.append(f"{name} ({', '.join(parts)})" if parts else name)
    return out
