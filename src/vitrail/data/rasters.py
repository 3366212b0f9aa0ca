"""Read TIFF files of any number of bands and any integer or float type, through tifffile."""

from __future__ import annotations

import logging
import lzma
import math
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, TypeVar
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F
from torch import Tensor

from vitrail.data.centre_crop import centre_box
from vitrail.data.image_errors import BandError, PointerError, UnreadableError, too_large
from vitrail.data.no_data import parse_no_data
from vitrail.files import is_lfs_pointer

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

Array = npt.NDArray[Any]
File = Path | IO[bytes]
Result = TypeVar("Result")
# Exceptions of tifffile for files that are damaged, cut off, or compressed in a way that needs another package: an
# ImportError where this Python lacks a codec of its own (ZSTD before 3.14), NotImplementedError and the like inside.
_FAULTS = (
    OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, struct.error, zlib.error, lzma.LZMAError,
    RuntimeError, ImportError, OverflowError, ZeroDivisionError,
)  # fmt: skip
_ORIENTATION, _GDAL_METADATA, _GDAL_NODATA = 274, 42112, 42113
# Bits of a page's NewSubfileType, and how a mask's pixels are marked.
_REDUCED, _MASK, _PHOTOMETRIC_MASK = 1, 4, 4
# A resized pixel with less of its weight on data has none itself. Below a half: at a tie rounding would decide.
LEAST_KNOWN = 0.4999
# Values of ExtraSamples for an alpha band.
_ALPHA = (1, 2)


@dataclass(frozen=True)
class Raster:
    """Image of a TIFF file, as stored.

    Attributes:
        values: Shape ``(C, H, W)``, of the file's own type, oriented by its orientation tag.
        invalid: Pixels that a mask or an alpha band takes out, shape ``(H, W)``; None where there is neither.
        no_data: No-data value of the file (GDAL_NODATA).
        scale: Scale of each band, where the file has a scale or an offset of its own (GDAL_METADATA): a value is
            ``stored * scale + offset`` of its units.
        offset: Likewise.
    """

    values: Array
    invalid: npt.NDArray[np.bool_] | None = None
    no_data: float | None = None
    scale: tuple[float, ...] | None = None
    offset: tuple[float, ...] | None = None

    def physical(self) -> Array:
        """Return the values in physical units, float64; as stored without scale and offset."""
        if self.scale is None or self.offset is None:
            return self.values
        scale, offset = (np.array(part)[:, None, None] for part in (self.scale, self.offset))
        units: Array = self.values * scale + offset
        return units


def open_raster(
    path: File, bands: int | None = None, max_pixels: int | None = None, size: tuple[int, int] = (1, 1)
) -> Raster:
    """Read a TIFF file.

    Overviews (images of reduced size) and masks are not images of their own; a mask may be a file beside it
    (``NAME.tif.msk``). An alpha band beyond the wanted bands is
    a mask.

    Args:
        path: The file. Its bands may be interleaved, planes, or pages of one size.
        bands: Number of bands wanted; decides whether an alpha band is one of them.
        max_pixels: Pixels that are decoded at most; of a larger image an overview is read, or every n-th pixel.
        size: Height and width that are wanted of an overview.

    Raises:
        BandError: A file that holds several images of several bands.
        UnreadableError: Not a TIFF that can be read, one whose pages are of different sizes, or too large a one.
    """
    return _with_masks(path, lambda file, masks: _open(file, masks, path, bands, max_pixels, size))


def inspect_pages(path: File) -> tuple[int, npt.NDArray[np.bool_] | None]:
    """Count the images of a TIFF file of several pages.

    Returns:
        Number of its images, without overviews and masks; and the pixels that its mask takes out, shape ``(H, W)``,
        oriented by the file's tag, None where it has no mask.

    Raises:
        UnreadableError: Not a TIFF that can be read.
    """

    def look(file: TiffFile, beside: Sequence[TiffPage]) -> tuple[int, npt.NDArray[np.bool_] | None]:
        images, masks = _sort_pages(file)
        masks = masks or list(beside)
        if not masks:
            return len(images), None
        invalid = _planes(masks[0], path)[0] == 0
        return len(images), _turn(invalid, int(_tag(images[0], _ORIENTATION) or 1))

    return _with_masks(path, look)


