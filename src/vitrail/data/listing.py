"""List the image files under a folder: one rule for all sources and verbs.

A file is an image when its suffix is that of an image format or its content can be read as an image, whatever its
name. A damaged file of an image's name stays an error. Files that never were images (annotations, notes, thumbnails
of systems) and folders that vitrail itself wrote are passed over and counted.
"""

from __future__ import annotations

import codecs
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from vitrail.errors import DataError, few, plural
from vitrail.files import is_lfs_pointer
from vitrail.outputs import FIGURE_MARK, is_output_folder

# Formats of images, also those that nothing here decodes: an image that cannot be read is an error, never passed over.
IMAGE_SUFFIXES = frozenset(
    ".apng .avif .avifs .bmp .bw .cr2 .cr3 .cur .czi .dcm .dds .dib .dng .exr .gif .heic .heif .ico .j2c .j2k .jfif "
    ".jif .jp2 .jpe .jpeg .jpf .jpg .jpx .jxl .lsm .nd2 .ndpi .nef .orf .pbm .pcx .pfm .pgm .png .pnm .ppm .psd .raf "
    ".ras .rgb .rgba .rw2 .sgi .svs .tga .tif .tiff .webp .xbm .xpm".split()
)
# TIFF files that belong to another: GDAL's overviews and masks.
_COMPANIONS = (".ovr", ".msk")
# Notes, annotations and programs: a folder that holds nothing else is not a class.
TEXT_SUFFIXES = frozenset(
    ".bib .cfg .conf .csv .db .dbf .doc .docx .html .htm .ini .ipynb .json .jsonl .log .md .ods .odt .pdf .prj .py "
    ".rst .rtf .sh .shp .shx .tex .tfw .toml .tsv .txt .url .xls .xlsx .xml .xmp .yaml .yml".split()
)
# Folders of systems and tools; their pictures are thumbnails.
_SYSTEM_FOLDERS = frozenset(
    {"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found", "__pycache__"}
)
# Beginnings that only images have: a file with one of them is an image, and a damaged one where it cannot be read.
_MAGIC = (
    b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+",
    b"\0\0\0\x0cjP  \r\n", b"\xff\x4f\xff\x51", b"8BPS",
)  # fmt: skip
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# The brands of the ISO container that are pictures; others are videos.
_PICTURE_BRANDS = (b"heic", b"heix", b"mif1", b"msf1", b"avif", b"avis")
# Pillow names files of these formats without being able to decode them, or would start another program.
_NOT_DECODED = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "MPEG", "WMF"}
_HEADER_BYTES = 512


@dataclass
class Listing:
    """Files under a folder.

    Attributes:
        root: The folder.
        deep: Whether the folders in it were listed, too.
        files: The images, in order; a link that leads nowhere is among them, as a fault to report.
        passed_over: Files that are not images, in order.
        outputs: Folders that vitrail wrote, which were not entered.
        figures: Figures that vitrail wrote.
        loops: Links that lead back to a folder above them, which were not followed.
        repeated: Links to folders that were entered already, which were not followed.
    """

    root: Path
    deep: bool = True
    files: list[Path] = field(default_factory=list)
    passed_over: list[Path] = field(default_factory=list)
    outputs: list[Path] = field(default_factory=list)
    figures: list[Path] = field(default_factory=list)
    loops: list[Path] = field(default_factory=list)
    repeated: list[Path] = field(default_factory=list)


def list_images(folder: Path, *, deep: bool = True, each: bool = False) -> Listing:
    """List the images under a folder.

    Hidden files and folders are passed over without a word; all else that is not an image is counted. Linked folders
    are entered, each once and never in circles.

    Args:
        folder: The folder.
        deep: Whether to list the folders in it, too.
        each: Enter a folder as often as links lead to it (but never in circles).

    Raises:
        DataError: A name that is not UTF-8.
    """
    found = Listing(folder, deep)
    unsure: list[Path] = []
    for path in _walk(folder, found, each):
        suffix = path.suffix.lower()
        if suffix == ".png" and FIGURE_MARK in _beginning(path):
            found.figures.append(path)
        elif suffix in IMAGE_SUFFIXES:
            found.files.append(path)
        elif suffix in _COMPANIONS:
            found.passed_over.append(path)
        else:
            unsure.append(path)
    _decide(unsure, found)
    found.files.sort()
    found.passed_over.sort()
    return found


