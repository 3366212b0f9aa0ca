"""Inputs of a model for inspection: an image file, an array of bands, or noise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.errors import ConfigError, DataError, plural
from vitrail.models.facts import Stream
from vitrail.models.modality import IMAGE, MODALITIES, check_need

if TYPE_CHECKING:
    from vitrail.config.data import DataConfig
    from vitrail.runs.trained import TrainedModel

_COLORS = {3: "rgb", 1: "gray"}


@dataclass(frozen=True)
class Prepared:
    """Inputs of a model, with a description.

    Attributes:
        inputs: One tensor ``(B, C, H, W)`` for each stream, normalised.
        description: One sentence about the inputs.
        shown: Displayable picture of each stream: shape ``(H, W)`` or ``(H, W, 3)``, in 0..1.
        titles: Title of each picture.
    """

    inputs: list[Tensor]
    description: str
    shown: list[npt.NDArray[Any]]
    titles: list[str]


def prepare_inputs(
    streams: tuple[Stream, ...],
    batch: int,
    image: str | None,
    spectral: str | None,
    trained: TrainedModel | None,
    data: DataConfig | None = None,
) -> Prepared:
    """Prepare one tensor for each stream, from files where given and noise elsewhere.

    A trained run's image files are read as for ``vitrail explain`` and ``predict``, and its inputs normalised as in
    training. Without a run an image is scaled to -1..1, and each band of an array to mean 0 and deviation 1.

    Args:
        streams: The model's inputs.
        batch: Batch size: number of times that each input is repeated.
        image: An image file, or an array (.npy) of the first stream's bands.
        spectral: An array (.npy) of the second stream's bands.
        trained: The run that the model is from.
        data: Data settings of that run.

    Raises:
        ConfigError: A file for an input that the model does not have, or of other bands.
        DataError: A file that cannot be read.
    """
    modality = MODALITIES[streams[0].name]
    for option, file in (("--image", image), ("--spectral", spectral)):
        if file is not None:
            check_need(f"inspect {option}", modality, "the model")
    if spectral is not None and len(streams) < 2:
        raise ConfigError("the model has no spectral stream; leave out --spectral, or build it with spectral_chans")
    made = trained is not None and trained.card.spectral == "edges"
    if spectral is not None and made:
        raise ConfigError("this run makes its second stream from the image; leave out --spectral")
    raw: dict[str, Tensor] = {}
    shapes = [f"{s.name} {' x '.join(map(str, (batch, *s.shape)))}" for s in streams]
    sources: list[str] = []
    if trained is not None and data is not None and image is not None and not _arrays(image, spectral):
        raw = _read_as_in_training(trained, data, image, spectral, streams[0].size)
    for stream, file in zip(streams, (image, spectral), strict=False):
        if stream.name in raw:
            origin = "its edges" if made and stream.name == "spectral" else f"{file or image}"
            sources.append(origin if origin == "its edges" else f"{origin}, as in training")
        elif file is not None:
            raw[stream.name] = _read(Path(file), stream, trained)
            sources.append(f"{file}, resized to {stream.size[0]} x {stream.size[1]}")
        elif stream.name == "spectral" and made and "image" in raw:
            from vitrail.data.sources.edges import edges

            raw[stream.name] = edges(raw["image"][None])[0]
            sources.append("its edges")
        else:
            sources.append("noise")
    inputs = _normalize(streams, raw, trained)
    generator = torch.Generator().manual_seed(0)
    tensors, shown = [], []
    for stream in streams:
        value = inputs.get(stream.name)
        if value is None:
            value = torch.randn(*stream.shape, generator=generator)
        tensors.append(value.expand(batch, *stream.shape))
        pixels = raw.get(stream.name)
        shown.append(_to_display(value if pixels is None else pixels, true_colors=pixels is not None))
    description = f"{', '.join(shapes)}; {_describe_sources(sources, modality is IMAGE)}"
    return Prepared(tensors, description, shown, _titles(streams, raw, made))


def _arrays(*files: str | None) -> bool:
    """Check whether one of the files is an array, which is a stream itself."""
    return any(file is not None and Path(file).suffix == ".npy" for file in files)


def _read_as_in_training(
    trained: TrainedModel, data: DataConfig, image: str, spectral: str | None, size: tuple[int, int]
) -> dict[str, Tensor]:
    """Read each stream of an image file (and its second file) in 0..1, shape ``(C, H, W)``."""
    from vitrail.deploy.images import open_files

    opened = open_files(trained.card, data, [image], size=size, spectral=spectral)
    return {name: x[0] for name, x in opened.load([0]).items()}


def _describe_sources(sources: list[str], of_images: bool) -> str:
    if set(sources) == {"noise"} and not of_images:
        return "random noise"
    if set(sources) == {"noise"}:
        return "random noise (--image FILE walks a real one)"
    if sources[1:] == ["noise"]:
        return f"{sources[0]}; random noise for the other input (--spectral FILE gives a real one)"
    return "; ".join("random noise for the image" if source == "noise" else source for source in sources)


def _titles(streams: tuple[Stream, ...], raw: dict[str, Tensor], made: bool) -> list[str]:
    titles = []
    for stream in streams:
        name = "the image" if stream.name == "image" else "the spectral input"
        if stream.name not in raw:
            name = f"NOISE for {name}"
        elif stream.name != "image" and made:
            name = "the image's edges"
        if stream.chans not in _COLORS or (stream.name not in raw and stream.chans != 1):
            name += f"\n(mean of {plural(stream.chans, 'band')})"
        titles.append(name)
    return titles


def _read(path: Path, stream: Stream, trained: TrainedModel | None) -> Tensor:
    """Read a file as ``(C, H, W)`` of the stream's bands and size; images in 0..1, arrays in their own units."""
    if path.suffix == ".npy":
        bands = _read_array(path, stream)
        if trained is not None and (bands.min() < 0 or bands.max() > 1):
            raise DataError(
                f"{path} holds values from {float(bands.min()):g} to {float(bands.max()):g} and the run was trained on "
                "0..1; scale it as the training images were"
            )
        small: Tensor = F.interpolate(bands[None], size=stream.size, mode="bilinear", antialias=True)[0]
        return small
    if stream.name != "image":
        raise ConfigError(f"--spectral takes an array (.npy) of {plural(stream.chans, 'band')}, got {path}")
    if stream.chans not in _COLORS:
        raise ConfigError(
            f"the model takes {plural(stream.chans, 'band')} and an image file has 3 or 1; give --image an array "
            f"(.npy) of {plural(stream.chans, 'band')}, or leave it out"
        )
    from vitrail.data.evaluation_crop import crop_centre, size_to_read
    from vitrail.data.images import read_image

    # Without a run, as evaluation crops by default.
    card = None if trained is None else trained.card
    size = stream.size if card is None else size_to_read(stream.size, card.crop_pct)
    image = read_image(path, _COLORS[stream.chans], size, "crop" if card is None else card.resize, convert=True)
    return crop_centre(image, stream.size).float() / 255


