"""The identity of weights: a hash of the tensors, not of the bytes around them."""

from __future__ import annotations

import hashlib
import json
import mmap
from pathlib import Path

_PREFIX = 8  # bytes that hold the length of the header


def tensors_hash(path: Path) -> str:
    """Hash the tensors of a safetensors file: names, types, shapes and values.

    The order of tensors and of metadata, which safetensors leaves open, has no influence; nor have the metadata.

    Args:
        path: The file.

    Returns:
        16 hexadecimal digits; the hash of the whole file where it is no intact safetensors file.
    """
    with path.open("rb") as file:
        if path.stat().st_size <= _PREFIX:
            return file_hash(path)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content, memoryview(content) as view:
            entries = _entries(view)
            if entries is None:
                return file_hash(path)
            code = hashlib.sha256()
            for name, (kind, shape, start, end) in sorted(entries.items()):
                code.update(f"{name}\0{kind}\0{shape}\0".encode())
                code.update(view[start:end])
            return code.hexdigest()[:16]


def file_hash(path: Path) -> str:
    """Hash the bytes of a file, 16 hexadecimal digits: the identity of weights in earlier versions."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _entries(view: memoryview) -> dict[str, tuple[str, list[int], int, int]] | None:
    """Type, shape, first and last byte of each tensor; None where they do not fill the file."""
    length = int.from_bytes(view[:_PREFIX], "little")
    first = _PREFIX + length
    if first > len(view):
        return None
    entries: dict[str, tuple[str, list[int], int, int]] = {}
    try:
        for name, entry in json.loads(bytes(view[_PREFIX:first])).items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                entries[name] = str(entry["dtype"]), list(entry["shape"]), first + int(start), first + int(end)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    ends = sorted((start, end) for _, _, start, end in entries.values())
    starts, lasts = [start for start, _ in ends], [end for _, end in ends]
    return entries if [*starts, len(view)] == [first, *lasts] else None
