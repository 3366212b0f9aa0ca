"""Learned structure of a model in pictures and tables: filters, positions, attention of heads, similarity of layers."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from vitrail import __version__
from vitrail.data.dataset import Batch
from vitrail.errors import ConfigError, DataError, did_you_mean, plural
from vitrail.explain.capture.prepare import restored
from vitrail.explain.capture.record import lacks_taps
from vitrail.explain.methods.layer_attention import attention_distances, lacks_positions
from vitrail.explain.structure.filters import lacks_filters, projection_filters
from vitrail.explain.structure.heads import TARGETS, attention_entropy, head_focus
from vitrail.explain.structure.positions import position_similarities, relative_biases
from vitrail.explain.structure.similarity import FEWEST_IMAGES, all_features, cka_matrix
from vitrail.figures.anatomy.canvas import spread
from vitrail.figures.structure import (
    Filters,
    Focus,
    LayerValues,
    draw_by_head,
    draw_cka,
    draw_filters,
    draw_focus,
    draw_position_similarity,
    draw_relative_tables,
)
from vitrail.figures.write import write_both
from vitrail.files import write_json, write_text
from vitrail.models.base import VisionModel
from vitrail.models.modality import describe_unmet
from vitrail.outputs import STRUCTURE_FILE
from vitrail.runs.trained import TrainedModel

Array = npt.NDArray[Any]
# Positions along a side whose similarity is drawn.
_MOST_POSITIONS = 8


@dataclass(frozen=True)
class Source:
    """A model, and the images that it is probed with.

    Attributes:
        name: Name of the run.
        trained: The model.
        batches: Returns the batches of images from the beginning.
        count: Number of images.
    """

    name: str
    trained: TrainedModel
    batches: Callable[[], Iterable[Batch]]
    count: int

    @property
    def note(self) -> str:
        """The model and its weights, for figures."""
        return f"{self.name}: {self.trained.card.name}, weights of epoch {self.trained.card.epoch + 1}"

    def inputs(self) -> Iterator[tuple[Tensor, ...]]:
        """Return the normalised inputs of each batch."""
        for batch in self.batches():
            yield self.trained.inputs(batch)

    @property
    def probed(self) -> str:
        """The number of images, for figures."""
        return f"mean and standard deviation over {self.count} {'image' if self.count == 1 else 'images'}"


@dataclass(frozen=True)
class Learned:
    """One structure of a model.

    Attributes:
        name: Name of its files.
        title: Heading.
        caption: Meaning of the figure.
        figure: The figure.
        table: All its numbers.
    """

    name: str
    title: str
    caption: str
    figure: Figure
    table: pd.DataFrame


@dataclass(frozen=True)
class Structure:
    """A structure that can be computed.

    Attributes:
        summary: Description, one line.
        compute: Computes it from a model and perhaps a second one.
        lacks: Returns the reason why a model does not have it, or None.
        needs_images: Whether it is probed with images.
    """

    summary: str
    compute: Callable[[Source, Source | None], Learned]
    lacks: Callable[[VisionModel], str | None]
    needs_images: bool


def check_structures(names: Sequence[str], model: VisionModel | None = None) -> list[str]:
    """Validate names of structures; ``["all"]`` are those that the model has.

    Args:
        names: Their names.
        model: The model; without one only the names are checked.

    Raises:
        ConfigError: An unknown name, one named twice, or a structure that the model does not have.
    """
    if list(names) == ["all"]:
        return ["all"] if model is None else available(model)
    for name in names:
        if name not in STRUCTURES:
            known = ", ".join([*STRUCTURES, "all"])
            raise ConfigError(f"no structure {name!r}{did_you_mean(name, STRUCTURES)}; structures: {known}")
        if names.count(name) > 1:
            raise ConfigError(f"the structure {name} is named twice; keep one of them")
        lack = None if model is None else _lack(name, model)
        if model is not None and lack is not None:
            reason = lack if name in lack else f"{name}: {lack}"
            raise ConfigError(f"{reason}; structures of this model: {', '.join(available(model))}")
    return list(names)


def available(model: VisionModel) -> list[str]:
    """List the structures that a model has."""
    return [name for name in STRUCTURES if _lack(name, model) is None]


def _lack(name: str, model: VisionModel) -> str | None:
    """State why a model does not have a structure; None where it does."""
    unmet = describe_unmet(f"explain --structure {name}", model.modality, model.name)
    return STRUCTURES[name].lacks(model) if unmet is None else unmet


def needs_images(names: Sequence[str]) -> bool:
    """Return whether any of the structures is probed with images."""
    return any(STRUCTURES[name].needs_images for name in names)


def learned_structures(names: Sequence[str], source: Source, other: Source | None = None) -> Iterator[Learned]:
    """Compute structures one by one.

    Args:
        names: Their names, see :func:`check_structures`.
        source: The model with its images.
        other: A second model on the same images, for "cka".

    Raises:
        ConfigError: An unknown name, or a structure that the model does not have.
    """
    for name in check_structures(names, source.trained.model):
        with restored(source.trained.model):
            yield STRUCTURES[name].compute(source, other)


def _filters(source: Source, other: Source | None) -> Learned:
    card = source.trained.card
    found = projection_filters(source.trained.model)
    drawn = [Filters(one.stream, card.streams[one.stream].bands, one.components.cpu().numpy(), one.shares.cpu().numpy())
             for one in found]  # fmt: skip
    rows = [
        {"stream": one.title, "component": k + 1, "share": share, "band": band, "row": y, "column": x, "weight": value}
        for one in drawn
        for k, share in enumerate(one.shares.tolist())
        for c, band in enumerate(one.bands)
        for (y, x), value in np.ndenumerate(one.components[k, c])
    ]
    caption = (
        "Principal components of the filters that project patches to tokens, largest variance first, with their share "
        "of the variance. Gray is zero. A smooth basis shows learning; noise shows training that was too short."
    )
    figure = draw_filters(drawn, source.note)
    return Learned("projection_filters", "Projection filters", caption, figure, pd.DataFrame(rows))


def _joined(source: Source, measure: Callable[..., list[Any]], values: str) -> list[tuple[Any, Array]]:
    """Run a measure of layers over all batches; each layer's first result and its values of all images."""
    found: list[list[Any]] = [measure(source.trained.model, *inputs) for inputs in source.inputs()]
    return [
        (layers[0], torch.cat([getattr(layer, values) for layer in layers]).float().cpu().numpy())
        for layers in zip(*found, strict=True)
    ]


