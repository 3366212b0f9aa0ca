"""Explanations of a run's images, and the folder that holds them: overlays, panels, maps, settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from vitrail import __version__
from vitrail.analyze.cloud_explanations import values_of_points, write_cloud
from vitrail.analyze.explained import Explained, as_array, write_values
from vitrail.data.dataset import Batch, ImageData
from vitrail.errors import ConfigError, RunError, closest
from vitrail.evaluate.parts import PointLabels
from vitrail.explain.capture.prepare import Target, class_index
from vitrail.explain.capture.scores import main_class
from vitrail.explain.interface import explain
from vitrail.explain.methods.maps import Explanation
from vitrail.explain.methods.registry import Method, get_method
from vitrail.figures.animation import write_animation
from vitrail.figures.clips import animated_overlay, clip_cells, clip_part_cells
from vitrail.figures.cloud_page import MOST_CLOUDS, write_cloud_page
from vitrail.figures.display import as_frames, as_pictures
from vitrail.figures.heatmaps import (
    EVEN,
    RANK,
    Cell,
    draw_cells,
    explained_cells,
    overlay,
    part_cells,
)
from vitrail.figures.write import write_figure
from vitrail.files import file_names, replacing, write_json
from vitrail.outputs import EXPLANATIONS_FILE
from vitrail.runs.trained import ModelCard, TrainedModel

Array = npt.NDArray[Any]
Settings = Mapping[str, Mapping[str, Any]]
# Batch -> its logits, and method -> its explanation.
ExplainBatch = Callable[[Batch], tuple[Tensor, dict[str, Explanation]]]


def check_methods(names: Sequence[str], settings: Settings) -> dict[str, dict[str, Any]]:
    """Validate the settings of each method; return them in the order of the methods.

    Args:
        names: Methods.
        settings: Method -> setting -> value.

    Raises:
        ConfigError: An unknown method or setting, a method named twice, or settings for one that is not named.
    """
    for name in names:
        get_method(name).check_settings(settings.get(name, {}))
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ConfigError(f"the method {twice[0]} is named twice; keep one of them")
    unused = [name for name in settings if name not in names]
    if unused:
        raise ConfigError(
            f"a setting of {unused[0]!r} is given, which is none of the methods asked for{closest(unused[0], names)}"
        )
    return {name: dict(settings.get(name, {})) for name in names}


def find_class(name: str, card: ModelCard, methods: Sequence[str]) -> int:
    """Find the index of a class from its name or index.

    Raises:
        ConfigError: No such class, or no method that explains one.
    """
    if not any(get_method(method).by_class for method in methods):
        raise ConfigError(f"--target {name} does not apply to {', '.join(methods)}: they explain no class; omit it")
    return class_index(name, card.classes)


def explain_by_run(trained: TrainedModel, methods: Settings, target: int | None = None) -> ExplainBatch:
    """Build the function that classifies a batch and explains it by methods, with the model of a run.

    Args:
        trained: The model.
        methods: Method -> its settings.
        target: Index of the class to explain; the predicted one of each image by default.
    """

    def explain_batch(batch: Batch) -> tuple[Tensor, dict[str, Explanation]]:
        inputs = trained.inputs(batch)
        classes: Target = target
        logits = trained.classify(batch)[0] if trained.card.classes else torch.empty(len(batch["index"]), 0)
        if target is None and trained.card.classes:
            # A copy, since gradients cannot pass an index that was computed in inference mode.
            classes = main_class(logits).clone()
        explanations = {
            name: explain(trained.model, inputs, name, get_method(name).target(classes), **settings)
            for name, settings in methods.items()
        }
        return logits, explanations

    return explain_batch


def explain_images(
    trained: TrainedModel, data: ImageData, indices: Sequence[int], methods: Settings, *, target: int | None = None
) -> Iterator[Explained]:
    """Explain images, with one batch in memory at a time.

    Args:
        trained: The model.
        data: The images.
        indices: Indices into the data.
        methods: Method -> its settings.
        target: Index of the class to explain; the predicted one of each image by default.

    Raises:
        ConfigError: A method that does not support the model, or an invalid value of a setting.
    """
    yield from _explained(trained.card, data, indices, explain_by_run(trained, methods, target), 16)


def _explained(
    card: ModelCard, data: ImageData, indices: Sequence[int], explain_batch: ExplainBatch, batch_size: int
) -> Iterator[Explained]:
    for batch in data.batches(list(indices), batch_size):
        logits, explanations = explain_batch(batch)
        predicted, probability = _predict(card, logits)
        labels = _labels(card, batch, data, logits) if card.per_point else [None] * len(logits)
        streams = [name for name in card.streams if name in batch]
        pictures = (
            {"points": batch["points"].numpy()}
            if "points" in card.streams
            else {name: as_pictures(batch[name], card.streams[name].bands) for name in streams}
        )
        frames = as_frames(batch["video"], card.streams["video"].bands) if "video" in card.streams else None
        for row, index in enumerate(batch["index"].tolist()):
            yield Explained(
                key=data.source.keys[index],
                index=index,
                pictures={name: shown[row] for name, shown in pictures.items()},
                true="" if card.per_point else _true_class(data, index),
                predicted=predicted[row],
                probability=probability[row],
                explanations=explanations,
                row=row,
                frames=None if frames is None else frames[row],
                labels=labels[row],
            )


def _labels(card: ModelCard, batch: Batch, data: ImageData, logits: Tensor) -> list[PointLabels]:
    """Read the predicted and the true parts of the points of each cloud."""
    predicted = logits.argmax(dim=-1).cpu().masked_fill(batch["points"][..., 0].isnan(), -1).numpy()
    true = card.part_numbers(data.source.parts)[batch["parts"].numpy()] if "parts" in batch else None
    return [PointLabels(own, None if true is None else true[row], card.classes) for row, own in enumerate(predicted)]


def _predict(card: ModelCard, logits: Tensor) -> tuple[list[str], list[float]]:
    if not card.classes or card.per_point:
        return [""] * len(logits), [0.0] * len(logits)
    values, indices = card.probabilities(logits).max(dim=1)
    return [card.classes[i] for i in indices.tolist()], values.tolist()


def _true_class(data: ImageData, index: int) -> str:
    target = data.source.targets[index]
    return "" if target.ndim == 0 and target < 0 else data.source.label(index)


def write_explanations(
    card: ModelCard,
    data: ImageData,
    indices: Sequence[int],
    explain_batch: ExplainBatch,
    out: str | Path,
    *,
    run: str,
    batch_size: int = 16,
) -> int:
    """Explain images and write panels, overlays and maps.

    ``panels/`` compares the methods of each image on one scale; ``overlays/`` has each map by itself; ``maps/`` has
    the maps at the input's resolution and, ``..._tokens.npy``, on the method's own grid, float32; ``parts/`` draws
    heads and learned tokens one by one, with values in ``..._parts.npy``; explanations.json, written last, describes
    the files and their settings. Every file is whole or absent. Of clips panels have a column for each of a few
    frames, and ``animations/`` has each map over all frames (GIF, and MP4 where PyAV is installed). Of point clouds
    panels are turntables, maps hold a value for each point, and ``clouds.html`` is an interactive page of some.

    Args:
        card: Model card of the trained run or the export.
        data: The images.
        indices: Indices into the data.
        explain_batch: Classifies and explains a batch; see :func:`explain_by_run`.
        out: The folder.
        run: Name of the model.
        batch_size: Images in a batch.

    Returns:
        Number of images.

    Raises:
        ConfigError: A method that does not support the model, or an invalid value of a setting.
        RunError: A file that cannot be written.
    """
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{out} is a file; name a folder for the explanations")
    names = file_names([data.source.keys[i] for i in indices])
    entries: list[dict[str, Any]] = []
    made: dict[str, dict[str, Any]] = {}
    size: tuple[int, ...] = ()
    clouds: list[tuple[str, Array, dict[str, Array]]] = []
    images = _explained(card, data, indices, explain_batch, batch_size)
    # No progress bar where the output is not a terminal.
    for seen, name in zip(tqdm(images, total=len(indices), unit="image", disable=None), names, strict=True):
        made = {method: _method_entry(get_method(method), e) for method, e in seen.explanations.items()}
        size = next(iter(seen.pictures.values())).shape[:2]
        if "points" in card.streams:
            cloud = seen.pictures["points"]
            values = values_of_points(seen, cloud)
            entries.append(write_cloud(folder, name, seen, cloud, values, card.classes))
            if len(clouds) < MOST_CLOUDS:
                clouds.append((seen.caption(), cloud, values))
        else:
            entries.append(_write_image(folder, name, seen, card))
    if clouds:
        write_cloud_page(folder, clouds, card.classes)
    content = {
        "run": run,
        "model": {"name": card.name, "settings": card.settings, "epoch": card.epoch},
        "classes": list(card.classes),
        "size": list(size),
        "methods": made,
        "images": entries,
        "versions": {"vitrail": __version__, "torch": torch.__version__},
    }
    write_json(folder / EXPLANATIONS_FILE, content)
    return len(entries)


def _method_entry(method: Method, explanation: Explanation) -> dict[str, Any]:
    return {
        "shows": method.summary,
        "by_class": method.by_class,
        "signed": method.signed,
        "settings": {name: _plain(value) for name, value in explanation.settings.items()},
    }


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, (bool, int, float, str, list, tuple)) else str(value)


def _write_image(folder: Path, name: str, seen: Explained, card: ModelCard) -> dict[str, Any]:
    titles = {"": card.modality.singular}
    entry = seen.entry(f"panels/{name}.png")
    for method in seen.explanations:
        target = seen.target(method, card.classes)
        titles[method] = method if target is None else f"{method}\nfor {target}"
        entry["methods"][method] = _write_maps(folder, name, seen, method) | {"target": target}
    cells, labels = panels_of(seen, titles)
    write_figure(draw_cells(cells, labels, RANK, seen.caption()), folder / entry["panel"], dpi=130, tight=True)
    return entry


def panels_of(seen: Explained, titles: Mapping[str, str]) -> tuple[list[list[Cell | None]], list[str]]:
    """Arrange panels of all methods: beside an image, or below the frames of a clip.

    Args:
        seen: The image or clip with its explanations.
        titles: Method -> title; "" for the image.

    Returns:
        The rows of panels and a label for each.
    """
    signed = signed_methods(seen.explanations)
    if seen.frames is not None:
        return clip_cells(seen.frames, {method: seen.values(method) for method in seen.explanations}, titles, signed)
    maps = {method: seen.maps(method) for method in seen.explanations}
    return explained_cells(seen.pictures, maps, titles, signed)


def signed_methods(names: Iterable[str]) -> set[str]:
    """Choose the methods whose maps hold evidence for and against."""
    return {name for name in names if get_method(name).signed}


def _write_maps(folder: Path, name: str, seen: Explained, method: str) -> dict[str, Any]:
    overlay_file = f"overlays/{name}_{method}.png"
    signed, streams = get_method(method).signed, seen.maps(method)
    pixels = overlay(list(seen.pictures.values()), [streams.get(stream) for stream in seen.pictures], signed)
    with replacing(folder / overlay_file) as temporary:
        Image.fromarray(pixels).save(temporary, "PNG")
    entry: dict[str, Any] = {"overlay": overlay_file, "streams": {}}
    if seen.frames is not None:
        animated = animated_overlay(seen.frames, seen.values(method), signed)
        files = write_animation(animated, folder / "animations" / f"{name}_{method}")
        entry["animations"] = [file.relative_to(folder).as_posix() for file in files]
    for stream, found in seen.explanations[method].items():
        part = f"maps/{name}_{method}" + (f"_{stream}" if len(seen.pictures) > 1 else "")
        whole, tokens = (as_array(x[seen.row]) for x in (found.map, found.tokens))
        for file, array in ((f"{part}.npy", whole), (f"{part}_tokens.npy", tokens)):
            write_values(folder / file, array)
        entry["streams"][stream] = {"map": f"{part}.npy", "tokens": f"{part}_tokens.npy"}
        if found.parts is not None:
            parts = as_array(found.parts[seen.row])
            drawn = {"parts": f"{part}_parts.npy", "parts_panel": f"parts/{name}_{method}.png"}
            write_values(folder / drawn["parts"], parts)
            cells, labels = (
                part_cells(seen.pictures[stream], parts) if seen.frames is None else clip_part_cells(seen.frames, parts)
            )
            figure = draw_cells(cells, labels, EVEN, f"{method}, part by part: {seen.caption()}")
            write_figure(figure, folder / drawn["parts_panel"], dpi=130, tight=True)
            entry["streams"][stream] |= drawn
        if found.share is not None:
            entry["streams"][stream]["share"] = round(float(found.share[seen.row]), 6)
    return entry
