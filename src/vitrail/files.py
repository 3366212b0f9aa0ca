"""Writing files so that a kill at any moment never leaves half of one under its final name."""

from __future__ import annotations

import itertools
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vitrail.errors import RunError

# What Git leaves in the place of a large file that git-lfs has not fetched yet.
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_LFS_LONGEST = 1024
LFS_REMEDY = "run `git lfs pull`"


def is_lfs_pointer(content: str | Path | bytes) -> bool:
    """Return whether a file is a Git LFS pointer: a text of a few lines in the place of the file itself.

    Args:
        content: The file, or the bytes that would be in it.
    """
    if isinstance(content, bytes):
        return len(content) <= _LFS_LONGEST and content.startswith(_LFS_POINTER)
    try:
        with open(content, "rb") as file:
            return is_lfs_pointer(file.read(_LFS_LONGEST + 1))
    except OSError:
        return False


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it replaces ``path`` in one step, on error it is removed.

    Args:
        path: The final name. Its folder is created when missing.

    Raises:
        RunError: The folder or the file cannot be written; the message says which and why.
    """
    # A link stays a link: what it points to is replaced.
    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise RunError(f"cannot write {path}: it is a folder; name a file")
    special = path.exists() and not path.is_file()  # a pipe or a device takes what is written, and stays
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = None if special else path.parent
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=folder)
        os.close(handle)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}; choose a folder you may write to") from error
    temporary = Path(name)
    try:
        yield temporary
        if special:
            with path.open("wb") as out:
                out.write(temporary.read_bytes())
            return
        # mkstemp makes the file private; a finished file gets the permissions any other new file would have.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        os.replace(temporary, path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}; free space or check permissions") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8 under ``path``, whole or not at all; bytes of names that are not UTF-8 as escapes."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON under ``path``, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def cache_folder() -> Path | None:
    """Return the user's folder of cached files, which may be deleted at any time; None where there is no home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vitrail"
    except RuntimeError:
        return None


def write_cached(file: Path | None, text: str) -> None:
    """Write a file of :func:`cache_folder`; without one, or if it cannot be written, later calls take their time."""
    if file is not None:
        with suppress(RunError, OSError):
            write_text(file, text)


def file_names(keys: Sequence[str]) -> list[str]:
    """Make a file name for each image: its own, or with its folder or a number where several images share it."""
    stems = [_safe(Path(key).stem) for key in keys]
    often = Counter(stems)
    taken: set[str] = set()
    result = []
    for key, stem in zip(keys, stems, strict=True):
        base = stem if often[stem] == 1 else f"{_safe(Path(key).parent.name)}_{stem}"
        name = next(n for n in itertools.chain([base], (f"{base}_{i}" for i in itertools.count(2))) if n not in taken)
        taken.add(name)
        result.append(name)
    return result


def _safe(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", name) or "image"
