"""Reading point clouds and meshes from files, by content where a format has one name for several layouts."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vitrail.errors import DataError, count_of, plural
from vitrail.extras import import_extra

Array = npt.NDArray[Any]


class CloudFile(NamedTuple):
    """Content of a file.

    Attributes:
        points: Coordinates, shape ``(N, 3)``, float64; vertices of a mesh.
        features: Further numbers of each point, shape ``(N, F)``.
        names: Their names, where the file has them.
        faces: Triangles of a mesh, indices into ``points``, shape ``(M, 3)``; None for a cloud.
    """

    points: Array
    features: Array
    names: tuple[str, ...] = ()
    faces: Array | None = None


def read_cloud(path: Path) -> CloudFile:
    """Read a point cloud or a mesh.

    Args:
        path: File of a format in :data:`READERS`, by the end of its name.

    Raises:
        DataError: Another format, or a file that is damaged, empty or has points that are not finite.
        VitrailError: The format needs packages of the extra ``points``.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: no format of point clouds; known are {' '.join(READERS)}")
    try:
        cloud = reader(path)
    except (OSError, ValueError, IndexError, KeyError, struct.error, EOFError) as error:
        raise DataError(f"{path}: cannot be read as a point cloud ({error or type(error).__name__})") from error
    check_points(str(path), cloud.points)
    return cloud


def check_points(where: str, points: Array) -> None:
    """Check that an array holds coordinates of points.

    Args:
        where: File, and cloud in it, for the message.
        points: The array.

    Raises:
        DataError: Another shape than ``(N, 3)``, no points, or points that are not finite.
    """
    if points.ndim != 2 or points.shape[1] != 3 or not len(points):
        raise DataError(f"{where}: needs points of 3 coordinates, at least one, got an array of {points.shape}")
    bad = int((~np.isfinite(points)).any(axis=1).sum())
    if bad:
        raise DataError(
            f"{where}: {count_of(bad, len(points), 'point', 'has', 'have')} no finite coordinates; remove them"
        )


def _split(table: Array, names: tuple[str, ...] = ()) -> CloudFile:
    """Split a table of points into the first three columns and the others."""
    table = np.atleast_2d(np.asarray(table, dtype=np.float64))
    return CloudFile(table[:, :3], table[:, 3:], names[3:])


def _read_numpy(path: Path) -> CloudFile:
    content = np.load(path, allow_pickle=False)
    if isinstance(content, np.ndarray):
        return _split(content)
    with content:
        name = next((n for n in ("points", "xyz", "pos") if n in content), None)
        if name is None and len(content.files) != 1:
            raise ValueError(f"it holds {', '.join(content.files)}; name the coordinates 'points'")
        cloud = _split(content[name or content.files[0]])
        if "features" in content:
            cloud = cloud._replace(
                features=np.asarray(content["features"], dtype=np.float64).reshape(len(cloud.points), -1)
            )
        return cloud


def _read_text(path: Path) -> CloudFile:
    """Read rows of numbers, separated by commas, semicolons or blanks, below a header of names if there is one."""
    names: tuple[str, ...] = ()
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        parts = re.split(r"[,;\s]+", line.split("#")[0].strip().strip(",;"))
        if parts == [""]:
            continue
        try:
            rows.append([float(part) for part in parts])
        except ValueError as error:
            if rows:
                raise ValueError(f"line {number} is not a row of numbers: {line[:40]!r}") from error
            names = tuple(part.strip('"') for part in parts)
    if not rows:
        raise ValueError("it has no rows of numbers")
    if len({len(row) for row in rows}) > 1:
        raise ValueError(f"its rows have {min(map(len, rows))} to {max(map(len, rows))} numbers")
    if names and len(names) == len(rows[0]) and {"x", "y", "z"} <= {name.lower() for name in names}:
        lower = [name.lower() for name in names]
        first = [lower.index(axis) for axis in "xyz"]
        order = [*first, *(i for i in range(len(names)) if i not in first)]
        return _split(np.array(rows)[:, order], tuple(names[i] for i in order))
    return _split(np.array(rows), names if len(names) == len(rows[0]) else ())


def _read_off(path: Path) -> CloudFile:
    """Read an OFF mesh, also where the counts follow the word OFF without a line break (ModelNet)."""
    words = re.sub(r"#.*", "", path.read_text(encoding="ascii", errors="replace")).split()
    if not words or not words[0].upper().startswith("OFF"):
        raise ValueError("it does not begin with OFF")
    words = ([words[0][3:]] if len(words[0]) > 3 else []) + words[1:]
    vertices, faces = int(words[0]), int(words[1])
    points = np.array(words[3 : 3 + 3 * vertices], dtype=np.float64).reshape(vertices, 3)
    triangles, at = [], 3 + 3 * vertices
    for _ in range(faces):
        count = int(words[at])
        corners = [int(word) for word in words[at + 1 : at + 1 + count]]
        triangles += [(corners[0], corners[i], corners[i + 1]) for i in range(1, count - 1)]
        at += 1 + count
    return CloudFile(points, np.empty((vertices, 0)), (), np.array(triangles, dtype=np.int64) if triangles else None)


