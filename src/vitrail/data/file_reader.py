"""Read the files of a stream: pictures through Pillow, rasters with named bands through tifffile."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from vitrail.config.data import DataConfig
from vitrail.data.band_files import BandFiles, check_pattern, stack_pictures, stack_rasters
from vitrail.data.image_errors import BAND_COUNT, DEEP, OR, BandError, PointerError, UnreadableError
from vitrail.data.images import BANDS, Picture, decode_picture, image_size, resize_picture
from vitrail.data.listing import is_tiff
from vitrail.data.no_data import no_data_mask
from vitrail.data.rasters import Raster, open_raster, resize_tensor
from vitrail.data.stored_values import Survey, survey
from vitrail.data.thumbnails import SIDE, Thumbnails, thumbnail_of_stored
from vitrail.data.value_range import PHYSICAL, ValueRange, ValueRule, to_unit_range, value_rules
from vitrail.errors import ConfigError, DataError, plural


@dataclass(frozen=True)
class FileReader:
    """Reader of the files of one stream.

    Attributes:
        bands: Names of the bands in each file.
        size: Height and width that images are brought to.
        color: Mode of decoded pictures.
        named: Whether the recipe names the bands: TIFF files are then rasters.
        wavelengths: Wavelengths of the bands in nm, where they are known.
        resize: "crop" or "squash".
        convert: Convert pictures of other bands instead of refusing them.
        rule: Value settings of the recipe.
        values: The range of the values, decided once for all files; each file's own when not given.
        max_pixels: Pixels that are decoded at most.
        band_pattern: Finds the band in the name of a file, where bands lie in files of their own (data.bands.files).
        stack: The rule by which such files are one image, found in the files; a path stands for the image that the
            file is a band of.
        in_full: Decode JPEG files in full, however large.
    """

    bands: tuple[str, ...]
    size: tuple[int, int]
    color: Literal["rgb", "gray"] = "rgb"
    named: bool = False
    wavelengths: tuple[float, ...] | None = None
    resize: Literal["crop", "squash"] = "crop"
    convert: bool = False
    rule: ValueRule = field(default_factory=ValueRule)
    values: ValueRange | None = None
    max_pixels: int | None = None
    band_pattern: str | None = None
    stack: BandFiles | None = None
    in_full: bool = False

    def files(self, path: Path) -> list[Path]:
        """List the files of an image: one, or one for each band."""
        return [path] if self.stack is None else self.stack.files(path)

    def name(self, path: str) -> str:
        """Return the name of an image: its path, without the mark of a band."""
        return path if self.stack is None else self.stack.name(path)

    def read(self, path: Path, size: tuple[int, int] | None = None) -> Tensor:
        """Read a file.

        Args:
            path: The file.
            size: Height and width to bring it to, where that is not the reader's.

        Returns:
            Shape ``(C, H, W)``, uint8 or float32 in 0..1; NaN where there is no data.

        Raises:
            DataError: Not an image that can be read, or of other bands; the message names it.
        """
        size = size or self.size
        if self._is_raster(path):
            stored, invalid, physical = self._raster(path, size)
            limits = self.values or self.rule.range_of(stored.dtype.name, physical, len(self.bands))
            if limits is None:
                raise DataError(
                    f"{path} holds {stored.dtype.name} values, whose range is unknown; give {self.rule.setting}"
                )
            return resize_tensor(to_unit_range(stored, invalid, limits), size, self.resize)
        return self.read_picture(path, str(path), size)

    def read_picture(self, file: Path | bytes, name: str, size: tuple[int, int] | None) -> Tensor:
        """Read a picture from a path or from bytes.

        Args:
            file: The file or its content.
            name: Name in errors.
            size: Height and width to bring it to; its own when not given.

        Returns:
            Shape ``(C, H, W)``, uint8 of which 255 means 1, or float32 in 0..1, NaN where there is no data.
        """
        return self._as_read(self._picture(file, name, size), size)

    def read_and_survey_picture(self, file: Path | bytes, name: str) -> tuple[Tensor, Survey | int]:
        """Read and survey a picture with one decoding, at the reader's size."""
        picture = self._picture(file, name, self.size)
        return self._as_read(picture, self.size), self._survey_of(picture, name)

    def _as_read(self, picture: Picture, size: tuple[int, int] | None) -> Tensor:
        planes, stated = picture.planes, self._of_pictures.stated(len(self.bands))
        if picture.invalid is None and stated is None:
            return planes.contiguous() if size is None else resize_picture(planes, size, self.resize, picture.reduced)
        limits = stated or ValueRange((0.0,), (255.0,))
        unit = to_unit_range(planes.numpy(), _by_band(picture.invalid, len(planes)), limits)
        return unit if size is None else resize_tensor(unit, size, self.resize, "bicubic").clamp_(0, 1)

    def survey(self, path: Path) -> tuple[Survey | int, Thumbnails]:
        """Decode a file and survey its values; of complete 8-bit pictures only the number of pixels.

        Returns:
            The survey, and a gray thumbnail by which copies are recognised.

        Raises:
            DataError: As for :meth:`read`, or values that are not finite.
        """
        if self._is_raster(path):
            stored, invalid, physical = self._raster(path, (SIDE, SIDE))
            measured = survey(stored, invalid, self.rule, str(path), physical)
            return measured, thumbnail_of_stored(stored, invalid)
        return self.survey_picture(path, str(path))

    def survey_picture(self, file: Path | bytes, name: str) -> tuple[Survey | int, Thumbnails]:
        """Survey a picture from a path or from bytes."""
        picture = self._picture(file, name, (SIDE, SIDE))
        return self._survey_of(picture, name), thumbnail_of_stored(picture.planes.numpy(), picture.invalid)

    def _survey_of(self, picture: Picture, name: str) -> Survey | int:
        if picture.invalid is None and self._of_pictures.stated(len(self.bands)) is None:
            return picture.pixels
        invalid = _by_band(picture.invalid, len(picture.planes))
        return survey(picture.planes.numpy(), invalid, self._of_pictures, name)

    def original_size(self, path: Path) -> tuple[int, int]:
        """Return height and width of a file's image as displayed."""
        if self._is_raster(path):
            height, width = self._open_raster(path).values.shape[1:]
            return height, width
        return image_size(path)

    def stored_type(self, path: Path) -> str:
        """Return the type of a raster's values, without its own scale and offset; "physical" where it has these."""
        raster = self._open_raster(path)
        return PHYSICAL if raster.scale is not None else raster.values.dtype.name

    def read_stored(self, path: Path) -> npt.NDArray[Any]:
        """Read a file in full and in its own units, as other programs do.

        Args:
            path: The file.

        Returns:
            Shape ``(C, H, W)``; float32 with NaN where there is no data, else of the stored type.
        """
        if not self._is_raster(path):
            return self.read_stored_picture(path, str(path))
        values, invalid, _ = self._raster(path, (1, 1))
        return _with_no_data(values, invalid)

    def read_stored_picture(self, file: Path | bytes, name: str) -> npt.NDArray[Any]:
        """Read a picture from a path or from bytes, as :meth:`read_stored` does."""
        picture = self._picture(file, name, None)
        return _with_no_data(picture.planes.numpy(), _by_band(picture.invalid, len(picture.planes)))

    @property
    def _of_pictures(self) -> ValueRule:
        """Return the rule for pictures: among rasters they keep their own range, 8 bits."""
        return ValueRule(no_data=self.rule.no_data, group=self.rule.group) if self.named else self.rule

    def _is_raster(self, path: Path) -> bool:
        return self.named and is_tiff(path)

    def _raster(self, path: Path, size: tuple[int, int]) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_] | None, bool]:
        """Read a raster's values, its no-data mask, and whether the values are in physical units."""
        raster = self._open_raster(path, size)
        number = len(raster.values)
        if number != len(self.bands):
            bands = f"{number} {'band' if number == 1 else 'bands'}"
            wanted = f"where {len(self.bands)} are wanted ({', '.join(self.bands)})"
            raise BandError(
                f"{path} has {bands} {wanted}",
                "correct the names of the bands, or remove it",
                BAND_COUNT,
                f"have {bands} {wanted}",
            )
        invalid = no_data_mask(raster.values, self.rule, raster.no_data, raster.invalid)
        return raster.physical(), invalid, raster.scale is not None

    def _open_raster(self, path: Path, size: tuple[int, int] = (1, 1)) -> Raster:
        if self.stack is None:
            return open_raster(path, len(self.bands), self.max_pixels, size)
        return stack_rasters(self.stack.files(path), lambda file: open_raster(file, 1, self.max_pixels, size))

    def _picture(self, file: Path | bytes, name: str, size: tuple[int, int] | None) -> Picture:
        # Means of pixels with and without data, or beyond a stated range, are of neither kind.
        if self.in_full or self.rule.no_data or self._of_pictures.stated(len(self.bands)) is not None:
            size = None
        if self.stack is not None and isinstance(file, Path):
            return stack_pictures(self.stack.files(file), lambda band: self._decode(band, str(band), "gray", None))
        if self.named and len(self.bands) != len(BANDS[self.color]):
            wanted = f"where {plural(len(self.bands), 'band is', 'bands are')} wanted ({', '.join(self.bands)})"
            remedy = "give TIFF files of these bands, or leave it out"
            raise BandError(f"{name} is a picture {wanted}", remedy, summary=f"are pictures {wanted}")
        return self._decode(file, name, self.color, size)

    def _decode(self, file: Path | bytes, name: str, color: str, size: tuple[int, int] | None) -> Picture:
        try:
            return decode_picture(file, color, size, self.convert, name, self.max_pixels, self.rule.no_data)
        except (BandError, UnreadableError) as error:
            tiff = isinstance(file, Path) and not isinstance(error, PointerError) and is_tiff(file)
            whole = isinstance(error, UnreadableError) or error.kind == DEEP
            if tiff and not self.named and whole and isinstance(file, Path):
                _ask_for_names(file, self.max_pixels)
            if tiff and not self.named:
                remedy = "name its bands with data.bands.names to read it as a raster"
                if error.kind != DEEP:
                    remedy = f"{error.remedy}{OR}{remedy}"
                raise type(error)(error.problem, remedy, error.kind, error.summary) from error
            raise


