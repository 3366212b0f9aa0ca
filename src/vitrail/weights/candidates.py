"""Finding a model's weights in a checkpoint: in which mapping they lie, and under which prefix."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from vitrail.errors import WeightsError
from vitrail.weights.checkpoint import Checkpoint, State, join
from vitrail.weights.remedies import PYTHON, Spelling
from vitrail.weights.rules import KeyMap

# Parts of a name that DataParallel, torch.compile, FSDP and activation checkpointing put around a module.
_AROUND = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# Averages of weights, the customary choice first; a teacher is an average of its student.
_AVERAGES = (
    "state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema_net", "ema", "params_ema", "averaged_model",
    "average_model", "swa_model", "swa", "shadow", "teacher", "teacher_backbone", "target_encoder",
)  # fmt: skip
# The weights themselves, under the names that training scripts give them.
_PLAIN = (
    "state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "weights", "params",
    "student", "student_backbone", "encoder_q", "base_encoder", "query_encoder", "online_encoder", "online_network",
    "online_model", "backbone", "encoder", "task",
)  # fmt: skip
# Averages that only serve the training of the weights beside them; MoCo and BYOL pass on the others.
_MOMENTUM = (
    "momentum_encoder", "encoder_momentum", "backbone_momentum", "key_encoder", "encoder_k", "target_network",
    "target_model",
)  # fmt: skip
# Share of a model's keys that make a mapping its weights, where no key map tells.
_ENOUGH = 0.8


@dataclass(frozen=True)
class Candidate:
    """One model's weights in a checkpoint.

    Attributes:
        path: Of the mapping that holds them.
        prefix: What precedes their names there.
        state: Tensors by their names without it.
        inner: Part that was removed inside of names -> how many names had it.
        outside: Names of the other tensors of the mapping.
    """

    path: str
    prefix: str
    state: State
    inner: dict[str, int] = field(default_factory=dict)
    outside: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Path and prefix: how ``key`` names this reading."""
        return join(self.path, self.prefix)


def find_candidates(checkpoint: Checkpoint, recognise: Callable[[State], Iterable[str]]) -> list[Candidate]:
    """All readings of a checkpoint.

    Args:
        checkpoint: What was read.
        recognise: From the tensors of a mapping, the prefixes under which weights of a model lie.
    """
    readings = []
    for path, state in checkpoint.states.items():
        clean = {_clean(key): key for key in state}
        if len(clean) < len(state):  # two names would be one: nothing is removed
            clean = {key: key for key in state}
        prefixes = sorted(set(recognise({short: state[key] for short, key in clean.items()})), key=len)
        readings += [_read(path, state, clean, prefix, prefixes) for prefix in prefixes]
    return readings


def _read(path: str, state: State, clean: dict[str, str], prefix: str, others: Sequence[str]) -> Candidate:
    start = f"{prefix}." if prefix else ""
    # Weights below this prefix may hold another model's, which are not this one's.
    below = tuple(f"{other}." for other in others if other != prefix and other.startswith(start))
    mine = {short: key for short, key in clean.items() if short.startswith(start) and not short.startswith(below)}
    whole = _longest_prefix(prefix, mine.values())
    if whole:  # names without it are not in the wrapped model: a counter beside it, say
        mine = {short: key for short, key in mine.items() if key.startswith(whole + ".")}
    inner: dict[str, int] = {}
    for key in mine.values():
        rest = key[len(whole) + 1 if whole else 0 :].split(".")
        for part in {part for part in rest if part in _AROUND}:
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
    return ".".join([*(part for part in modules if part not in _AROUND), name])


def _longest_prefix(prefix: str, keys: Iterable[str]) -> str:
    """A prefix as the file has it, with what wraps the whole model: the longest that most of the keys have."""
    counts: dict[str, int] = {}
    total = 0
    for key in keys:
        total += 1
        parts = key.split(".")[:-1]
        for end in range(len(parts) + 1):
            start = ".".join(parts[:end])
            if ".".join(part for part in parts[:end] if part not in _AROUND) == prefix:
                counts[start] = counts.get(start, 0) + 1
    common = [start for start, count in counts.items() if count > total / 2]
    return max(common, key=len, default=prefix)


def prefixes_of_maps(state: State, maps: Iterable[KeyMap]) -> list[str]:
    """The prefixes under which a key map recognises names.

    Args:
        state: Tensors by name.
        maps: Key maps; those that recognise nothing by themselves are skipped.
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
            inside.update(nested)  # a part of this model that looks like another: no weights of their own
    return [prefix for prefix in found if prefix not in inside]


def _names_below(keys: Iterable[str], prefix: str) -> list[str]:
    start = f"{prefix}." if prefix else ""
    return [key[len(start) :] for key in keys if key.startswith(start)]


def prefixes_of_names(state: State, names: Iterable[str]) -> list[str]:
    """The prefix under which most of a model's own names are, where that is nearly all of them.

    Args:
        state: Tensors by name.
        names: The model's.
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
    if most < _ENOUGH * len(own) or not most:
        return []
    return [prefix for prefix, count in counts.items() if count == most]