def _head_rows(layers: Sequence[LayerValues], **columns: Sequence[Any]) -> pd.DataFrame:
    rows = []
    for number, layer in enumerate(layers):
        for h in range(layer.values.shape[1]):
            values = layer.values[:, h]
            row = {"layer": layer.name, "kind": layer.kind, "head": h + 1, "mean": values.mean(), "std": values.std(),
                   "images": len(values), "uniform": layer.uniform}  # fmt: skip
            rows.append(row | {name: column[number] for name, column in columns.items()})
    return pd.DataFrame(rows)


def _distance(source: Source, other: Source | None) -> Learned:
    found = _joined(source, attention_distances, "distance")
    layers = [LayerValues(one.layer, one.kind, values, one.uniform) for one, values in found]
    strides = {"stride": ["x".join(map(str, one.stride)) for one, _ in found]}
    title = "Mean attention distance"
    caption = (
        "Distance in pixels between a token and those that it attends to, weighted by the attention, of each head. "
        "Dotted: uniform attention over the same tokens. Heads below it attend locally."
    )
    figure = draw_by_head(layers, title, "pixels", f"{source.note}; {source.probed}")
    return Learned("attention_distance", title, caption, figure, _head_rows(layers, **strides))


def _entropy(source: Source, other: Source | None) -> Learned:
    found = _joined(source, attention_entropy, "entropy")
    layers = [LayerValues(one.layer, one.kind, values, one.uniform) for one, values in found]
    title = "Entropy of the attention"
    caption = (
        "Entropy of a token's attention, of each head. Dotted: uniform attention, the largest possible. A head far "
        "below it selects few tokens."
    )
    figure = draw_by_head(layers, title, "nats", f"{source.note}; {source.probed}")
    return Learned("attention_entropy", title, caption, figure, _head_rows(layers))