# Names for an example, by the number of bands: the usual order of cameras.
_USUAL = {3: "red, green, blue", 4: "blue, green, red, nir", 5: "blue, green, red, red_edge, nir"}


def _ask_for_names(path: Path, max_pixels: int | None) -> None:
    """Raise an error that asks for band names, for an intact file of several bands that is not a picture.

    Raises:
        BandError: It is such a file.
    """
    try:
        raster = open_raster(path, None, max_pixels)
    except (BandError, UnreadableError):
        return
    number = len(raster.values)
    if number == 1:
        return
    bands = f"of {plural(number, 'band')} ({raster.values.dtype.name})"
    example = _USUAL.get(number) or ", ".join(f"b{i + 1}" for i in range(number))
    raise BandError(
        f"{path} is a TIFF file {bands}",
        f"name them in the files' order: --data.bands.names '[{example}]' (for example)",
        BAND_COUNT,
        f"are TIFF files {bands}",
    )


def _with_no_data(values: npt.NDArray[Any], invalid: npt.NDArray[np.bool_] | None) -> npt.NDArray[Any]:
    """Mark pixels without data as NaN, in float32; float64 becomes float32."""
    if invalid is not None:
        values = np.where(invalid, np.float32(np.nan), values.astype(np.float32))
    return values if values.dtype != np.float64 else values.astype(np.float32)