def mask_beside(path: File) -> Path | None:
    """Return GDAL's mask file of an image; None if there is none."""
    beside = Path(f"{path}.msk") if isinstance(path, Path) else None
    return beside if beside is not None and beside.is_file() else None


def _with_masks(path: File, look: Callable[[TiffFile, Sequence[TiffPage]], Result]) -> Result:
    """Open a TIFF file together with its mask file."""
    beside = mask_beside(path)
    if beside is None:
        return _with_pages(path, lambda file: look(file, []))
    return _with_pages(beside, lambda mask: _with_pages(path, lambda file: look(file, _sort_pages(mask)[0])))


def _with_pages(path: File, look: Callable[[TiffFile], Result]) -> Result:
    """Open a TIFF file; errors are reduced to one line."""
    import tifffile

    # tifffile also logs the error that it raises, which would be a second message about one fault.
    logger = logging.getLogger("tifffile")
    if logger.level != logging.CRITICAL:  # setting it takes longer than opening a small file
        logger.setLevel(logging.CRITICAL)
    if isinstance(path, Path) and is_lfs_pointer(path):
        raise PointerError(path)
    try:
        with tifffile.TiffFile(path) as file:
            return look(file)
    except (BandError, UnreadableError):
        raise
    except _FAULTS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        codec = isinstance(error, ImportError) or "imagecodecs" in reason
        if isinstance(error, ImportError):
            reason = f"its compression needs another package: {reason}"
        remedy = "`pip install 'vitrail[rasters]'` brings it" if codec else "remove or replace it"
        raise UnreadableError(f"{path} is not a readable TIFF ({reason})", remedy) from error


def _sort_pages(file: TiffFile) -> tuple[list[TiffPage], list[TiffPage]]:
    """Return the images of a file, and their full-size masks."""
    pages: list[TiffPage] = [page for page in file.pages if page is not None]  # type: ignore[misc]
    # A file of nothing but thumbnails or masks holds these as its images.
    images = [page for page in pages if not _kind(page)] or pages[:1]
    return images, [page for page in pages if page not in images and _kind(page) & (_MASK | _REDUCED) == _MASK]


def _open(
    file: TiffFile,
    beside: Sequence[TiffPage],
    path: File,
    bands: int | None,
    max_pixels: int | None,
    size: tuple[int, int],
) -> Raster:
    images, masks = _sort_pages(file)
    masks = masks or list(beside)
    if not images:
        raise UnreadableError(f"{path} is not a readable TIFF (it holds no image)", "remove or replace it")
    first = images[0]
    height, width = first.imagelength, first.imagewidth
    shapes = {(page.imagelength, page.imagewidth): page for page in images}
    if len(shapes) > 1:
        sizes = ", ".join(f"{h}x{w}" for h, w in list(shapes)[:4])
        raise UnreadableError(
            f"{path} holds {len(images)} images of different sizes ({sizes}) where one is wanted", "keep one"
        )
    per_page = first.samplesperpixel
    if len(images) > 1 and per_page > 1:
        raise BandError(f"{path} holds {len(images)} images of {per_page} bands where one is wanted", "keep one")
    if max_pixels is not None and height * width > max_pixels:
        values, invalid = _reduced(file, images, masks, path, max_pixels, size)
    else:
        values = _values(file, images, path)
        invalid = _planes(masks[0], path)[0] == 0 if masks else None
    if invalid is not None and invalid.shape != values.shape[1:]:
        found = "x".join(map(str, invalid.shape))
        raise UnreadableError(f"{path} has a mask of {found} pixels for {height}x{width}", "correct or remove the mask")
    alpha = [i for i, kind in enumerate(first.extrasamples) if int(kind) in _ALPHA]
    if alpha and len(images) == 1 and bands is not None and len(values) == bands + 1:
        channel = per_page - len(first.extrasamples) + alpha[0]
        hidden = values[channel] == 0
        invalid = hidden if invalid is None else invalid | hidden
        values = np.delete(values, channel, axis=0)
    orientation = int(_tag(first, _ORIENTATION) or 1)
    scale, offset = _scale_and_offset(first, len(values), path)
    return Raster(
        _turn(values, orientation),
        None if invalid is None else _turn(invalid, orientation),
        _no_data(first, path),
        scale,
        offset,
    )


