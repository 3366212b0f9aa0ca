"""Facts about every model variant, readable at once: importing this module imports no torch.

The variants of the package are in ``vitrail/models/catalogue.json``, which ``make catalogue`` writes from the registry;
a test fails when it is out of date. Those of other distributions are computed on first use and cached.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import importlib.resources
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import vitrail
from vitrail.errors import ConfigError, closest
from vitrail.files import cache_folder, write_cached
from vitrail.plugins import FAMILIES, digest_plugins, find_plugins

# Form of the cached JSON, another one after a change.
_FORM = "2"
PUBLISHED_NOTE = "top-1: ImageNet-1k accuracy in per cent as published by the authors, not measured by vitrail"


@dataclass(frozen=True)
class Setting:
    """A setting of a family.

    Attributes:
        default: Its default, as JSON has it.
        help: Meaning of the setting.
    """

    default: Any
    help: str = ""


@dataclass(frozen=True)
class FamilyFacts:
    """Shared facts of a family's variants.

    Attributes:
        description: Description of the architecture, one sentence.
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
        size: Height and width in pixels; frames first for a clip.
    """

    name: str
    chans: int
    size: tuple[int, ...]

    @property
    def size_text(self) -> str:
        """Its size as text, for example ``32 x 224 x 224``."""
        return " x ".join(map(str, self.size))


@dataclass(frozen=True)
class Part:
    """Consecutive parts of a model that cost the same.

    Attributes:
        name: The part's name in the model; the first and the last for several.
        kind: Its class.
        count: Number of equal parts.
        output_shape: Shape that each gives for one image; None where it gives nothing.
        parameters: Parameters of each.
        multiply_adds: Multiply-adds of each, for one image.
    """

    name: str
    kind: str
    count: int
    output_shape: tuple[int, ...] | None
    parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class Result:
    """A published accuracy on ImageNet-1k.

    Attributes:
        pretraining: Images that the model was pre-trained on; "ImageNet-1k" where it was trained on them alone.
        top1: Top-1 accuracy in per cent.
        source: Paper, and the table where one is named.
    """

    pretraining: str
    top1: float
    source: str


@dataclass(frozen=True)
class Variant:
    """One model variant.

    Attributes:
        name: Name for ``create_model``.
        family: Its family.
        streams: Its inputs.
        num_classes: Width of its logits; 0 where it gives features.
        parameters: Number of parameters.
        multiply_adds: Multiply-adds of one image.
        published: The authors' ImageNet-1k top-1 in per cent, where they gave one.
        settings: Settings that differ from the family's defaults.
        parts: The model's parts from the input to the head.
        results: All published accuracies, that of ``published`` first.
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
    results: tuple[Result, ...] = ()

    @property
    def size(self) -> str:
        """Size of the first input, one number for an image whose height and width are equal."""
        first = self.streams[0]
        return str(first.size[0]) if len(first.size) == 2 and len(set(first.size)) == 1 else first.size_text

    @property
    def bands(self) -> str:
        """Bands of the inputs: ``"3"``, or ``"3 + 100"`` for two streams."""
        return " + ".join(str(stream.chans) for stream in self.streams)


@dataclass(frozen=True)
class Catalogue:
    """The families and their variants.

    Attributes:
        families: Family name -> shared facts of its variants.
        variants: Variant name -> its facts, in the order of the names.
    """

    families: Mapping[str, FamilyFacts]
    variants: Mapping[str, Variant]

    def find(self, pattern: str) -> list[Variant]:
        """List the variants that a family's name, a variant's name or a shell pattern matches.

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
        """Return the family's description, with the settings in which the variant differs from its defaults."""
        settings = ", ".join(f"{name} {show(value)}" for name, value in variant.settings.items())
        text = self.families[variant.family].description
        return f"{text}: {settings}" if settings else text


def show(value: Any) -> str:
    """Format a setting's value in few characters: lists as ``2-2-6-2``, groups of settings as ``(a 1, b 2)``."""
    if isinstance(value, Mapping):
        return "(" + ", ".join(f"{key} {show(item)}" for key, item in value.items()) + ")"
    if isinstance(value, list | tuple):
        return "-".join(show(item) for item in value)
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def to_json(catalogue: Catalogue) -> str:
    """Format the catalogue as JSON, one line per family or variant, so that diffs are small."""
    lines = ["{", '"families": {']
    lines += _entries(catalogue.families)
    lines += ["},", '"variants": {']
    lines += _entries(catalogue.variants)
    return "\n".join([*lines, "}", "}"]) + "\n"


def _entries(table: Mapping[str, Any]) -> list[str]:
    entries = [
        f"{json.dumps(name)}:{json.dumps(_plain(item), ensure_ascii=False, separators=(',', ':'))}"
        for name, item in table.items()
    ]
    return [entry + "," for entry in entries[:-1]] + entries[-1:]


def _plain(item: Any) -> dict[str, Any]:
    """Convert an entry to plain values; of its parts, which are many, the values without their names."""
    plain = dataclasses.asdict(item)
    return {**plain, "parts": [list(part.values()) for part in plain["parts"]]} if "parts" in plain else plain


def from_json(text: str) -> Catalogue:
    """Parse a catalogue written by :func:`to_json`."""
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
            Part(part, kind, count, shape and tuple(shape), *costs)
            for part, kind, count, shape, *costs in item["parts"]
        )
        results = tuple(Result(**result) for result in item.get("results", ()))
        variants[name] = Variant(**{**item, "streams": streams, "parts": parts, "results": results})
    return Catalogue(families, variants)


def read_catalogue(describe_foreign: Callable[[], Catalogue] | None = None) -> Catalogue:
    """Read the catalogue, without importing torch where the package's own families are all.

    Args:
        describe_foreign: Describes the families of other distributions, where they are wanted. It is called when there
            are any that the cache does not have in their present version.

    Raises:
        VitrailError: A family of another distribution cannot be imported.
    """
    own = _packaged()
    entries = find_plugins(FAMILIES)
    if describe_foreign is None or not entries:
        return own
    cache = cache_folder()
    file = None if cache is None else cache / f"catalogue-{digest_plugins(entries, vitrail.__version__, _FORM)}.json"
    foreign = None if file is None else _cached(file)
    if foreign is None:
        foreign = describe_foreign()
        write_cached(file, to_json(foreign))
    families, variants = {**own.families, **foreign.families}, {**own.variants, **foreign.variants}
    return Catalogue(dict(sorted(families.items())), dict(sorted(variants.items())))


def _cached(file: Path) -> Catalogue | None:
    """Read a cached catalogue; None where the file is missing or damaged."""
    try:
        return from_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError):
        return None


@functools.cache
def _packaged() -> Catalogue:
    # Through the top package: naming vitrail.models as a package would import it, and torch with it.
    file = importlib.resources.files("vitrail").joinpath("models", "catalogue.json")
    return from_json(file.read_text(encoding="utf-8"))
