"""Reading a file of weights, never with a pickle that can run code."""

from __future__ import annotations

import json
import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vitrail.errors import WeightsError
from vitrail.files import LFS_REMEDY, is_lfs_pointer

# Where training codes put the weights inside a checkpoint, tried in this order.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "module")
# What DataParallel, torch.compile and training modules put before every key.
_PREFIXES = ("module.", "_orig_mod.", "model.", "task.model.")
# Settings that are heights and widths.
_SIZES = ("img_size", "patch_size", "window_size")


@dataclass(frozen=True)
class Checkpoint:
    """What a file of weights holds.

    Attributes:
        tensors: Tensors by name, on the CPU.
        format: "safetensors", "torch" or "memory".
        metadata: Of a safetensors file; empty otherwise.
        notes: What was unpacked to find the tensors.
    """

    tensors: dict[str, Tensor]
    format: str
    metadata: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def settings(self) -> dict[str, Any] | None:
        """Settings of the model whose weights these are, where vitrail wrote the file; None otherwise.

        Raises:
            WeightsError: A size among them is none.
        """
        try:
            settings = json.loads(self.metadata.get("settings", "null"))
        except json.JSONDecodeError:
            return None
        if not isinstance(settings, dict):
            return None
        for name, value in settings.items():
            if name.endswith(_SIZES) and value is not None and not _is_size(value):
                raise WeightsError(f"the file's metadata say {name} = {value!r}, which is no size; it is damaged")
        return settings


def _is_size(value: Any) -> bool:
    values = value if isinstance(value, list) and len(value) == 2 else [value]
    return all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in values)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read the tensors of a ``.safetensors`` file or of a file that ``torch.save`` wrote.

    A checkpoint that wraps its weights (``{"state_dict": ...}``, ``{"model": ...}``) is unwrapped, and a prefix
    that DataParallel or torch.compile left on every key is taken off; the notes say so.

    Args:
        path: The file.

    Raises:
        WeightsError: No such file, a truncated or foreign file, or a pickle that wants to run code.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"no file of weights at {path}; check the path")
    if is_lfs_pointer(path):
        raise WeightsError(f"{path} is a Git LFS pointer in the place of the weights; {LFS_REMEDY}")
    if path.suffix == ".safetensors" or _starts_like_safetensors(path):
        tensors, metadata = _read_safetensors(path)
        unwrapped = unwrap(tensors, str(path))
        return Checkpoint(unwrapped.tensors, "safetensors", metadata, unwrapped.notes)
    try:
        # Its warnings about a foreign file's pickle protocol would only precede the error.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"cannot read {path} as weights: it is truncated, foreign, or a pickle that would run code, which vitrail "
            "refuses: convert it to safetensors where you trust it"
        ) from error
    except (
        # What torch.load is seen to raise on damaged bytes: each of its parsers has its own.
        RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError, AssertionError,
        OSError, OverflowError, MemoryError, struct.error, zipfile.BadZipFile,
    ) as error:  # fmt: skip
        raise WeightsError(
            f"cannot read {path} as weights ({_first_line(error)}); it is truncated or foreign"
        ) from error
    unwrapped = unwrap(content, str(path))
    return Checkpoint(unwrapped.tensors, "torch", {}, unwrapped.notes)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file of weights, by name; see :func:`read_checkpoint`.

    Args:
        path: The file.

    Raises:
        WeightsError: As for :func:`read_checkpoint`.
    """
    return read_checkpoint(path).tensors


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a ``.safetensors`` file; empty where it has none.

    Raises:
        WeightsError: The file cannot be read.
    """
    return _read_safetensors(Path(path))[1]


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__


def _starts_like_safetensors(path: Path) -> bool:
    """A length of eight bytes, then JSON: what a safetensors file begins with, whatever it is called."""
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}
            return state, file.metadata() or {}
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        raise WeightsError(
            f"cannot read {path} as safetensors ({_first_line(error)}); it is truncated or foreign"
        ) from error


def unwrap(content: Any, where: str) -> Checkpoint:
    """Find the tensors inside what a checkpoint holds.

    Args:
        content: A mapping of tensors by name, or one that holds such a mapping under a customary key.
        where: The file's name, for the error.

    Raises:
        WeightsError: There is no mapping of tensors by name inside.
    """
    notes: list[str] = []
    for _ in range(3):
        if not isinstance(content, Mapping):
            break
        inner = next((key for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        others = [str(key) for key in content if key != inner]
        notes.append(f"took {inner!r}" + (f"; beside it: {', '.join(others[:8])}" if others else ""))
        content = content[inner]
    if not isinstance(content, Mapping) or not content:
        kind = "nothing" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise WeightsError(f"{where} holds no tensors by name but {kind}; it is no file of weights")
    foreign = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if foreign:
        raise WeightsError(f"{where} holds values that are no tensors: {', '.join(foreign[:5])}")
    state = {str(key): value for key, value in content.items()}
    while prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
        notes.append(f"took {prefix!r} off every key")
    return Checkpoint(state, "memory", {}, tuple(notes))