def _focus(source: Source, other: Source | None) -> Learned:
    batches = [head_focus(source.trained.model, *inputs) for inputs in source.inputs()]
    layers, rows = [], []
    for parts in zip(*batches, strict=True):
        first = parts[0]
        shares = torch.cat([part.shares for part in parts])
        whole = replace(first, shares=shares, entropy=torch.cat([part.entropy for part in parts]))
        layers.append(Focus(first.layer, shares.mean(dim=0).cpu().numpy(), first.uniform.cpu().numpy()))
        for h, name in enumerate(whole.names()):
            row = {"layer": first.layer, "kind": first.kind, "head": h + 1, "attends_to": name}
            for i, target in enumerate(TARGETS):
                row |= {target: float(shares[:, h, i].mean()), f"{target}_uniform": float(first.uniform[i])}
            rows.append(row | {"entropy_share": float(whole.entropy[:, h].mean()), "images": len(shares)})
    names = ("class token and registers", "the token itself", "its 8 neighbours", "other tokens")
    caption = (
        "Share of the attention of each head on the class token and registers, on the token itself, on its eight "
        "neighbours and on all other tokens. Hatched: uniform attention. Heads of a layer are sorted."
    )
    note = f"{source.note}; mean over {plural(source.count, 'image')}"
    return Learned("head_focus", "Targets of the heads", caption, draw_focus(layers, names, note), pd.DataFrame(rows))


def _positions(source: Source, other: Source | None) -> Learned:
    tables = position_similarities(source.trained.model)
    rows = []
    for table in tables:
        values = table.similarity.cpu().numpy()
        drawn = (spread(length, _MOST_POSITIONS) for length in table.grid)
        for y, x in itertools.product(*drawn):
            rows += [
                {"table": table.name, "row": y + 1, "column": x + 1, "to_row": a + 1, "to_column": b + 1,
                 "similarity": value}
                for (a, b), value in np.ndenumerate(values[y, x])
            ]  # fmt: skip
    first = tables[0]
    ys, xs = (spread(length, _MOST_POSITIONS) for length in first.grid)
    chosen = np.stack(np.meshgrid(ys, xs, indexing="ij"), axis=-1)
    figure = draw_position_similarity(first.name, chosen, first.similarity.cpu().numpy()[np.ix_(ys, xs)], source.note)
    caption = (
        "Cosine similarity of each position embedding to all others. Near positions, and those of the same row or "
        "column, are similar where the model learned the layout of the image."
        + (f" The table of {first.name}; the CSV has all." if len(tables) > 1 else "")
    )
    return Learned("position_similarity", "Similarity of positions", caption, figure, pd.DataFrame(rows))


