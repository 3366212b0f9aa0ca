"""How the files of a stream become pixels: pictures through Pillow, rasters with named bands through tifffile."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from vitrail.config.data import DataConfig
from vitrail.data.faults import BAND_COUNT, DEEP, BandError, PointerError, UnreadableError
from vitrail.data.images import BANDS, image_size, read_image
from vitrail.data.listing import is_tiff
from vitrail.data.rasters import full_range, read_raster, resize_tensor, unit_range
from vitrail.errors import ConfigError


@dataclass(frozen=True)
class FileReader:
    """Reads the files of one stream.

    Attributes:
        bands: Names of the bands in each file.
        size: Height and width that images are brought to.
        color: What pictures are read as.
        named: Whether the recipe names the bands: TIFF files are then rasters.
        wavelengths: Of the bands in nm, where they are known.
        resize: "crop" or "squash".
        convert: Convert pictures of other bands instead of refusing them.
        scale: The value of rasters that becomes 1; the largest of an integer type when not given.
        setting: What the scale is called in a recipe.
    """

    bands: tuple[str, ...]
    size: tuple[int, int]
    color: Literal["rgb", "gray"] = "rgb"
    named: bool = False
    wavelengths: tuple[float, ...] | None = None
    resize: Literal["crop", "squash"] = "crop"
    convert: bool = False
    scale: float | None = None
    setting: str = "data.scale"

    def read(self, path: Path, size: tuple[int, int] | None = None) -> Tensor:
        """Read a file.

        Args:
            path: The file.
            size: Height and width to bring it to, where that is not the reader's.

        Returns:
            Shape ``(C, H, W)``, uint8 or float32 in 0..1.

        Raises:
            DataError: Not an image that can be read, or of other bands; the message names it.
        """
        size = size or self.size
        if self.named and is_tiff(path):
            array = read_raster(path)
            if len(array) != len(self.bands):
                bands = f"{len(array)} {'band' if len(array) == 1 else 'bands'}"
                wanted = f"where {len(self.bands)} are wanted ({', '.join(self.bands)})"
                raise BandError(
                    f"{path} has {bands} {wanted}",
                    "remove it, or correct the names of the bands",
                    BAND_COUNT,
                    f"have {bands} {wanted}",
                )
            values = unit_range(array, full_range(array.dtype, self.scale, str(path), self.setting), str(path))
            return resize_tensor(values, size, self.resize)
        if self.named and len(self.bands) != len(BANDS[self.color]):
            wanted = f"where {len(self.bands)} bands are wanted ({', '.join(self.bands)})"
            raise BandError(f"{path} is a picture {wanted}", summary=f"are pictures {wanted}")
        try:
            return read_image(path, self.color, size, self.resize, self.convert)
        except (BandError, UnreadableError) as error:
            if not self.named and not isinstance(error, PointerError) and is_tiff(path):
                remedy = "name its bands with data.band_names to read it as a raster"
                if error.kind != DEEP:
                    remedy = f"{error.remedy}, or {remedy}"
                raise type(error)(error.problem, remedy, error.kind, error.summary) from error
            raise

    def original_size(self, path: Path) -> tuple[int, int]:
        """Height and width of a file's image as it is stored."""
        if self.named and is_tiff(path):
            height, width = read_raster(path).shape[1:]
            return height, width
        return image_size(path)


def file_readers(config: DataConfig, size: tuple[int, int]) -> dict[str, FileReader]:
    """The readers of a recipe's streams: of the images, and of the second files where the bands of these are named.

    Raises:
        ConfigError: Second files whose bands are not named.
    """
    convert = config.on_band_mismatch == "convert"

    def reader(
        names: tuple[str, ...] | None, waves: tuple[float, ...] | None, scale: float | None, setting: str
    ) -> FileReader:
        color: Literal["rgb", "gray"] = config.color if names is None else ("gray" if len(names) == 1 else "rgb")
        return FileReader(
            names or BANDS[color], size, color, names is not None, waves, config.resize, convert, scale, setting
        )

    readers = {"image": reader(config.band_names, config.wavelengths, config.scale, "data.scale")}
    if config.spectral_band_names is not None:
        readers["spectral"] = reader(
            config.spectral_band_names, config.spectral_wavelengths, config.spectral_scale, "data.spectral_scale"
        )
    elif config.spectral_path is not None:
        raise ConfigError("data.spectral_path needs data.spectral_band_names, the names of the bands in its files")
    return readers