def list_files(folder: Path) -> list[Path]:
    """List the images under a folder, in order; see :func:`list_images`."""
    return list_images(folder).files


def list_by_suffix(folder: Path, suffix: str) -> list[Path]:
    """List the files of a suffix under a folder, in order; folders that vitrail wrote are left out."""
    return sorted(path for path in _walk(folder, Listing(folder), False) if path.suffix.lower() == suffix)


def is_tiff(path: Path) -> bool:
    """Check whether a file is a TIFF, by content, or by name where the content does not decide."""
    beginning = _beginning(path)
    if beginning[:4] in _TIFF or has_image_magic(beginning):
        return beginning[:4] in _TIFF
    return path.suffix.lower() in (".tif", ".tiff")


def describe_passed_over(listings: Sequence[Listing]) -> list[str]:
    """Describe ignored files, one line for each kind with a count and an example."""
    lines = []
    files = [path for listing in listings for path in listing.passed_over]
    if files:
        what = plural(len(files), "file that is not an image", "files that are not images")
        lines.append(f"passed over {what}: {by_suffix(files)}")
    outputs = [str(path) for listing in listings for path in listing.outputs]
    if outputs:
        lines.append(
            f"passed over {plural(len(outputs), 'folder')} that vitrail wrote (runs, suites, explanations): "
            f"{few(outputs)}"
        )
    figures = [str(path) for listing in listings for path in listing.figures]
    if figures:
        lines.append(f"passed over {plural(len(figures), 'figure')} that vitrail drew: {few(figures)}")
    loops = [str(path) for listing in listings for path in listing.loops]
    if loops:
        lines.append(
            f"{plural(len(loops), 'link')} to a folder above, not followed (each folder is entered once): {few(loops)}"
        )
    repeated = [str(path) for listing in listings for path in listing.repeated]
    if repeated:
        lines.append(
            f"{plural(len(repeated), 'link')} to a folder that is listed already, entered once: {few(repeated)}"
        )
    return lines


def by_suffix(files: Sequence[Path]) -> str:
    """Count files by suffix, the most frequent first."""
    counts = Counter(path.suffix.lower() or "without suffix" for path in files)
    return ", ".join(f"{number} {suffix}" for suffix, number in sorted(counts.items(), key=lambda x: (-x[1], x[0])))


def subfolders(folder: Path) -> list[Path]:
    """List the direct subfolders that may hold data, in order.

    Hidden ones, those of systems, those that vitrail wrote and links that lead to the folder itself or above it are
    left out.
    """
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_dir() and not is_system_folder(path.name) and not _leads_up(path) and not is_output(path)
    ]


def is_system_folder(name: str) -> bool:
    """Check whether a folder is hidden, or belongs to the system or a tool."""
    return name.startswith(".") or name.lower() in _SYSTEM_FOLDERS


def is_output(folder: Path) -> bool:
    """Check whether vitrail wrote a folder (or all its content: ``runs/`` with runs alone)."""
    with os.scandir(folder) as entries:
        inside = [entry for entry in entries if not entry.name.startswith(".")]
    if is_output_folder([entry.name for entry in inside]):
        return True
    return bool(inside) and all(
        entry.is_dir(follow_symlinks=False) and is_output(folder / entry.name) for entry in inside
    )


def _leads_up(path: Path) -> bool:
    """Check whether a link leads to a folder that contains it."""
    return path.is_symlink() and path.parent.resolve().is_relative_to(path.resolve())


def _walk(folder: Path, found: Listing, each: bool) -> Iterator[Path]:
    """List all files; folders of the tree itself come before linked ones."""
    seen: set[str] = set()
    links: list[tuple[Path, tuple[str, ...]]] = [(folder, ())]
    while links:
        linked = sorted(links)
        links = []
        for start, chain in linked:
            real = os.path.realpath(start)
            if start != folder and (real in chain or _leads_up(start)):
                found.loops.append(start)
                continue
            if real in seen and not each:
                found.repeated.append(start)
                continue
            yield from _walk_tree(start, (*chain, real), found, seen, links, each)