def _by_band(invalid: npt.NDArray[np.bool_] | None, bands: int) -> npt.NDArray[np.bool_] | None:
    return None if invalid is None else np.broadcast_to(invalid, (bands, *invalid.shape))


def file_readers(config: DataConfig, size: tuple[int, int]) -> dict[str, FileReader]:
    """Build the readers of a recipe's streams: of the images, and of second files with named bands.

    Raises:
        ConfigError: Second files whose bands are not named.
    """
    rules = value_rules(config)

    def reader(names: tuple[str, ...] | None, waves: tuple[float, ...] | None, rule: ValueRule) -> FileReader:
        color: Literal["rgb", "gray"] = config.color if names is None else ("gray" if len(names) == 1 else "rgb")
        return FileReader(
            bands=names or BANDS[color],
            size=size,
            color=color,
            named=names is not None,
            wavelengths=waves,
            resize=config.images.resize,
            convert=config.errors.on_band_mismatch == "convert",
            rule=rule,
            max_pixels=config.images.max_pixels,
        )

    readers = {"image": reader(config.bands.names, config.bands.wavelengths, rules["image"])}
    if config.bands.files is not None:
        check_pattern(config.bands.files)
        readers["image"] = dataclasses.replace(readers["image"], band_pattern=config.bands.files)
    if config.spectral.names is not None:
        readers["spectral"] = reader(config.spectral.names, config.spectral.wavelengths, rules["spectral"])
    elif config.spectral.path is not None:
        raise ConfigError("data.spectral.path needs data.spectral.names, the names of the bands in its files")
    return readers
