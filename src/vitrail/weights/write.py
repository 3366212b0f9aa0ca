"""Write weights with self-describing metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from vitrail.errors import RunError
from vitrail.files import replacing


def write_weights(
    path: Path,
    state: Mapping[str, Tensor],
    name: str,
    settings: Mapping[str, Any],
    encoder: Mapping[str, Any] | None = None,
) -> None:
    """Write a model's tensors as safetensors, whole or not at all.

    Args:
        path: The file.
        state: Tensors by name.
        name: The model's variant or family, for the metadata.
        settings: Its settings, for the metadata; plain values that JSON has.
        encoder: ``features_only`` and ``out_indices`` of an encoder, for the metadata.

    Raises:
        RunError: The file cannot be written.
    """
    metadata = {"format": "pt", "model": name, "settings": json.dumps(settings)}
    write_tensors(path, state, {**metadata, "encoder": json.dumps(encoder)} if encoder else metadata)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors, whole or not at all.

    Args:
        path: The file.
        tensors: Tensors by name, on any device.
        metadata: Texts to go with them.

    Raises:
        RunError: The file cannot be written.
    """
    plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    with replacing(path) as temporary:
        try:
            save_file(plain, temporary, metadata=None if metadata is None else dict(metadata))
            _order_header(temporary)
        except SafetensorError as error:  # what the library makes of a full disk
            raise RunError(f"cannot write {path}: {error}; free space or check permissions") from error


def _order_header(path: Path) -> None:
    """Sort the metadata, whose order safetensors leaves to a hash (issue 584): equal weights are equal files."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        if "__metadata__" in header:
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= length:  # the same characters in another order; JSON may end in spaces
            file.seek(8)
            file.write(text.ljust(length))
