"""What is known of every model variant, readable at once: importing this module imports no torch.

The table is ``vitrail/models/catalogue.json``, which ``python -m vitrail.models.catalogue`` writes from the
registry; a test holds it to the registry's truth.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import importlib.resources
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vitrail.errors import ConfigError, closest

PUBLISHED_NOTE = "top-1: ImageNet-1k accuracy in per cent as published by the authors, not measured by vitrail"


@dataclass(frozen=True)
class Setting:
    """A setting of a family.

    Attributes:
        default: Its default, as JSON has it.
        help: What it means.
    """

    default: Any
    help: str = ""


@dataclass(frozen=True)
class FamilyFacts:
    """What the variants of a family share.

    Attributes:
        description: What the architecture is, in a sentence.
        source: Paper.
        settings: Setting name -> default and meaning.
    """

    description: str
    source: str
    settings: Mapping[str, Setting]


@dataclass(frozen=True)
class StreamFacts:
    """One input of a variant.

    Attributes:
        name: Its key in a batch.
        chans: Bands.
        size: Height and width in pixels.
    """

    name: str
    chans: int
    size: tuple[int, int]


@dataclass(frozen=True)
class Part:
    """Consecutive parts of a model that cost the same.

    Attributes:
        name: The part's name in the model; the first and the last for several.
        kind: Its class.
        count: How many there are.
        output_shape: Shape that each gives for one image; None where it gives nothing.
        parameters: Of each.
        multiply_adds: Of each, for one image.
    """

    name: str
    kind: str
    count: int
    output_shape: tuple[int, ...] | None
    parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class Variant:
    """One model variant.

    Attributes:
        name: What ``create_model`` calls it.
        family: Its family.
        streams: Its inputs.
        num_classes: Width of its logits; 0 where it gives features.
        parameters: Number of parameters.
        multiply_adds: Of one image.
        published: The authors' ImageNet-1k top-1 in per cent, where they gave one.
        settings: Those that differ from the family's defaults.
        parts: The model's parts from the input to the head.
    """

    name: str
    family: str
    streams: tuple[StreamFacts, ...]
    num_classes: int
    parameters: int
    multiply_adds: int
    published: float | None
    settings: Mapping[str, Any]
    parts: tuple[Part, ...] = field(repr=False)

    @property
    def size(self) -> str:
        """Height and width of the first input, one number where they are equal."""
        height, width = self.streams[0].size
        return str(height) if height == width else f"{height} x {width}"

    @property
    def bands(self) -> str:
        """Bands of the inputs: ``"3"``, or ``"3 + 100"`` for two streams."""
        return " + ".join(str(stream.chans) for stream in self.streams)


@dataclass(frozen=True)
class Catalogue:
    """The families and their variants.

    Attributes:
        families: Family name -> what its variants share.
        variants: Variant name -> its facts, in the order of the names.
    """

    families: Mapping[str, FamilyFacts]
    variants: Mapping[str, Variant]

    def find(self, pattern: str) -> list[Variant]:
        """Variants that a family's name, a variant's name or a shell pattern stands for.

        Raises:
            ConfigError: Nothing matches; the message gives the closest name.
        """
        if pattern in self.families:
            return [variant for variant in self.variants.values() if variant.family == pattern]
        found = [self.variants[name] for name in fnmatch.filter(self.variants, pattern)]
        if not found:
            hint = closest(pattern, [*self.families, *self.variants])
            raise ConfigError(f"no model matches {pattern!r}{hint} (`vitrail models` lists all)")
        return found

    def description(self, variant: Variant) -> str:
        """The family's description with the settings in which the variant differs from its defaults."""
        settings = ", ".join(f"{name} {show(value)}" for name, value in variant.settings.items())
        text = self.families[variant.family].description
        return f"{text}: {settings}" if settings else text


def show(value: Any) -> str:
    """A setting's value in few characters: lists as ``2-2-6-2``, groups of settings as ``(a 1, b 2)``."""
    if isinstance(value, Mapping):
        return "(" + ", ".join(f"{key} {show(item)}" for key, item in value.items()) + ")"
    if isinstance(value, list | tuple):
        return "-".join(show(item) for item in value)
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def to_json(catalogue: Catalogue) -> str:
    """The catalogue as JSON, one line a family or variant, so that a change shows as the lines it touches."""
    lines = ["{", '"families": {']
    lines += _entries(catalogue.families)
    lines += ["},", '"variants": {']
    lines += _entries(catalogue.variants)
    return "\n".join([*lines, "}", "}"]) + "\n"


def _entries(table: Mapping[str, Any]) -> list[str]:
    entries = [
        f"{json.dumps(name)}: {json.dumps(dataclasses.asdict(item), ensure_ascii=False)}"
        for name, item in table.items()
    ]
    return [entry + "," for entry in entries[:-1]] + entries[-1:]


def from_json(text: str) -> Catalogue:
    """The catalogue that :func:`to_json` wrote."""
    raw = json.loads(text)
    families = {
        name: FamilyFacts(
            item["description"],
            item["source"],
            {key: Setting(**setting) for key, setting in item["settings"].items()},
        )
        for name, item in raw["families"].items()
    }
    variants = {}
    for name, item in raw["variants"].items():
        streams = tuple(StreamFacts(s["name"], s["chans"], tuple(s["size"])) for s in item["streams"])
        parts = tuple(
            Part(**{**part, "output_shape": part["output_shape"] and tuple(part["output_shape"])})
            for part in item["parts"]
        )
        variants[name] = Variant(**{**item, "streams": streams, "parts": parts})
    return Catalogue(families, variants)


@functools.cache
def read_catalogue() -> Catalogue:
    """The catalogue that is packaged with vitrail."""
    # Through the top package: naming vitrail.models as a package would import it, and torch with it.
    file = importlib.resources.files("vitrail").joinpath("models", "catalogue.json")
    return from_json(file.read_text(encoding="utf-8"))