def _relative(source: Source, other: Source | None) -> Learned:
    tables = [(bias.name, bias.table.float().cpu().numpy()) for bias in relative_biases(source.trained.model)]
    rows = [
        {"layer": name, "head": h + 1, "dy": y - table.shape[1] // 2, "dx": x - table.shape[2] // 2, "bias": value}
        for name, table in tables
        for (h, y, x), value in np.ndenumerate(table)
    ]
    caption = "Learned bias of the attention by the offset of query and key (query minus key), of each layer and head."
    figure = draw_relative_tables(tables, source.note)
    return Learned("relative_positions", "Relative positions", caption, figure, pd.DataFrame(rows))


def _cka(source: Source, other: Source | None) -> Learned:
    if source.count < FEWEST_IMAGES:
        raise DataError(f"CKA compares features of at least {FEWEST_IMAGES} images, got {source.count}")
    second = source if other is None else other
    features = [_features(one) for one in ([source] if other is None else [source, other])]
    matrix = cka_matrix(features[0], features[-1]).numpy()
    layers = [list(one) for one in features]
    rows = [
        {"layer": layers[0][i], "other_layer": layers[-1][j], "cka": value} for (i, j), value in np.ndenumerate(matrix)
    ]
    widths = [x.shape[1] for one in features for x in one.values()]
    caption = (
        f"Linear CKA of the features of {source.count} images (means over positions; embedding: input of the "
        "classifier): 1 where they differ in a rotation and a scale, 0 where they are uncorrelated."
        + (" With fewer images than features it is biased towards 1." if source.count < max(widths) else "")
    )
    names = (source.name, second.name)
    note = source.note if other is None else f"{source.note}\n{other.note}"
    figure = draw_cka(matrix, layers[0], layers[-1], names, f"{note}; {source.count} images")
    name = "cka" if other is None else f"cka_{other.name}"
    title = "Similarity of layers" if other is None else f"Similarity of layers to those of {other.name}"
    return Learned(name, title, caption, figure, pd.DataFrame(rows))


def _features(source: Source) -> dict[str, Tensor]:
    with restored(source.trained.model):
        parts = [all_features(source.trained.model, inputs) for inputs in source.inputs()]
    return {layer: torch.cat([part[layer] for part in parts]).cpu() for layer in parts[0]}


def _reason(compute: Callable[[VisionModel], Any]) -> Callable[[VisionModel], str | None]:
    """Return a check that reports the error of a structure that needs no images."""

    def lacks(model: VisionModel) -> str | None:
        try:
            compute(model)
        except ConfigError as error:
            return str(error)
        return None

    return lacks


def _lacks_levels(model: VisionModel) -> str | None:
    return None if model.feature_info else f"this {type(model).__name__} has no feature levels"


STRUCTURES: dict[str, Structure] = {
    "projection_filters": Structure(
        "principal components of the patch projection", _filters, lacks_filters, False
    ),
    "position_similarity": Structure(
        "cosine similarity of position embeddings", _positions, _reason(position_similarities), False
    ),
    "relative_positions": Structure(
        "learned bias by relative position", _relative, _reason(relative_biases), False
    ),
    "attention_distance": Structure(
        "mean distance of the attention of each head, in pixels", _distance, lacks_positions, True
    ),
    "attention_entropy": Structure("entropy of the attention of each head", _entropy, lacks_taps, True),
    "head_focus": Structure(
        "attention of each head to the class token, the token itself, its neighbours, others", _focus, lacks_positions,
        True,
    ),
    "cka": Structure("similarity of the features of layers, of one run or two", _cka, _lacks_levels, True),
}  # fmt: skip


def write_structures(found: Iterable[Learned], folder: Path, run: str, weights: str | None) -> list[str]:
    """Write the picture (PNG, SVG) and the table (CSV) of each structure, and an index of the folder.

    Structures that the index has of the same weights stay in it.

    Args:
        found: The structures; each is written before the next one is computed.
        folder: Folder of the files.
        run: Name of the model.
        weights: Hash of its weights.

    Returns:
        Names of the files without ending.

    Raises:
        RunError: A file that cannot be written.
    """
    index = folder / STRUCTURE_FILE
    entries: dict[str, dict[str, Any]] = {}
    if (before := read_index(index)) is not None and before.get("weights") == weights:
        entries = before["structures"]
    names = []
    for one in found:
        write_both(one.figure, folder, one.name, dpi=130, tight=True)
        write_text(folder / f"{one.name}.csv", one.table.to_csv(index=False))
        entries[one.name] = {"title": one.title, "caption": one.caption, "width": one.figure.get_figwidth()}
        names.append(one.name)
        write_json(index, {"run": run, "weights": weights, "structures": entries, "vitrail": __version__})
    return names


def read_index(file: Path) -> dict[str, Any] | None:
    """Read the index of a folder of structures; None without one, or where it is damaged."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and isinstance(content.get("structures"), dict) else None