def _kind(page: TiffPage) -> int:
    """Return the bits that mark a page as a mask or reduced image; 0 for an image."""
    kind = int(getattr(page, "subfiletype", 0) or 0) & (_REDUCED | _MASK)
    return kind | _MASK if int(getattr(page, "photometric", 0) or 0) == _PHOTOMETRIC_MASK else kind


def _tag(page: TiffPage, code: int) -> Any:
    tag = page.tags.get(code)
    return None if tag is None else tag.value


def _reduced(
    file: TiffFile,
    images: Sequence[TiffPage],
    masks: Sequence[TiffPage],
    path: File,
    max_pixels: int,
    size: tuple[int, int],
) -> tuple[Array, npt.NDArray[np.bool_] | None]:
    """Read a too large image and its mask from an overview, or every n-th pixel strip by strip."""
    own = images[0].imagelength, images[0].imagewidth
    overview = _overview(file, max_pixels, size) if len(images) == 1 else None
    if overview is None:
        step = math.ceil(math.sqrt(own[0] * own[1] / max_pixels))
        values = np.concatenate([_thinned(page, path, step, max_pixels) for page in images])
        return values, _thinned(masks[0], path, step, max_pixels)[0] == 0 if masks else None
    values = _planes(overview, path)
    if not masks:
        return values, None
    hidden = _planes(masks[0], path)[0] == 0
    # The overviews of masks need not be those of the image: the pixel at each position decides.
    rows, columns = (np.arange(n) * whole // n for n, whole in zip(values.shape[1:], hidden.shape, strict=True))
    return values, hidden[rows[:, None], columns]


def _overview(file: TiffFile, max_pixels: int, size: tuple[int, int]) -> TiffPage | None:
    """Choose the smallest overview of at least the wanted size, else the largest allowed; None if none is."""

    def area(page: TiffPage) -> int:
        return page.imagelength * page.imagewidth

    pages: list[TiffPage] = [page for page in file.pages if page is not None]  # type: ignore[misc]
    smaller = [page for page in pages if _kind(page) == _REDUCED and area(page) <= max_pixels]
    enough = [page for page in smaller if page.imagelength >= size[0] and page.imagewidth >= size[1]]
    if enough:
        return min(enough, key=area)
    return max(smaller, key=area) if smaller else None


def _thinned(page: TiffPage, path: File, step: int, max_pixels: int) -> Array:
    """Read every ``step``-th row and column, shape ``(C, H, W)``, with one strip or tile in memory.

    Raises:
        UnreadableError: The thinned image or a strip of it has more pixels than may be decoded.
    """
    _refuse_cut_off(page, path)
    height, width = -(-page.imagelength // step), -(-page.imagewidth // step)
    planes, _, _, _, samples = page.shaped
    longest = max(page.tilelength, 1) * max(page.tilewidth, 1) if page.is_tiled else page.rowsperstrip * page.imagewidth
    if min(longest, page.imagelength * page.imagewidth) > max_pixels or height * width > max_pixels:
        raise too_large(path, (page.imagelength, page.imagewidth), max_pixels)
    pixels = np.full((planes, height, width, samples), page.nodata, dtype=page.dtype)
    for segment, (plane, _, row, column, sample), shape in page.segments():
        if segment is None:  # a part that was never written
            continue
        top, left = -row % step, -column % step
        bottom, right = min(shape[1], page.imagelength - row), min(shape[2], page.imagewidth - column)
        part = segment[0, top:bottom:step, left:right:step]
        y, x = (row + top) // step, (column + left) // step
        pixels[plane, y : y + len(part), x : x + part.shape[1], sample : sample + part.shape[2]] = part
    return np.moveaxis(pixels, 3, 1).reshape(-1, height, width)


def _values(file: TiffFile, images: Sequence[TiffPage], path: File) -> Array:
    """Read all bands of the pages, shape ``(C, H, W)``."""
    if len({page.dtype for page in images}) > 1:
        types = ", ".join(sorted({str(page.dtype) for page in images}))
        raise BandError(f"{path} holds pages of several types ({types})", "save them as one type")
    parts = [_planes(page, path) for page in images]
    values = parts[0] if len(parts) == 1 else np.concatenate(parts)
    # Some writers (ImageJ) describe the first page alone, and the others' pixels follow it.
    series, *rest = [part for part in file.series if not _kind(part.keyframe)] or file.series
    if not rest and series.size > values.size and series.shape[-2:] == values.shape[-2:]:
        whole: Array = series.asarray()
        return whole.reshape(-1, *values.shape[-2:])
    return values


def _planes(page: TiffPage, path: File) -> Array:
    """Return the bands of one page, shape ``(C, H, W)``, whatever axes have length 1."""
    _refuse_cut_off(page, path)
    pixels: Array = page.asarray(squeeze=False)  # planes, depth, height, width, interleaved bands
    return np.moveaxis(pixels, 4, 2).reshape(-1, *pixels.shape[2:4])


def _refuse_cut_off(page: TiffPage, path: File) -> None:
    end = page.parent.filehandle.size
    if any(offset + count > end for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False)):
        raise UnreadableError(f"{path} is not a readable TIFF (the file is cut off)", "remove or replace it")


def _turn(planes: Array, orientation: int) -> Array:
    """Rotate and mirror planes ``(..., H, W)`` by the orientation tag.

    Source: TIFF 6.0, tag 274: the sides of the image in which row 0 and column 0 lie.
    """
    if orientation in (5, 6, 7, 8):
        planes = planes.swapaxes(-1, -2)
    if orientation in (3, 4, 7, 8):
        planes = planes[..., ::-1, :]
    if orientation in (2, 3, 6, 7):
        planes = planes[..., ::-1]
    return planes


def _no_data(page: TiffPage, path: File) -> float | None:
    text = _tag(page, _GDAL_NODATA)
    if text is None:
        return None
    return parse_no_data(str(text), path)


def _scale_and_offset(
    page: TiffPage, bands: int, path: File
) -> tuple[tuple[float, ...], tuple[float, ...]] | tuple[None, None]:
    """Read GDAL's scale and offset of each band; None where all are 1 and 0."""
    text = str(_tag(page, _GDAL_METADATA) or "").strip(" \0")
    if not re.search(r"""role=["'](scale|offset)["']""", text):
        return None, None
    found: dict[str, list[float]] = {"scale": [1.0] * bands, "offset": [0.0] * bands}
    try:
        for item in ElementTree.fromstring(text).iter("Item"):
            role, band = item.get("role", ""), int(item.get("sample", "0"))
            if role in found and band < bands:
                found[role][band] = float(item.text or "")
    except (ElementTree.ParseError, ValueError) as error:
        raise UnreadableError(
            f"{path} cannot be read: the scale and offset in its tag GDAL_METADATA are damaged ({error})",
            "correct or remove the tag",
        ) from error
    scale, offset = tuple(found["scale"]), tuple(found["offset"])
    if set(scale) == {1.0} and set(offset) == {0.0}:
        return None, None
    return scale, offset


def resize_tensor(
    x: Tensor,
    size: tuple[int, int],
    how: Literal["crop", "squash"],
    mode: Literal["bilinear", "bicubic"] = "bilinear",
) -> Tensor:
    """Resize images of any number of bands, with antialiasing.

    Pixels without data (NaN) have no weight: they do not bleed into their neighbours. A new pixel with less than half
    of its weight on data has none itself.

    Args:
        x: Shape ``(C, H, W)`` or ``(B, C, H, W)``, float32.
        size: Height and width wanted.
        how: "crop" takes the largest centre of the wanted shape, "squash" takes all.
        mode: The interpolation.

    Returns:
        Shape ``(..., C, *size)``.
    """
    height, width = x.shape[-2:]
    if (height, width) == tuple(size):
        return x
    if how == "crop":
        top, left, rows, columns = centre_box(height, width, size)
        x = x[..., top : top + rows, left : left + columns]
    batch = x if x.ndim == 4 else x[None]
    lost = batch.isnan()
    if lost.any():
        known = F.interpolate((~lost).float(), size=size, mode=mode, antialias=True)
        small = F.interpolate(batch.nan_to_num(0.0), size=size, mode=mode, antialias=True) / known
        small = small.clamp_(0, 1).masked_fill_(known < LEAST_KNOWN, float("nan"))
    else:
        small = F.interpolate(batch, size=size, mode=mode, antialias=True)
    return small if x.ndim == 4 else small[0]
