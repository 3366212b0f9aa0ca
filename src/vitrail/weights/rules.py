"""Key maps: ordered rules that turn a foreign state dict into ours.

A family declares one :class:`KeyMap` for each source it can read. Each rule sees the state that the rules
before it left. A pattern is a regular expression that must match the whole key.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vitrail.errors import WeightsError
from vitrail.weights.checkpoint import State
from vitrail.weights.report import LoadReport


class Rule(Protocol):
    """Step of a key map."""

    def apply(self, state: State, report: LoadReport) -> State:
        """Return the new state; record changes in the report."""
        ...


@dataclass(frozen=True)
class Rename:
    """Rename the matching keys; the replacement may use the groups of the pattern."""

    pattern: str
    replacement: str

    def apply(self, state: State, report: LoadReport) -> State:
        """Rename.

        Raises:
            WeightsError: Two keys would have one name.
        """
        out: State = {}
        for key, value in state.items():
            match = re.fullmatch(self.pattern, key)
            new = match.expand(self.replacement) if match else key
            if match:
                report.note_rename(key, new)
            if new in out:
                raise WeightsError(f"the checkpoint has {new} twice, once as {key}; it mixes two layouts")
            out[new] = value
        return out


@dataclass(frozen=True)
class Drop:
    """Drop the matching keys, for a stated reason."""

    pattern: str
    reason: str

    def apply(self, state: State, report: LoadReport) -> State:
        """Drop."""
        for key in state:
            if re.fullmatch(self.pattern, key):
                report.dropped[key] = self.reason
        return {key: value for key, value in state.items() if not re.fullmatch(self.pattern, key)}


@dataclass(frozen=True)
class DropToken:
    """Drop a token that the model does not have, its row of the position embedding and its classifier.

    Attributes:
        token: Key of the token.
        positions: Key of the positions, shape ``(1, tokens, dim)``.
        row: Row of the token in these.
        head: Matches the keys of the token's classifier.
        reason: Reason why the model's outputs change.
    """

    token: str
    positions: str
    row: int
    head: str
    reason: str

    def apply(self, state: State, report: LoadReport) -> State:
        """Drop all three, and report that outputs change."""
        gone = [key for key in state if key == self.token or re.fullmatch(self.head, key)]
        out = {key: value for key, value in state.items() if key not in gone}
        report.changes_outputs |= {key: self.reason for key in gone}
        table = state.get(self.positions)
        if self.token in state and table is not None and table.ndim == 3 and table.shape[1] > self.row:
            out[self.positions] = torch.cat([table[:, : self.row], table[:, self.row + 1 :]], dim=1)
            report.changes_outputs[f"row {self.row} of {self.positions}"] = self.reason
        return out


@dataclass(frozen=True)
class Convert:
    """Convert the values of the matching keys."""

    pattern: str
    function: Callable[[Tensor], Tensor]

    def apply(self, state: State, report: LoadReport) -> State:
        """Convert."""
        return {key: self.function(v) if re.fullmatch(self.pattern, key) else v for key, v in state.items()}


@dataclass(frozen=True)
class MergeRows:
    """Concatenate tensors of one shape along the output dimension.

    Attributes:
        pattern: Matches their keys; its group ``part`` tells them apart.
        names: Values of ``part``, in the order of the rows.
        merged: The merged key; may use the other groups of the pattern.
    """

    pattern: str
    names: tuple[str, ...]
    merged: str

    def apply(self, state: State, report: LoadReport) -> State:
        """Merge.

        Raises:
            WeightsError: The tensors are not of one shape.
        """
        out: State = {}
        parts: dict[str, dict[str, Tensor]] = {}
        for key, value in state.items():
            match = re.fullmatch(self.pattern, key)
            if match is None:
                out[key] = value
                continue
            new = match.expand(self.merged)
            report.note_rename(key, new)
            parts.setdefault(new, {})[match["part"]] = value
        for new, found in parts.items():
            # An incomplete set leaves the merged key missing, which the loader then reports.
            if set(found) == set(self.names):
                shapes = {tuple(found[name].shape) for name in self.names}
                if len(shapes) > 1 or () in shapes:
                    names = ", ".join(self.names)
                    raise WeightsError(f"the parts {names} of {new} have different shapes: {sorted(shapes)}")
                out[new] = torch.cat([found[name] for name in self.names], dim=0)
        return out


@dataclass(frozen=True)
class SplitRows:
    """Split a tensor along its output dimension into parts, each a whole number of equal shares.

    Attributes:
        pattern: Matches the key.
        parts: New key (may use the groups of the pattern) -> its number of shares, in order.
    """

    pattern: str
    parts: tuple[tuple[str, int], ...]

    def apply(self, state: State, report: LoadReport) -> State:
        """Split; a tensor that cannot be split evenly is left unchanged, and the loader reports it."""
        out: State = {}
        shares = sum(count for _, count in self.parts)
        for key, value in state.items():
            match = re.fullmatch(self.pattern, key)
            if match is None or value.ndim == 0 or value.shape[0] % shares:
                out[key] = value
                continue
            share = value.shape[0] // shares
            pieces = torch.split(value, [count * share for _, count in self.parts])
            names = [match.expand(template) for template, _ in self.parts]
            report.note_rename(key, " + ".join(names))
            out.update(zip(names, pieces, strict=True))
        return out


@dataclass(frozen=True)
class FoldProjection:
    """Fold a linear map of the context, and the prompt added after it, into the key and value projections.

    Keys and values ``W (P c + p + prompt) + b`` of a context ``c`` are ``(W P) c + (b + W (p + prompt))``, exactly.

    Attributes:
        projection: Name of the linear map, ``P`` and ``p``.
        kv: Name of the linear map to keys and values, ``W`` and ``b``.
        prompt: Key of the prompt, whose last dimension is the width of the keys' and values' input.
    """

    projection: str
    kv: str
    prompt: str

    def apply(self, state: State, report: LoadReport) -> State:
        """Fold; a state without the projection is left as it is.

        Raises:
            RuntimeError: Shapes that do not follow each other.
        """
        name, weight, bias = f"{self.projection}.weight", f"{self.kv}.weight", f"{self.kv}.bias"
        if name not in state or weight not in state or bias not in state:
            return state
        out = {key: value for key, value in state.items() if not key.startswith(self.projection + ".")}
        projection, kv = state[name].double(), state[weight].double()
        shift = torch.zeros(projection.shape[0], dtype=torch.float64)
        for key in (f"{self.projection}.bias", self.prompt):
            if key in state:
                shift = shift + state[key].double().reshape(-1)
        out[weight] = (kv @ projection).to(state[weight].dtype)
        out[bias] = (state[bias].double() + kv @ shift).to(state[bias].dtype)
        out[self.prompt] = torch.zeros(1, 1, 1, projection.shape[1], dtype=state[weight].dtype)
        report.notes.append(
            f"folded {self.projection} and {self.prompt} into {self.kv} (the same outputs); the prompt is 0"
        )
        return out


@dataclass(frozen=True)
class KeyMap:
    """Rules that convert one source's checkpoints to a family.

    Attributes:
        source: Its name, as ``load_weights(source=...)`` takes it.
        recognised_by: Patterns of which each must match some key, for ``source="auto"``.
        rules: Rules to apply, in order.
    """

    source: str
    recognised_by: tuple[str, ...]
    rules: tuple[Rule, ...] = ()

    def recognises(self, keys: list[str]) -> bool:
        """Return whether the keys match this source."""
        return all(any(re.fullmatch(pattern, key) for key in keys) for pattern in self.recognised_by)

    def keeping(self, keys: Collection[str]) -> KeyMap:
        """Return the rules for a model that has some tokens which others drop.

        Args:
            keys: Our names of the model's tensors.
        """
        kept = tuple(r for r in self.rules if not (isinstance(r, DropToken) and r.token in keys))
        return dataclasses.replace(self, rules=kept)

    def apply(self, state: State, report: LoadReport) -> State:
        """Apply all rules in order."""
        for rule in self.rules:
            state = rule.apply(state, report)
        return state


def transpose_dense(kernel: Tensor) -> Tensor:
    """Convert a flax Dense kernel ``(in, out)`` to a torch Linear weight ``(out, in)``."""
    return kernel.transpose(0, 1).contiguous()


def transpose_conv(kernel: Tensor) -> Tensor:
    """Convert a flax Conv kernel ``(H, W, in, out)`` to a torch Conv2d weight ``(out, in, H, W)``."""
    return kernel.permute(3, 2, 0, 1).contiguous()
