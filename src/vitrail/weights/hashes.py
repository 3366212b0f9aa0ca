"""Hashes of weights by the values of their tensors."""

from __future__ import annotations

import hashlib
import json
import mmap
from pathlib import Path

_PREFIX = 8  # bytes of the header's length


def tensors_hash(path: Path) -> str:
    """Hash names, types, shapes and values of the tensors of a safetensors file, independent of order and metadata.

    Args:
        path: The file.

    Returns:
        16 hexadecimal digits; the hash of the whole file if it is not a valid safetensors file.
    """
    with path.open("rb") as file:
        if path.stat().st_size <= _PREFIX:
            return file_hash(path)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content, memoryview(content) as view:
            entries = _entries(view)
            if entries is None:
                return file_hash(path)
            digest = hashlib.sha256()
            for name, (kind, shape, start, end) in sorted(entries.items()):
                digest.update(f"{name}\0{kind}\0{shape}\0".encode())
                digest.update(view[start:end])
            return digest.hexdigest()[:16]


def file_hash(path: Path) -> str:
    """Hash the bytes of a file, 16 hexadecimal digits; earlier versions identified weights so."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _entries(view: memoryview) -> dict[str, tuple[str, list[int], int, int]] | None:
    """Parse the header: type, shape and byte range of each tensor; None if the file is not valid."""
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
