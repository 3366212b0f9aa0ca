"""Describe the registered variants; ``python -m vitrail.models.catalogue`` writes the catalogue of the package.

Every variant is built and walked on the meta device, so that the largest costs seconds and no memory.
:mod:`vitrail.catalogue` reads the file without torch.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from vitrail.catalogue import Catalogue, FamilyFacts, Part, Result, Setting, StreamFacts, Variant, to_json
from vitrail.config.schema import plain
from vitrail.files import write_text
from vitrail.models.family import Family
from vitrail.models.profile import Step, count_parameters, example_inputs, walk
from vitrail.models.registry import create_model, find_family, list_families

CATALOGUE_FILE = Path(__file__).with_name("catalogue.json")


def describe_family(family: Family) -> FamilyFacts:
    """Describe the shared facts of a family's variants, from its config class and its model's documentation.

    Args:
        family: The family.
    """
    with torch.device("meta"):
        model = family.build(family.config(**family.test_config))
    first = _prose((inspect.getdoc(type(model)) or family.name).split("\n\n")[0])
    meanings = _attribute_docs(family.config)
    settings = {f.name: Setting(plain(_default(f)), meanings.get(f.name, "")) for f in _own_first(family.config)}
    return FamilyFacts(first.rstrip("."), family.source, settings)


def describe_variant(name: str) -> Variant:
    """Describe a variant and its cost: build it and walk one image through it.

    Args:
        name: The variant's name.

    Raises:
        ConfigError: No such variant.
    """
    family, settings = find_family(name)
    with torch.device("meta"):
        model = create_model(name)
    steps = walk(model, example_inputs(model), depth="blocks")
    return Variant(
        name=name,
        family=family.name,
        streams=tuple(StreamFacts(stream.name, stream.chans, stream.size) for stream in model.streams),
        num_classes=model.num_classes,
        parameters=count_parameters(model),
        multiply_adds=sum(step.multiply_adds for step in steps),
        published=family.published.get(name),
        settings=plain(settings),
        parts=tuple(_parts(steps)),
        results=tuple(_results(family, name)),
    )


def _results(family: Family, name: str) -> Iterator[Result]:
    """List the published accuracies of a variant, that of ImageNet-1k alone first."""
    found = [
        Result(table.pretraining, table.top1[name], table.source) for table in family.results if name in table.top1
    ]
    if name in family.published and not any(result.pretraining == "ImageNet-1k" for result in found):
        yield Result("ImageNet-1k", family.published[name], family.source)
    yield from found


def build_catalogue(foreign: bool = False) -> Catalogue:
    """Describe all families of this package, or with ``foreign`` all others that are registered."""
    known = {name: family for name, family in list_families().items() if is_foreign(family) == foreign}
    names = sorted(name for family in known.values() for name in family.variants)
    return Catalogue(
        {name: describe_family(family) for name, family in known.items()},
        {name: describe_variant(name) for name in names},
    )


def is_foreign(family: Family) -> bool:
    """Return whether a family is from outside of this package."""
    return family.build.__module__.partition(".")[0] != "vitrail"


def _parts(steps: Sequence[Step]) -> list[Part]:
    """Collect the steps that hold or compute something, runs of equal ones as one part."""
    runs: list[list[Step]] = []
    for step in steps:
        if not step.parameters and not step.multiply_adds:
            continue
        if runs and _cost(runs[-1][-1]) == _cost(step):
            runs[-1].append(step)
        else:
            runs.append([step])
    return [
        Part(
            name=run[0].name if len(run) == 1 else f"{run[0].name} ... {run[-1].name}",
            kind=run[0].kind,
            count=len(run),
            output_shape=run[0].output_shape,
            parameters=run[0].parameters,
            multiply_adds=run[0].multiply_adds,
        )
        for run in runs
    ]


def _cost(step: Step) -> tuple[Any, ...]:
    return step.kind, step.output_shape, step.parameters, step.multiply_adds


def _own_first(config: type[Any]) -> list[dataclasses.Field[Any]]:
    """List the fields of a config, inherited ones last."""
    own = inspect.get_annotations(config)
    return sorted(dataclasses.fields(config), key=lambda f: f.name not in own)


def _default(f: dataclasses.Field[Any]) -> Any:
    if f.default_factory is not dataclasses.MISSING:
        return f.default_factory()
    return None if f.default is dataclasses.MISSING else f.default


def _attribute_docs(config: type[Any]) -> dict[str, str]:
    """Attribute name -> meaning, from the ``Attributes:`` sections of the documentation of a class and its bases."""
    docs: dict[str, str] = {}
    for kind in reversed(config.__mro__[:-1]):
        docs |= _section_docs(kind)
    return docs


def _section_docs(kind: type[Any]) -> dict[str, str]:
    section = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")[2]
    docs: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        start = re.match(r" {4}(\w+): (.*)", line)
        if start:
            name = start.group(1)
            docs[name] = start.group(2)
        elif name and line.startswith(" " * 8):
            docs[name] += " " + line.strip()
        else:
            break
    return {key: _prose(text) for key, text in docs.items()}


def _prose(text: str) -> str:
    """Convert documentation to running text, without its markup."""
    return " ".join(text.split()).replace("``", "")


if __name__ == "__main__":
    catalogue = build_catalogue()
    write_text(CATALOGUE_FILE, to_json(catalogue))
    print(f"wrote {len(catalogue.variants)} variants of {len(catalogue.families)} families to {CATALOGUE_FILE}")