def read_by_name(checkpoint: Checkpoint) -> Candidate:
    """Weights of no known model: the mapping of the most customary name, without the customary prefixes."""
    path = min(checkpoint.states, key=lambda path: (_rank(path), -len(checkpoint.states[path])))
    state = checkpoint.states[path]
    prefix = ""
    while True:
        parts = {key[len(prefix) :].partition(".")[0] if "." in key[len(prefix) :] else "" for key in state}
        part = parts.pop() if len(parts) == 1 else ""
        if part not in (*_AROUND, *_PLAIN):
            break
        prefix += f"{part}."
    return Candidate(path, prefix[:-1], {key[len(prefix) :]: value for key, value in state.items()})


def choose_candidate(
    readings: Sequence[Candidate], checkpoint: Checkpoint, key: str | None, where: str, spelling: Spelling = PYTHON
) -> tuple[Candidate, list[str]]:
    """Choose one of the readings of a checkpoint.

    Averages of weights (and teachers) come before the weights themselves, and these before mappings of other names.

    Args:
        readings: At least one.
        checkpoint: Whose they are.
        key: Path or prefix of the wanted one, or parts of it that follow each other; None for the customary choice.
        where: The checkpoint's name, for errors.
        spelling: For remedies.

    Returns:
        The reading, and what to report of the choice.

    Raises:
        WeightsError: None has that key, or several could be meant.
    """
    wanted = list(readings) if key is None else [reading for reading in readings if _named_by(reading.key, key)]
    names = [reading.key or "the names without a prefix" for reading in readings]
    if not wanted:
        assert key is not None
        if any(_named_by(path, key) for path in checkpoint.unnamed):
            raise WeightsError(
                f"{where}: {key!r} is a list of tensors without names, which cannot be matched to a model's; "
                f"the file has weights under {', '.join(names)}"
            )
        raise WeightsError(f"{where} has no weights of this model under {key!r}, only under {', '.join(names)}")
    best = min(_rank(reading.key) for reading in wanted)
    first = [reading for reading in wanted if _rank(reading.key) == best]
    if len(first) > 1 and not all(_equal(reading, first[0]) for reading in first):
        keys = [reading.key for reading in first if reading.key]
        raise WeightsError(
            f"{where} has several weights of this model, under {', '.join(keys)}; choose one, for example "
            f"{spelling.give('key', keys[0])}"
        )
    reading = first[0]
    return reading, _describe(reading, readings, checkpoint, spelling)


def _equal(one: Candidate, other: Candidate) -> bool:
    return one.state.keys() == other.state.keys() and all(v is other.state[k] for k, v in one.state.items())


def _named_by(path: str, key: str) -> bool:
    return f".{key}." in f".{path}."


def _rank(key: str) -> tuple[int, int]:
    """Averages first, then weights under customary names, then others, then averages that only serve training."""
    parts = [part for part in key.split(".") if part]
    averages = [_AVERAGES.index(part) for part in parts if part in _AVERAGES]
    if averages:
        return 0, min(averages)
    if any(part in _MOMENTUM for part in parts):
        return 3, 0
    if all(part in (*_PLAIN, *_AROUND) for part in parts):
        return 1, min((_PLAIN.index(part) for part in parts if part in _PLAIN), default=0)
    return 2, 0


def _describe(
    reading: Candidate, readings: Sequence[Candidate], checkpoint: Checkpoint, spelling: Spelling
) -> list[str]:
    notes = []
    others = [other.key for other in readings if other is not reading]
    if others:
        # Lightning puts an average in the place of the weights, and these beside it.
        averaged = _rank(reading.key)[0] == 0 or any(other.startswith("current_model_state") for other in others)
        kind = "an average of the weights" if averaged else "the weights"
        notes.append(
            f"took {reading.key!r} ({kind}), not {' or '.join(map(repr, others))}; choose with "
            f"{spelling.give('key', others[0])}"
        )
    elif reading.path:
        notes.append(f"took {reading.path!r}")
    if reading.prefix:
        notes.append(f"removed the prefix {reading.prefix + '.'!r} from {len(reading.state)} names")
    notes += [f"removed {part + '.'!r} inside of {count} names" for part, count in reading.inner.items()]
    beside = _beside(reading, checkpoint)
    if beside:
        more = f" and {len(beside) - 12} more" if len(beside) > 12 else ""
        notes.append(f"left out beside the weights: {', '.join(beside[:12])}{more}")
    return notes


def _beside(reading: Candidate, checkpoint: Checkpoint) -> list[str]:
    """What else the file holds, each as far up as it is not part of the path to the weights."""
    path = reading.path.split(".") if reading.path else []
    tensors: dict[str, int] = {}
    kinds: dict[str, str] = {}

    def top(other: str) -> str:
        parts = other.split(".")
        common = next((i for i, part in enumerate(parts) if i >= len(path) or part != path[i]), len(parts) - 1)
        return ".".join(parts[: common + 1])

    for other, state in checkpoint.states.items():
        if other != reading.path:
            for name in [top(other)] * len(state) if other else state:
                tensors[name] = tensors.get(name, 0) + 1
    for other, count in checkpoint.unnamed.items():
        kinds[top(other)] = f"{count} tensors without names"
    for other, kind in checkpoint.beside.items():
        shown = "" if other != top(other) or kind in ("int", "float", "str", "bool", "NoneType") else kind
        kinds.setdefault(top(other), shown)
    names = [*kinds, *(name for name in tensors if name not in kinds)]
    out = []
    for name in names:
        parts = [f"{tensors[name]} tensors"] if name in tensors else []
        parts += [kinds[name]] if kinds.get(name) else []
        out.append(f"{name} ({', '.join(parts)})" if parts else name)
    return out
