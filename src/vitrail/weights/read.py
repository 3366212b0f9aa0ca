"""Read files of weights, never with a pickle that can execute code."""

from __future__ import annotations

import dataclasses
import pickle
import struct
import tarfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vitrail.errors import WeightsError, few, first_line, plural
from vitrail.files import LFS_REMEDY, is_lfs_pointer
from vitrail.weights.candidates import read_by_name
from vitrail.weights.checkpoint import Checkpoint, unwrap
from vitrail.weights.locations import Location
from vitrail.weights.pickles import read_pickle
from vitrail.weights.shards import is_index, read_index

# What torch.load is seen to raise on damaged bytes: each of its parsers has its own.
_DAMAGED = (
    pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError,
    AssertionError, OSError, OverflowError, MemoryError, struct.error, zipfile.BadZipFile, tarfile.TarError,
    RecursionError,
)  # fmt: skip


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read the tensors of a ``.safetensors`` file, of a file that ``torch.save`` wrote, or of the shards of an index.

    No code of a file is executed: other objects (``argparse.Namespace``, NumPy scalars, whole modules) are read without
    their classes.

    Args:
        path: The file, or the ``.index.json`` of a checkpoint in several files.

    Raises:
        WeightsError: The file is missing, truncated or foreign, a shard is missing, or a pickle would execute code.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"no file of weights at {path}; check the path")
    if is_lfs_pointer(path):
        raise WeightsError(f"{path} is a Git LFS pointer instead of the weights; {LFS_REMEDY}")
    if is_index(path):
        return _read_shards(path)
    if path.suffix == ".safetensors" or _starts_like_safetensors(path):
        tensors, metadata = _read_safetensors(path)
        return dataclasses.replace(unwrap(tensors, str(path)), format="safetensors", metadata=metadata)
    content, foreign = _read_torch(path)
    notes: tuple[str, ...] = ()
    if foreign:
        notes = (f"objects of other classes were read as data, without their classes: {few(foreign, 6)}",)
    return dataclasses.replace(unwrap(content, str(path)), format="torch", notes=notes)


def read_location(location: Location) -> Checkpoint:
    """Read the weights of a location; the checkpoint's notes include those of the location."""
    checkpoint = read_checkpoint(location.weights)
    return dataclasses.replace(checkpoint, notes=(*location.notes, *checkpoint.notes))


def _read_shards(index: Path) -> Checkpoint:
    """Read the tensors of all shards; each key from the shard that the index names."""
    state: dict[str, Tensor] = {}
    formats: set[str] = set()
    extra: list[str] = []
    shards = read_index(index)
    for shard, keys in shards.items():
        part = read_checkpoint(index.parent / shard)
        formats.add(part.format)
        tensors = part.states.get("", {})
        if missing := [key for key in keys if key not in tensors]:
            raise WeightsError(
                f"{index} names {missing[0]} in {shard}, which lacks it ({plural(len(missing), 'key')} in all); "
                "download the index and its shards again"
            )
        state |= {key: tensors[key] for key in keys}
        extra += [key for key in tensors if key not in keys]
    notes = [f"read from {plural(len(shards), 'shard')} that {index.name} names"]
    if extra:
        notes.append(
            f"left out {plural(len(extra), 'tensor')} of the shards that the index does not name: "
            f"{', '.join(extra[:3])}"
        )
    return Checkpoint({"": state}, " and ".join(sorted(formats)), {}, tuple(notes))


def _read_torch(path: Path) -> tuple[Any, tuple[str, ...]]:
    # Its warnings about a foreign file's pickle protocol would only precede the error.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.load(path, map_location="cpu", weights_only=True), ()
        except pickle.UnpicklingError:
            pass  # it holds other classes than torch's own, or is damaged
        except _DAMAGED as error:
            raise _foreign(path, error) from error
        try:
            _refuse_archives(path)
            return read_pickle(path)
        except WeightsError:
            raise
        except _DAMAGED as error:
            raise _foreign(path, error) from error


def _refuse_archives(path: Path) -> None:
    """Raise an error for formats that torch does not read as a pickle of tensors."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            scripted = any(name.endswith("constants.pkl") for name in archive.namelist())
        if scripted:
            raise WeightsError(
                f"cannot read {path} as weights: it is a TorchScript program, which is foreign here; save the model's "
                "state_dict() instead"
            )
    elif tarfile.is_tarfile(path):
        raise WeightsError(
            f"cannot read {path} as weights: it is a tar archive, which is foreign here; unpack it first"
        )


def _foreign(path: Path, error: BaseException) -> WeightsError:
    return WeightsError(f"cannot read {path} as weights ({first_line(error)[:200]}); it is truncated or foreign")


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a file of weights, by name; see :func:`read_checkpoint`.

    A checkpoint that wraps its weights (``{"state_dict": ...}``, ``{"model": ...}``) is unwrapped, and a prefix
    that DataParallel, torch.compile or a training module left on every key is removed.

    Args:
        path: The file.

    Raises:
        WeightsError: As for :func:`read_checkpoint`.
    """
    return read_by_name(read_checkpoint(path)).state


def _starts_like_safetensors(path: Path) -> bool:
    """Check for a length of eight bytes and JSON, the beginning of safetensors files of any name."""
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
            f"cannot read {path} as safetensors ({first_line(error)[:200]}); it is truncated or foreign"
        ) from error