def _walk_tree(
    start: Path,
    chain: tuple[str, ...],
    found: Listing,
    seen: set[str],
    links: list[tuple[Path, tuple[str, ...]]],
    each: bool,
) -> Iterator[Path]:
    """List the files of a folder and its subfolders; linked folders are deferred.

    ``chain`` holds the real paths of the folders above and of the folder itself, the last.
    """
    todo = [(start, chain)]
    while todo:
        folder, chain = todo.pop()
        seen.add(chain[-1])
        with os.scandir(folder) as scanned:
            entries = sorted(scanned, key=lambda entry: entry.name)
        if folder != found.root and is_output_folder([entry.name for entry in entries]):
            found.outputs.append(folder)
            continue
        for entry in entries:
            path = folder / entry.name
            # Of a link to itself the entry would raise.
            is_folder = path.is_dir() if entry.is_symlink() else entry.is_dir()
            if is_system_folder(entry.name) if is_folder else entry.name.startswith("."):
                continue
            _require_utf8(path)
            if is_folder and not found.deep:
                # A folder that is not entered counts with its parent.
                if _leads_up(path):
                    found.loops.append(path)
                elif is_output(path):
                    found.outputs.append(path)
            elif not is_folder:
                if entry.is_symlink() or entry.is_file():
                    yield path
                else:  # a pipe or a socket, which is not opened
                    found.passed_over.append(path)
            elif entry.is_symlink():
                links.append((path, chain))
            elif (inner := os.path.join(chain[-1], entry.name)) in seen and not each:
                found.repeated.append(path)
            else:
                todo.append((path, (*chain, inner)))


def _require_utf8(path: Path) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{str(path)!a}: the name is not UTF-8; rename the file") from error


def _decide(unsure: Sequence[Path], found: Listing) -> None:
    """Classify files without an image suffix by their content.

    A file that is neither an image nor text, among files of the same suffix (or all without one) of which most are
    images is a damaged image.
    """
    images: dict[str, int] = Counter()
    doubtful: list[Path] = []
    others: dict[str, int] = Counter()
    for path in unsure:
        suffix = path.suffix.lower()
        beginning = _beginning(path)
        if suffix not in TEXT_SUFFIXES and is_lfs_pointer(beginning):
            # Git LFS pointer without a suffix: it may stand for an image.
            (found.files if suffix == "" else doubtful).append(path)
        elif has_image_magic(beginning) or _opens(path, beginning):
            images[suffix] += 1
            found.files.append(path)
        elif suffix in TEXT_SUFFIXES or _is_text(beginning):
            found.passed_over.append(path)
        else:
            others[suffix] += 1
            doubtful.append(path)
    for path in doubtful:
        suffix = path.suffix.lower()
        damaged = images[suffix] > 0 and images[suffix] >= others[suffix]
        dangling = path.is_symlink() and not path.exists()
        (found.files if damaged or dangling else found.passed_over).append(path)


def _beginning(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEADER_BYTES)
    except OSError:
        return b""


def has_image_magic(beginning: bytes) -> bool:
    """Check whether a file begins with the magic bytes of an image format.

    Args:
        beginning: Its first bytes, 132 at least where it has them.
    """
    if beginning.startswith(_MAGIC):
        return True
    if beginning[:4] == b"RIFF" and beginning[8:12] == b"WEBP":
        return True
    if beginning[4:8] == b"ftyp" and beginning[8:12] in _PICTURE_BRANDS:
        return True
    return beginning[128:132] == b"DICM"


def _is_text(beginning: bytes) -> bool:
    if not beginning or b"\0" in beginning:
        return False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(beginning)  # a character may be cut at the end
    except UnicodeDecodeError:
        return False
    return True


def _opens(path: Path, beginning: bytes) -> bool:
    """Check whether Pillow finds an image header."""
    if not beginning or (_is_text(beginning) and not beginning.startswith((b"P", b"#define", b"/* XPM"))):
        return False
    try:
        with Image.open(path) as image:
            return image.format not in _NOT_DECODED
    except Image.DecompressionBombError:
        return True
    except (OSError, ValueError, SyntaxError, EOFError):
        return False
