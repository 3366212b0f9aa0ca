"""Sizes of an export's pixels: the run's, another fixed one, or any."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from vitrail.deploy.export.decisions import STEPS
from vitrail.deploy.export.graph import ExportGraph, GraphInput
from vitrail.engines.load import difference, open_engine
from vitrail.errors import ConfigError, RunError, VitrailError, first_line
from vitrail.layers.shapes import to_pair
from vitrail.layers.window_attention import ShiftedWindowAttention
from vitrail.models.base import VisionModel
from vitrail.runs.trained import TrainedModel

ANY: Literal["any"] = "any"
ImageSize = tuple[int, int] | Literal["any"] | None
NO_PHOTOGRAPHS = "with --image-size any pixels are taken at their own size, neither cropped nor resized"
# Shares of the run's height and width at which engines are compared with the run; the last is the smallest size. All
# streams have one share, and once each another.
_SHARES = ((0.5, 1.0), (1.0, 1.4), (1.3, 0.7), (0.0, 0.0))
_BATCH = 2
# Largest difference, as a share of the scale.
_TOLERANCE = 1e-4


def at_size(trained: TrainedModel, size: ImageSize) -> TrainedModel:
    """Return a trained model whose card has another image size, at which its images are read.

    Args:
        trained: The model, which resamples its positions to any size.
        size: Height and width; "any" or None for the run's.

    Raises:
        ConfigError: A size below that of a patch.
    """
    if size is None or size == ANY:
        return trained
    height, width = to_pair(size, "--image-size")
    least = [max(sides) for sides in zip(*least_sizes(trained.model).values(), strict=True)]
    if height < least[0] or width < least[1]:
        raise ConfigError(
            f"--image-size {height} {width} is smaller than a patch of {least[0]} x {least[1]} pixels; choose a larger "
            "size"
        )
    card = trained.card
    streams = {name: dataclasses.replace(stream, img_size=(height, width)) for name, stream in card.streams.items()}
    return TrainedModel(trained.model, trained.normalize, dataclasses.replace(card, streams=streams))


def least_sizes(model: VisionModel) -> dict[str, tuple[int, int]]:
    """Return the smallest height and width of each stream: a patch, or the stride of the first tokens."""
    found = {}
    for stream in model.streams:
        prefix = model.stream_prefixes.get(stream.name, "")
        own = "" if stream.name == "image" else f"{stream.name}_"
        patch = getattr(model.config, f"{own}patch_size", None) or getattr(model.config, "patch_size", None) or 1
        first = next((level.stride for level in model.feature_info if level.name.startswith(prefix)), (1, 1))
        height, width = map(max, zip(first, to_pair(patch), strict=True))
        found[stream.name] = (height, width)
    return found


def least_of_any(model: VisionModel) -> dict[str, tuple[int, int]]:
    """Return the smallest height and width of each stream of an export for any size: a pixel more than a patch.

    torch.export takes lengths of 1, such as a grid of a single patch, for constants.
    """
    return {name: (height + 1, width + 1) for name, (height, width) in least_sizes(model).items()}


def lacks_any(model: VisionModel, engine: str) -> str:
    """Return the reason why an engine cannot run a model on images of any size; empty where it can.

    Args:
        model: The model.
        engine: Key of :data:`vitrail.engines.load.ENGINES`.
    """
    if engine == "inductor":
        return "inductor compiles for one size and checks none; use openvino, or one --image-size"
    mixers = (part for part in model.modules() if isinstance(part, ShiftedWindowAttention))
    windows = [part for part in mixers if not part.everywhere]
    if any(part.pad_after_shift for part in windows):
        return (
            "pad_after_shift shrinks windows to small maps, which a graph for any size does not; give one --image-size"
        )
    if engine == "onnx" and windows:
        return "windows of any size are not converted to ONNX; use openvino, or one --image-size"
    return ""


def check_sizes(graph: ExportGraph, folder: Path, engine: str, threads: int | None) -> None:
    """Compare the outputs of a converted graph for any size with the graph itself, at several sizes.

    Args:
        graph: The graph.
        folder: Folder with the engine's file.
        engine: Key of :data:`vitrail.engines.load.ENGINES`.
        threads: Number of threads.

    Raises:
        RunError: An output differs, or the engine refuses a size.
    """
    generator = torch.Generator().manual_seed(0)
    loaded = open_engine(folder, engine, "fp32", threads)
    streams = list(graph.card.streams)
    compared = [dict.fromkeys(streams, shares) for shares in _SHARES]
    if len(streams) > 1:
        compared.append(dict(zip(streams, itertools.cycle(_SHARES), strict=False)))
    for shares in compared:
        sizes = [_scaled(graph, entry, shares[entry.stream]) for entry in graph.inputs]
        pixels = {
            entry.name: _pixels(entry, size, generator).numpy() for entry, size in zip(graph.inputs, sizes, strict=True)
        }
        wanted = graph.compute(pixels)
        described = " and ".join(dict.fromkeys(f"{height} x {width}" for height, width in sizes))
        try:
            found = loaded.run(pixels)
        except (VitrailError, RuntimeError) as error:
            raise RunError(f"{engine} refuses {described} pixels ({first_line(error)[:200]})") from error
        for name, values in wanted.items():
            away = difference(found[name], values)
            if name not in STEPS and not away <= _TOLERANCE:
                raise RunError(f"{engine} computes another {name} at {described} pixels: {away:.1e} of its scale away")


def _scaled(graph: ExportGraph, entry: GraphInput, shares: tuple[float, float]) -> tuple[int, int]:
    size = graph.card.streams[entry.stream].img_size
    height, width = (max(int(share * n), n0) for share, n, n0 in zip(shares, size, entry.least, strict=True))
    return height, width


def _pixels(entry: GraphInput, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    unit = torch.rand((_BATCH, len(entry.bands), *size), generator=generator)
    return (unit * 255).to(entry.dtype) if entry.dtype == torch.uint8 else unit