_PCD_TYPES = {("F", 4): "f4", ("F", 8): "f8", ("U", 1): "u1", ("U", 2): "u2", ("U", 4): "u4", ("I", 1): "i1",
              ("I", 2): "i2", ("I", 4): "i4"}  # fmt: skip


def _read_pcd(path: Path) -> CloudFile:
    """Read a PCD file: ascii, binary or binary_compressed."""
    content = path.read_bytes()
    header: dict[str, list[str]] = {}
    at = 0
    while "DATA" not in header:
        end = content.index(b"\n", at)
        words = content[at:end].decode("ascii", "replace").split()
        at = end + 1
        if words and not words[0].startswith("#"):
            header[words[0].upper()] = words[1:]
    names, counts = header["FIELDS"], [int(n) for n in header.get("COUNT", ["1"] * len(header["FIELDS"]))]
    kinds = [_PCD_TYPES[kind, int(size)] for kind, size in zip(header["TYPE"], header["SIZE"], strict=True)]
    number = int(header["POINTS"][0]) if "POINTS" in header else int(header["WIDTH"][0]) * int(header["HEIGHT"][0])
    layout = [(f"{i}", f"<{kind}", (count,)) for i, (kind, count) in enumerate(zip(kinds, counts, strict=True))]
    form, data = header["DATA"][0], content[at:]
    if form == "ascii":
        table = np.array([line.split() for line in data.decode("ascii", "replace").splitlines() if line.strip()], float)
    elif form == "binary":
        records = np.frombuffer(data, np.dtype(layout), number)
        table = np.concatenate([records[name].astype(float) for name, *_ in layout], axis=1)
    else:
        packed, size = struct.unpack("<II", data[:8])
        fields, parts = _expand_lzf(data[8 : 8 + packed], size), []
        for kind, count in zip(kinds, counts, strict=True):
            width = np.dtype(kind).itemsize * count * number
            parts.append(np.frombuffer(fields[:width], f"<{kind}").reshape(number, count).astype(float))
            fields = fields[width:]
        table = np.concatenate(parts, axis=1)
    columns = [name for name, count in zip(names, counts, strict=True) for _ in range(count)]
    first = [columns.index(axis) for axis in "xyz"]
    # Points that a sensor did not measure are NaN in this format.
    table = table[np.isfinite(table[:, first]).all(axis=1)]
    others = [i for i, name in enumerate(columns) if i not in first and name != "_"]
    return CloudFile(table[:, first], table[:, others], tuple(columns[i] for i in others))


def _expand_lzf(data: bytes, size: int) -> bytes:
    """Expand LZF, the compression of PCD files."""
    out, at = bytearray(), 0
    while at < len(data):
        control = data[at]
        at += 1
        if control < 32:
            out += data[at : at + control + 1]
            at += control + 1
            continue
        length = control >> 5
        if length == 7:
            length += data[at]
            at += 1
        start = len(out) - ((control & 31) << 8) - data[at] - 1
        at += 1
        for i in range(start, start + length + 2):
            out.append(out[i])
    if len(out) != size:
        raise ValueError(f"compressed data gives {plural(len(out), 'byte')} instead of {size}")
    return bytes(out)


def _read_mesh(path: Path) -> CloudFile:
    """Read PLY, OBJ and STL through trimesh."""
    trimesh = import_extra("trimesh", "points")
    loaded = trimesh.load(path, process=False)
    if hasattr(loaded, "geometry"):
        loaded = loaded.to_geometry() if len(loaded.geometry) else None
    if loaded is None:
        raise ValueError("it holds no geometry")
    points = np.asarray(loaded.vertices, dtype=np.float64)
    faces = getattr(loaded, "faces", None)
    colors = getattr(loaded, "colors", None)
    features = np.empty((len(points), 0))
    names: tuple[str, ...] = ()
    if faces is None and colors is not None and len(colors) == len(points):
        features, names = np.asarray(colors, dtype=np.float64)[:, :3] / 255.0, ("red", "green", "blue")
    return CloudFile(points, features, names, None if faces is None or not len(faces) else np.asarray(faces))


def _read_las(path: Path) -> CloudFile:
    """Read LAS and LAZ through laspy."""
    laspy = import_extra("laspy", "points")
    try:
        las = laspy.read(path)
    except laspy.errors.LaspyException as error:
        raise ValueError(str(error)) from error
    names = tuple(n for n in ("intensity", "red", "green", "blue") if n in set(las.point_format.dimension_names))
    features = [np.asarray(las[name], dtype=np.float64) / 65535.0 for name in names]
    points = np.stack([las.x, las.y, las.z], axis=1)
    return CloudFile(points, np.stack(features, axis=1) if names else np.empty((len(points), 0)), names)


READERS: dict[str, Callable[[Path], CloudFile]] = {
    ".npy": _read_numpy, ".npz": _read_numpy, ".xyz": _read_text, ".txt": _read_text, ".csv": _read_text,
    ".pts": _read_text, ".off": _read_off, ".pcd": _read_pcd, ".ply": _read_mesh, ".obj": _read_mesh,
    ".stl": _read_mesh, ".las": _read_las, ".laz": _read_las,
}  # fmt: skip
