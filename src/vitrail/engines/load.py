"""Load an export: check its files, its inputs and, by recorded outputs, its arithmetic on this machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitrail.engines.base import Arrays, Engine
from vitrail.errors import DataError, RunError, ShapeError

RECORD_FILE, CHECK_FILE = "export.json", "check.npz"
# Version folder, as OpenVINO Model Server and Triton want it.
VERSION_FOLDER = "1"
# Version of the record's layout.
FORMAT = 2

# Engine -> the file that it opens.
ENGINES = {"openvino": "model.xml", "onnx": "model.onnx", "torch": "model.pt2", "inductor": "model.pt2"}
# Key of the record's own digest.
SEAL = "sha256"
# Prefixes of arrays in check.npz: of inputs, and of the outputs of each entry.
INPUT, OUTPUT = "input.", "output."


def open_engine(folder: Path, engine: str, precision: str, threads: int | None = None) -> Engine:
    """Load the model file of an engine; no other engine is imported.

    Args:
        folder: Folder with the file.
        engine: Key of :data:`ENGINES`.
        precision: "fp32", "bf16" or "int8".
        threads: Number of threads; all cores by default.

    Raises:
        ConfigError: The engine does not compute in this precision on this processor.
        VitrailError: The engine is not installed.
    """
    file = folder / ENGINES[engine]
    if engine == "openvino":
        from vitrail.engines.openvino import OpenVINOEngine

        return OpenVINOEngine(file, precision, threads)
    if engine == "onnx":
        from vitrail.engines.onnx import OnnxEngine

        return OnnxEngine(file, precision, threads)
    if engine == "inductor":
        from vitrail.engines.inductor import InductorEngine

        return InductorEngine(file, precision, threads)
    from vitrail.engines.torch import TorchEngine

    return TorchEngine(file, precision, threads)


def find_export(path: str | Path) -> Path | None:
    """Return the version folder of an export; None where the path holds none.

    Args:
        path: The export's folder, or the version folder in it.
    """
    path = Path(path)
    return next((folder for folder in (path / VERSION_FOLDER, path) if (folder / RECORD_FILE).is_file()), None)


def digest(file: Path) -> str:
    """Return the SHA-256 of a file."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with the SHA-256 of all its other values, by which edits are found."""
    rest = {key: value for key, value in record.items() if key != SEAL}
    text = json.dumps(rest, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return {**rest, SEAL: hashlib.sha256(text.encode()).hexdigest()}


@dataclass(frozen=True)
class Export:
    """A loaded export.

    Attributes:
        folder: Its version folder.
        record: Content of export.json.
        engine: The engine that runs it.
    """

    folder: Path
    record: dict[str, Any]
    engine: Engine

    def run(self, inputs: Mapping[str, npt.NDArray[Any]], bands: Mapping[str, Sequence[str]] | None = None) -> Arrays:
        """Run a batch after strict checks of names, types and shapes.

        Args:
            inputs: Arrays by name, those of one entry; export.json lists names, types and shapes.
            bands: Names of the bands of each input, in order, to be compared with the export's; not compared if None.

        Returns:
            Outputs by name.

        Raises:
            ShapeError: A missing or unknown input, or another type, size, number or order of bands. Engines would cast
                the type and accept the size in silence.
        """
        entries = self.entries
        if set(inputs) not in map(set, entries.values()):
            choices = " or ".join(", ".join(names) for names in entries.values())
            raise ShapeError(f"the export takes the inputs {choices}, got {', '.join(inputs) or 'none'}")
        arrays = {}
        for entry in self.record["inputs"]:
            name = entry["name"]
            if name in inputs:
                _check_array(name, inputs[name], entry)
                _check_bands(entry, (bands or {}).get(name))
            arrays[name] = np.ascontiguousarray(inputs[name]) if name in inputs else _no_images(entry)
        if len({len(array) for array in inputs.values()}) > 1:
            sizes = ", ".join(f"{name} {len(array)}" for name, array in inputs.items())
            raise ShapeError(f"inputs of one batch must hold the same number of images, got {sizes}")
        return self.engine.run(arrays)

    @property
    def entries(self) -> dict[str, list[str]]:
        """Names of the inputs of each entry: those that are stored, such as photographs, and prepared ones."""
        names: dict[str, list[str]] = {}
        for entry in self.record["inputs"]:
            names.setdefault(entry["entry"], []).append(entry["name"])
        return names

    def check(self) -> dict[str, float]:
        """Compare outputs on the check images with the recorded ones.

        Returns:
            For each recorded output the largest difference, as a share of the largest recorded value.

        Raises:
            RunError: A difference above the bound in export.json.
        """
        with np.load(self.folder / CHECK_FILE, allow_pickle=False) as file:
            arrays = dict(file)
        differences: dict[str, float] = {}
        for entry, names in self.entries.items():
            found = self.run({name: arrays[INPUT + name] for name in names})
            for name, values in found.items():
                recorded = arrays.get(f"{OUTPUT}{entry}.{name}")
                if recorded is None:
                    continue  # a step function of other outputs
                value = difference(values, recorded)
                differences[name] = value if name not in differences else max(value, differences[name])
        for name, value in differences.items():
            bound = self.record["check"]["bounds"][name]
            if not value <= bound:
                raise RunError(
                    f"{self.folder}: output {name} differs by {value:.2g} of its scale from the recorded one (bound "
                    f"{bound:.2g}); this processor or version computes otherwise: export again on it"
                )
        return differences


def difference(found: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> float:
    """Return the largest difference as a share of the largest absolute value wanted; NaN where a value is NaN."""
    if found.shape != wanted.shape:
        return float("inf")
    scale = np.abs(wanted).max(initial=0.0)
    return float(np.abs(found.astype(np.float64) - wanted).max(initial=0.0) / (scale if scale > 0 else 1.0))


def fill_shape(shape: Sequence[int | None], batch: int, sides: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of an input with lengths for its free axes.

    Args:
        shape: As in export.json; None where free.
        batch: Number of images.
        sides: Lengths of the last two axes where these are free.
    """
    lengths = (batch, *[1] * (len(shape) - 3), *sides)
    return tuple(length if size is None else size for size, length in zip(shape, lengths, strict=True))


def _no_images(entry: Mapping[str, Any]) -> npt.NDArray[Any]:
    """Return an empty batch, for the inputs of the entry that is not used."""
    return np.zeros(fill_shape(entry["shape"], 0, entry["least"]), dtype=entry["dtype"])


def _check_array(name: str, array: npt.NDArray[Any], wanted: Mapping[str, Any]) -> None:
    least = fill_shape(wanted["shape"], 1, wanted["least"])
    letters = [axis[0].upper() for axis in wanted["axes"]]
    words = [word if size == 1 else f"{word} >= {size}" for word, size in zip(letters, least, strict=True)]
    shape = [dim if dim is not None else word for dim, word in zip(wanted["shape"], words, strict=True)]
    described = f"({', '.join(map(str, shape))}) of {wanted['dtype']}"
    if array.dtype != np.dtype(wanted["dtype"]):
        raise ShapeError(f"input {name} must be {described}, got {array.dtype} values; convert them in their own units")
    fits = array.ndim == len(shape) and all(
        have >= small if isinstance(want, str) else have == want
        for have, want, small in zip(array.shape, shape, least, strict=True)
    )
    if not fits:
        bands = f"; its bands are {', '.join(wanted['bands'])}"
        raise ShapeError(f"input {name} must be {described}, got the shape {array.shape}{bands}")


def _check_bands(entry: Mapping[str, Any], names: Sequence[str] | None) -> None:
    if names is not None and list(names) != entry["bands"]:
        raise ShapeError(
            f"input {entry['name']} has the bands {', '.join(entry['bands'])}, in this order, got {', '.join(names)}"
        )


def read_record(folder: Path) -> dict[str, Any]:
    """Read export.json.

    Raises:
        RunError: It is damaged, edited, or of another version.
    """
    file = folder / RECORD_FILE
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{file} cannot be read ({error}); export again") from error
    found = record.get("format") if isinstance(record, dict) else None
    if found != FORMAT:
        raise RunError(f"{file}: export format {found!r} is not supported (expected {FORMAT}); export again")
    if sealed(record)[SEAL] != record.get(SEAL):
        raise RunError(f"{file} was edited (its SHA-256 differs); restore it, or export again")
    return dict(record)


def load_export(path: str | Path, threads: int | None = None, check: bool = True) -> Export:
    """Load an export.

    Args:
        path: Its folder.
        threads: Number of threads; all cores by default.
        check: Whether to compare outputs on the check images with the recorded ones.

    Raises:
        DataError: The path holds no export.
        RunError: A file is missing or was changed, or outputs differ from the recorded ones.
        ConfigError: The processor does not compute in the export's precision.
    """
    folder = find_export(path)
    if folder is None:
        raise DataError(f"no export at {path} (no {VERSION_FOLDER}/{RECORD_FILE}); `vitrail export RUN` makes one")
    record = read_record(folder)
    for name, recorded in record["files"].items():
        file = folder / name
        if not file.is_file():
            raise RunError(f"{folder} lacks {name}; export again")
        if digest(file) != recorded:
            raise RunError(f"{file} is not the exported file (its SHA-256 differs); restore it, or export again")
    export = Export(folder, record, open_engine(folder, record["engine"], record["precision"], threads))
    if check:
        export.check()
    return export
