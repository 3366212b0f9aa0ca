"""Writing weights so that they say what they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from vitrail.files import replacing


def write_weights(path: Path, state: Mapping[str, Tensor], name: str, settings: Mapping[str, Any]) -> None:
    """Write a model's tensors as safetensors, whole or not at all.

    Args:
        path: The file.
        state: Tensors by name.
        name: The model's variant or family, for the metadata.
        settings: Its settings, for the metadata; plain values that JSON has.

    Raises:
        RunError: The file cannot be written.
    """
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    metadata = {"format": "pt", "model": name, "settings": json.dumps(settings)}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)
