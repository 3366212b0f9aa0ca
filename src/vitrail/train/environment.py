"""Environment of a run: versions, code, hardware, command."""

from __future__ import annotations

import functools
import hashlib
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

_version = functools.cache(importlib.metadata.version)


def describe_environment(seed: int) -> dict[str, Any]:
    """Collect the content of environment.json."""
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "vitrail": __version__,
        "code": _code(),
        **_checkout(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
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
    """Return whether this is the first of the processes that train together, which writes files."""
    # Before the processes connect, Lightning counts those of its own machine.
    machine = os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0"))
    return getattr(rank_zero_only, "rank", 0) == 0 and int(machine) == 0


def _checkout() -> dict[str, Any]:
    """Find the commit of vitrail's own checkout and the changed files; both None for an installed vitrail.

    A repository that only contains vitrail's environment is not its own.
    """
    here = Path(__file__).resolve().parents[1]
    nothing: dict[str, Any] = {"git_commit": None, "git_changes": None}
    git = shutil.which("git")
    if git is None or not any((folder / ".git").exists() for folder in here.parents):
        return nothing

    def ask(*words: str) -> str | None:
        found = subprocess.run([git, "-C", str(here), *words], capture_output=True, text=True, check=False)
        return found.stdout if found.returncode == 0 else None

    if ask("ls-files", "--error-unmatch", "--", "__init__.py") is None:
        return nothing
    commit = ask("rev-parse", "HEAD")
    changed = ask("status", "--porcelain", "--no-renames", "--", ".")
    if commit is None or changed is None:
        return nothing
    return {"git_commit": commit.strip(), "git_changes": sorted(line[3:].strip('"') for line in changed.splitlines())}


def _code() -> str:
    """Hash vitrail's source files, to detect changed code without a repository."""
    here = Path(__file__).resolve().parents[1]
    code = hashlib.sha256()
    for file in sorted(here.rglob("*.py")):
        code.update(f"{file.relative_to(here).as_posix()}\0".encode())
        code.update(file.read_bytes())
    return code.hexdigest()[:16]
