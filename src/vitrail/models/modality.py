"""Modalities: images, clips, point clouds.

Other code asks a model for its streams, grids and token layouts, which have as many axes as the modality; it asks for
the modality itself only to choose data, and to name an input in a message.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from vitrail.errors import ConfigError


class Modality(NamedTuple):
    """One kind of input.

    Attributes:
        name: Its key in a batch, also the name of a model's first stream.
        noun: Its name in messages, in the plural.
        singular: The same of a single one.
        shape: Shape of a batch.
        axes: Axes of the grid of tokens.
        settings: Settings that the config of every family has, since other code sets or reads them.
    """

    name: str
    noun: str
    singular: str
    shape: str
    axes: tuple[str, ...]
    settings: tuple[str, ...]


IMAGE = Modality(
    "image",
    "images",
    "image",
    "(B, C, H, W)",
    ("row", "column"),
    ("img_size", "in_chans", "num_classes", "global_pool"),
)
VIDEO = Modality(
    "video",
    "clips",
    "clip",
    "(B, C, T, H, W)",
    ("time", "row", "column"),
    ("num_frames", "img_size", "in_chans", "num_classes", "global_pool"),
)
POINTS = Modality(
    "points",
    "point clouds",
    "point cloud",
    "(B, N, 3)",
    ("point",),
    ("num_points", "in_chans", "num_classes", "global_pool"),
)
MODALITIES = {modality.name: modality for modality in (IMAGE, VIDEO, POINTS)}


def is_per_point(settings: Mapping[str, Any]) -> bool:
    """Check whether a model labels points instead of whole clouds, by its settings."""
    return bool(settings.get("per_point", False))


# The word with its article; not in names of options and settings, nor in paths ("images/s" is a unit).
_IMAGE_WORD = r"(?<![\w/.\\-])(?:(?P<article>[Aa])n )?(?P<first>[Ii])mage(?P<many>s?)(?![\w\\-]|\.\w|/(?!s\b)|=)"


@lru_cache(maxsize=16)
def _words(names: Collection[str]) -> re.Pattern[str]:
    """Compile the pattern of words to replace, and of the names among which they are none."""
    # A class called "image" is told from the word only where it stands alone.
    kept = sorted((name for name in names if re.sub(_IMAGE_WORD, "", name).strip() not in ("", name.strip())), key=len)
    # Labels of figures are wrapped at spaces.
    parts = [r"\s+".join(map(re.escape, name.split())) for name in reversed(kept)]
    return re.compile("|".join([*([rf"(?<!\w)(?P<name>{'|'.join(parts)})(?!\w)"] if parts else []), _IMAGE_WORD]))


def reword(text: str, *modalities: Modality, names: Collection[str] = ()) -> str:
    """Name inputs by their modality in a text about images: pages and messages are written for these.

    Args:
        text: Prose; text between backticks remains.
        modalities: Modalities of the inputs; several different ones are "inputs".
        names: Names of classes, runs and files, which remain.
    """
    kinds = set(modalities)
    if kinds <= {IMAGE} or text in names:
        return text
    singular, plural = ("input", "inputs") if len(kinds) > 1 else (modalities[0].singular, modalities[0].noun)
    article = "n" if singular[0] in "aeiou" else ""

    def noun(found: re.Match[str]) -> str:
        if found["first"] is None:
            return found[0]
        word = plural if found["many"] else singular
        word = word if found["first"] == "i" else word[0].upper() + word[1:]
        return word if found["article"] is None else f"{found['article']}{article} {word}"

    pattern = _words(frozenset(names))
    parts = text.split("`")
    parts[::2] = [pattern.sub(noun, part) for part in parts[::2]]
    return "`".join(parts)


class Need(NamedTuple):
    """Inputs that a verb or an option of the command line takes.

    Attributes:
        takes: Their modalities.
        remedy: Remedy for other modalities.
    """

    takes: tuple[Modality, ...]
    remedy: str


# Verb or option -> its need; those that are not listed take every input.
NEEDS = {
    "data stats": Need((IMAGE, VIDEO), "coordinates are used as they are, and need no statistics"),
    "data audit": Need((IMAGE, VIDEO), "leave it out; `vitrail data split` counts the classes of each split"),
    "pretrain": Need((IMAGE, VIDEO), "train it with labels (`vitrail train`)"),
    "task.name simmim": Need((IMAGE,), "use task.name mae for clips, labels (`vitrail train`) for others"),
    "inspect --image": Need((IMAGE,), "leave it out for random noise"),
    "inspect --spectral": Need((IMAGE,), "leave it out for random noise"),
    "inspect --figures": Need((IMAGE,), "leave it out; --diagram draws the modules of every model"),
    "evaluate --tta": Need((IMAGE, VIDEO), "leave it out; --rotations measures rotations of clouds"),
    "evaluate --tta up": Need((POINTS,), "leave it out; --tta turns averages over views of images and clips"),
    "evaluate --tta so3": Need((POINTS,), "leave it out; --tta turns averages over views of images and clips"),
    "predict --tta": Need((IMAGE, VIDEO), "leave it out"),
    "predict --window": Need((VIDEO,), "leave it out"),
    "predict --step": Need((VIDEO,), "leave it out"),
    "predict --overlay": Need((VIDEO,), "leave it out; `vitrail explain` draws images and clouds"),
    "evaluate --data.video.views/crops": Need((VIDEO,), "leave it out"),
    "evaluate --corruptions": Need((IMAGE,), "leave it out"),
    "evaluate --attacks": Need((IMAGE,), "leave it out"),
    "evaluate --ood": Need((IMAGE,), "leave it out"),
    "evaluate --rotations": Need((POINTS,), "leave it out; --tta turns averages over views of images and clips"),
    "explain --measure": Need((IMAGE,), "leave it out; maps/ has the values of each method"),
    "explain --size": Need((IMAGE,), "leave it out"),
    "explain --structure position_similarity": Need((IMAGE,), "leave it out"),
    "explain --structure attention_distance": Need((IMAGE, VIDEO), "leave it out"),
    "explain --structure head_focus": Need((IMAGE,), "leave it out"),
    "export --image-size": Need((IMAGE,), "leave it out; the export takes the size of the run"),
    "bench --img-size": Need((IMAGE, VIDEO), "leave it out; --set num_points=N sets the number of points"),
}  # fmt: skip


def describe_unmet(what: str, modality: Modality, name: str) -> str | None:
    """State why a verb or an option does not take inputs, and the remedy; None where it does."""
    need = NEEDS.get(what)
    if need is None or modality in need.takes:
        return None
    nouns = " and ".join(other.noun for other in need.takes)
    return f"{what} takes {nouns}, not {modality.noun} ({name}); {need.remedy}"


def check_need(what: str, modality: Modality, name: str) -> None:
    """Refuse inputs that a verb or an option does not take.

    Args:
        what: Verb or option; those that :data:`NEEDS` does not list take every input.
        modality: Modality of the inputs.
        name: Model or source that has them.

    Raises:
        ConfigError: It does not take them.
    """
    unmet = describe_unmet(what, modality, name)
    if unmet is not None:
        raise ConfigError(unmet)
