"""What a run was made with: versions, code, hardware, command."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_only

from vitrail import __version__
from vitrail.machine import cores, processor

_PACKAGES = ("torch", "lightning", "torchmetrics", "kornia", "numpy", "scikit-learn", "safetensors", "pillow")


def describe_environment(seed: int) -> dict[str, Any]:
    """Everything that environment.json records."""
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "vitrail": __version__,
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "processor": processor(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "gpus": devices,
        "seed": seed,
        "command": sys.argv,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def is_first_process() -> bool:
    """Whether this is the process that writes, of those that train together."""
    # Until processes have met, Lightning counts those of its own machine alone.
    machine = os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0"))
    return getattr(rank_zero_only, "rank", 0) == 0 and int(machine) == 0


def _git_commit() -> str | None:
    """The commit of the code that runs, when it runs from a checkout."""
    here = Path(__file__).resolve().parent
    git = shutil.which("git")
    if git is None or not any((folder / ".git").exists() for folder in here.parents):
        return None
    found = subprocess.run([git, "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or None
