"""Output files and folders of verbs: never replaces an input or a foreign file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitrail.config.checks import expand_home
from vitrail.errors import ConfigError
from vitrail.outputs import FIGURE_MARK, SVG_MARK

# Bytes by which an earlier output is recognised.
_HEADER_BYTES = 4096


@dataclass(frozen=True)
class Kind:
    """Kind of output.

    Attributes:
        name: Name with its article, for errors.
        is_one: Whether a file that begins with these bytes is such an output of vitrail.
    """

    name: str
    is_one: Callable[[bytes], bool]


def _table(*columns: str) -> Callable[[bytes], bool]:
    def is_one(beginning: bytes) -> bool:
        header = beginning.split(b"\n")[0].decode("utf-8", errors="replace").strip().split(",")
        return all(column in header for column in columns)

    return is_one


PREDICTIONS = Kind("a table of predictions", _table("path", "class", "probability"))
SPLIT_TABLE = Kind("a table of images", _table("path", "label"))
STATISTICS = Kind("a file of statistics", lambda beginning: b'"vitrail statistics"' in beginning)
PAGE = Kind("a page of vitrail", lambda beginning: b'<meta name="generator" content="vitrail">' in beginning)
PICTURE = Kind("a picture of vitrail", lambda beginning: FIGURE_MARK in beginning or SVG_MARK in beginning)
STEPS = Kind("a table of a model's steps", _table("step", "multiply_adds"))
RESULTS = Kind("a table of published results", _table("name", "top1", "source"))
SPEEDS = Kind("a table of measurements", _table("mode", "precision"))


def output_file(text: str, kind: Kind, inputs: Iterable[str | Path | None] = (), option: str = "--out") -> Path:
    """Return the output file of an option, if it may be written.

    Args:
        text: As it is written; a leading ``~`` is the home folder.
        kind: Kind of file to be written; an earlier file of this kind may be replaced.
        inputs: Files that the verb reads.
        option: Its name, for errors.

    Raises:
        ConfigError: It is an input, a folder, or a file that is not an earlier output of this kind.
    """
    path = Path(expand_home(option, text))
    for given in inputs:
        if given is not None and path.exists() and Path(given).exists() and path.samefile(given):
            raise ConfigError(f"{option} {text} is one of the inputs and would be lost; name another file")
    if path.is_dir():
        raise ConfigError(f"{option} {text} is a folder; name a file in it")
    if path.is_file():
        with path.open("rb") as file:
            beginning = file.read(_HEADER_BYTES)
        if beginning and not kind.is_one(beginning):
            raise ConfigError(
                f"{option} {text} is there already and is not {kind.name}, the only file that would be replaced; name "
                "another file, or remove this one"
            )
    return path


def output_folder(text: str, inputs: Iterable[str | Path | None] = (), option: str = "--out") -> Path:
    """Return the output folder of an option, if it may be written to.

    Args:
        text: As it is written; a leading ``~`` is the home folder.
        inputs: Files and folders that the verb reads.
        option: Its name, for errors.

    Raises:
        ConfigError: It is one of the inputs.
    """
    path = Path(expand_home(option, text))
    for given in inputs:
        if given is not None and path.exists() and Path(given).exists() and path.samefile(given):
            raise ConfigError(f"{option} {text} is one of the inputs; name another folder")
    return path


def files_to_write(
    folder: Path, names: Sequence[str], inputs: Iterable[str | Path], files: Iterable[str | Path], option: str
) -> list[Path]:
    """Return the files that an option writes into a folder, if they replace no input and are not among the next inputs.

    Args:
        folder: The folder.
        names: Names of the files.
        inputs: Files and folders that the verb was given.
        files: Files that it reads: those of the folders too.
        option: Its name, for errors.

    Raises:
        ConfigError: A file is an input, or the folder lies in a folder of inputs.
    """
    inside = folder.resolve().parents
    for given in inputs:
        if Path(given).is_dir() and Path(given).resolve() in inside:
            raise ConfigError(
                f"{option} {folder} lies in the input folder {given}, whose files would include those written there; "
                "name a folder outside of it"
            )
    read = {_file_id(Path(file)): file for file in files if Path(file).exists()}
    targets = [folder / name for name in names]
    for target in targets:
        if target.exists() and _file_id(target) in read:
            raise ConfigError(
                f"{option} {folder} would replace the input {read[_file_id(target)]} by {target.name}; name another "
                "folder"
            )
    return targets


def _file_id(path: Path) -> tuple[int, int]:
    """Identify a file whatever its path, as ``os.path.samefile`` does."""
    status = path.stat()
    return status.st_dev, status.st_ino