def _read_array(path: Path, stream: Stream) -> Tensor:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else "not an array saved by numpy"
        raise DataError(
            f"{path} cannot be read ({reason}); save it with numpy.save as ({stream.chans}, H, W)"
        ) from error
    if not isinstance(array, np.ndarray) or array.ndim != 3 or stream.chans not in (array.shape[0], array.shape[2]):
        shape = getattr(array, "shape", "several arrays")
        raise ConfigError(
            f"{path} has the shape {shape} and the {stream.name} input has {plural(stream.chans, 'band')}; give it as "
            f"({stream.chans}, H, W) or (H, W, {stream.chans})"
        )
    if array.shape[0] != stream.chans:
        array = array.transpose(2, 0, 1)
    if array.dtype.kind not in "buif" or array.size == 0:
        raise DataError(f"{path} holds {array.dtype} values, {array.shape}; numbers are wanted, and at least one pixel")
    values = torch.from_numpy(array.astype(np.float32))
    if not torch.isfinite(values).all():
        raise DataError(f"{path} holds values that are not finite; fill or mask them first")
    return values / 255 if array.dtype == np.uint8 else values


def _normalize(streams: tuple[Stream, ...], raw: dict[str, Tensor], trained: TrainedModel | None) -> dict[str, Tensor]:
    """Normalise each stream as the network expects it."""
    if trained is not None:
        return {name: trained.normalize[name](value[None])[0] for name, value in raw.items()}
    normalized: dict[str, Tensor] = {}
    for stream in streams:
        value = raw.get(stream.name)
        if value is None:
            continue
        if stream.name == "image" and stream.chans in _COLORS and value.min() >= 0 and value.max() <= 1:
            normalized[stream.name] = (value - 0.5) / 0.5
        else:
            deviation, mean = torch.std_mean(value, dim=(1, 2), keepdim=True, correction=0)
            normalized[stream.name] = (value - mean) / deviation.clamp_min(1e-6)
    return normalized


def _to_display(value: Tensor, true_colors: bool) -> npt.NDArray[Any]:
    """Convert ``(C, H, W)`` to a displayable picture in 0..1: colours or gray, else the stretched mean over bands."""
    if true_colors and len(value) in _COLORS and value.min() >= 0 and value.max() <= 1:
        picture: npt.NDArray[Any] = (value[0] if len(value) == 1 else value.permute(1, 2, 0)).numpy()
        return picture
    mean = value.float().mean(dim=0) if len(value) != 3 or not true_colors else value.permute(1, 2, 0)
    low, high = mean.min(), mean.max()
    stretched: npt.NDArray[Any] = ((mean - low) / (high - low).clamp_min(1e-12)).numpy()
    return stretched
