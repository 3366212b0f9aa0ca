"""Reading a file of weights, never with a pickle that can run code."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vitrail.errors import WeightsError

# Where training codes put the weights inside a checkpoint, tried in this order.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "module")


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a ``.safetensors`` file or of a file that ``torch.save`` wrote.

    A checkpoint that wraps its weights (``{"state_dict": ...}``, ``{"model": ...}``) is unwrapped, and a
    ``module.`` prefix that DataParallel left on every key is taken off.

    Args:
        path: The file.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        WeightsError: No such file, a truncated or foreign file, or a pickle that wants to run code.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"no file of weights at {path}; check the path")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)[0]
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(
            f"cannot read {path} as weights ({reason[:200]}); it is truncated, foreign, or a pickle that would run "
            "code, which vitrail refuses: convert it to safetensors where you trust it"
        ) from error
    return unwrap(content, str(path))


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a ``.safetensors`` file; empty where it has none.

    Raises:
        WeightsError: The file cannot be read.
    """
    return _read_safetensors(Path(path))[1]


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}
            return state, file.metadata() or {}
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise WeightsError(f"cannot read {path} as safetensors ({error}); it is truncated or foreign") from error


def unwrap(content: Any, where: str) -> dict[str, Tensor]:
    """Find the tensors inside what a checkpoint holds.

    Args:
        content: A mapping of tensors by name, or one that holds such a mapping under a customary key.
        where: The file's name, for the error.

    Raises:
        WeightsError: There is no mapping of tensors by name inside.
    """
    for _ in range(3):
        if not isinstance(content, Mapping):
            break
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{where} holds no tensors by name but a {type(content).__name__}")
    foreign = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if foreign:
        raise WeightsError(f"{where} holds values that are no tensors: {', '.join(foreign[:5])}")
    state = {str(key): value for key, value in content.items()}
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state
