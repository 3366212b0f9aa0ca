"""``vitrail models``: list, filter and describe the model variants.

Everything comes from the catalogue, so that the answer waits for torch only where another distribution adds families.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import re
import sys
from collections.abc import Mapping
from typing import Any

from vitrail.catalogue import (
    PUBLISHED_NOTE,
    Catalogue,
    FamilyFacts,
    Variant,
    read_catalogue,
    show,
)
from vitrail.cli.arguments import VerbParser
from vitrail.cli.tables import format_fields, format_table
from vitrail.errors import ConfigError, closest, plural

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9}


def main(argv: list[str]) -> int:
    """Run the verb.

    Args:
        argv: Arguments after ``vitrail models``.

    Returns:
        0.

    Raises:
        ConfigError: An unknown name, pattern, family or option.
    """
    arguments = _parser().parse_args(argv)
    catalogue = read_catalogue(_describe_foreign)
    pattern: str = arguments.pattern
    family: str | None = arguments.family
    if family is not None and family not in catalogue.families:
        raise ConfigError(f"unknown family {family!r}{closest(family, catalogue.families)}")
    candidates = [v for v in catalogue.find(pattern) if family in (None, v.family)]
    found = _filter(candidates, arguments.max_parameters, arguments.max_gmacs)
    # A variant's name beside a filter asks whether it passes.
    filtered = family is not None or arguments.max_parameters is not None or arguments.max_gmacs is not None
    alone = pattern in catalogue.variants and not filtered
    if arguments.chart is None and (arguments.runs or arguments.speeds):
        raise ConfigError("--runs and --speeds belong to --chart FILE; add that, or leave them out")
    if arguments.chart is not None:
        print(_chart(catalogue, found, arguments))
    elif arguments.json:
        records = [_record(catalogue, variant, alone) for variant in found]
        print(json.dumps(records, indent=2, ensure_ascii=False))
    elif arguments.csv:
        _print_csv(catalogue, found)
    elif alone:
        print(_details(catalogue, found[0]))
    else:
        print(_listing(catalogue, found, candidates, pattern))
    return 0


def _describe_foreign() -> Catalogue:
    from vitrail.models.catalogue import build_catalogue

    return build_catalogue(foreign=True)


def _parser() -> VerbParser:
    parser = VerbParser("models", "List the model variants, or describe one.")
    parser.add_argument(
        "pattern",
        nargs="?",
        default="*",
        metavar="NAME",
        help="a variant to describe, a family, or a pattern such as 'vit_small*' (in quotes)",
    )
    parser.add_argument("--family", default=None, help="only this family")
    parser.add_argument(
        "--max-parameters", type=_count, default=None, metavar="N", help="only those with at most N, e.g. 30M"
    )
    parser.add_argument(
        "--max-gmacs",
        type=_gmacs,
        default=None,
        metavar="G",
        help="only those with at most G billion multiply-adds",
    )
    parser.add_argument(
        "--chart",
        default=None,
        metavar="FILE",
        help="draw published accuracy against cost into FILE.png or FILE.svg, with a CSV of the same name beside it",
    )
    parser.add_argument("--runs", nargs="+", default=[], metavar="RUN", help="evaluated runs to add to --chart")
    parser.add_argument(
        "--speeds", default=None, metavar="CSV", help="measured images/s for --chart: a table of `vitrail bench --csv`"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--csv", action="store_true", help="print CSV")
    return parser


def _chart(catalogue: Catalogue, variants: list[Variant], arguments: argparse.Namespace) -> str:
    """Draw published results and own runs; return a text that names the files."""
    from pathlib import Path

    from vitrail.cli.outputs import PICTURE, RESULTS, output_file

    file = Path(arguments.chart)
    if file.suffix.lower() not in (".png", ".svg"):
        raise ConfigError(f"--chart {file} must be called NAME.png or NAME.svg")
    file = output_file(arguments.chart, PICTURE, [*arguments.runs, arguments.speeds], "--chart")
    table = output_file(str(file.with_suffix(".csv")), RESULTS, [arguments.speeds], "--chart")

    from vitrail.analyze.published import NOTE, as_table, published_points, read_speeds, run_points
    from vitrail.figures.published import draw_published
    from vitrail.figures.write import write_figure
    from vitrail.files import write_text
    from vitrail.runs.folder import RunFolder

    speeds = {} if arguments.speeds is None else read_speeds(arguments.speeds)
    points = [*published_points(variants, speeds), *run_points([RunFolder.open(r) for r in arguments.runs], catalogue)]
    if not points:
        raise ConfigError("no published result among these variants, and no --runs; name other variants")
    write_figure(draw_published(points, NOTE), file, dpi=130)
    write_text(table, as_table(points).to_csv(index=False))
    return f"{plural(len(points), 'result')} written to {file} and {table}"


def _count(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGB]?)", text.upper().replace(",", "").replace("_", ""))
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number such as 5000000, 30M or 1.5G")
    return int(float(match.group(1)) * _UNITS[match.group(2)])


def _gmacs(text: str) -> float:
    if re.fullmatch(r"\d+(\.\d+)?", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of billions such as 4.5")
    return float(text)


def _filter(variants: list[Variant], parameters: int | None, gmacs: float | None) -> list[Variant]:
    return [
        variant
        for variant in variants
        if (parameters is None or variant.parameters <= parameters)
        and (gmacs is None or variant.multiply_adds <= gmacs * 1e9)
    ]


def _record(catalogue: Catalogue, variant: Variant, whole: bool) -> dict[str, Any]:
    record = dataclasses.asdict(variant)
    if not whole:
        del record["parts"]
    record["published_note"] = PUBLISHED_NOTE
    record["source"] = catalogue.families[variant.family].source
    record["description"] = catalogue.description(variant)
    return record


def _print_csv(catalogue: Catalogue, variants: list[Variant]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(
        "name family frames height width bands parameters multiply_adds published_top1 source description".split()
    )
    for v in variants:
        published = "" if v.published is None else v.published
        frames, height, width = (None, None, *v.streams[0].size)[-3:]
        numbers = (frames, height, width, v.bands, v.parameters, v.multiply_adds, published)
        writer.writerow([v.name, v.family, *numbers, catalogue.families[v.family].source, catalogue.description(v)])


def _listing(catalogue: Catalogue, variants: list[Variant], candidates: list[Variant], pattern: str) -> str:
    rows = [
        [
            v.name,
            v.size,
            v.bands,
            f"{v.parameters:,}",
            f"{v.multiply_adds / 1e9:.2f}",
            "" if v.published is None else str(v.published),
        ]
        for v in variants
    ]
    header = ["name", "input", "bands", "parameters", "G multiply-adds", "top-1"]
    parts = [format_table(header, rows, right=(1, 2, 3, 4, 5))] if rows else []
    total = len(catalogue.variants)
    parts.append(f"{len(rows)} of {total} variants; `vitrail models NAME` describes one")
    if any(v.published is not None for v in variants):
        parts[-1] += f"\n{PUBLISHED_NOTE}"
    if candidates and not variants:
        small = min(candidates, key=lambda v: v.parameters)
        quick = min(candidates, key=lambda v: v.multiply_adds)
        parts[-1] += f"\nfewest parameters: {small.parameters:,} ({small.name})"
        parts[-1] += f"\nfewest multiply-adds: {quick.multiply_adds / 1e9:.2f} G ({quick.name})"
    if pattern in catalogue.families:
        family = catalogue.families[pattern]
        parts.append(f"{pattern}: {family.description}\n  {family.source}\n\nsettings of every {pattern}:")
        parts.append(_settings_table(family))
    return "\n\n".join(parts)


def _details(catalogue: Catalogue, variant: Variant) -> str:
    family = catalogue.families[variant.family]
    inputs = "; ".join(f"{s.name}: {plural(s.chans, 'band')}, {s.size_text}" for s in variant.streams)
    published = (
        "none by the authors"
        if variant.published is None
        else f"{variant.published} % on ImageNet-1k as published by the authors, not measured by vitrail"
    )
    has_own = variant.published is not None
    fields = [
        ("family", f"{variant.family}: {family.description}"),
        ("input", inputs),
        ("classes", str(variant.num_classes) if variant.num_classes else "none: gives features"),
        ("parameters", f"{variant.parameters:,}"),
        ("multiply-adds", f"{variant.multiply_adds / 1e9:.3f} G for one image"),
        ("top-1", published),
        *((f"pre-trained on {r.pretraining}", f"{r.top1} % ({r.source})") for r in variant.results[int(has_own) :]),
        ("source", family.source),
    ]
    rows = [
        [
            part.name,
            f"{part.count} x {part.kind}" if part.count > 1 else part.kind,
            "" if part.output_shape is None else " x ".join(map(str, part.output_shape[1:])),
            f"{part.count * part.parameters:,}",
            f"{part.count * part.multiply_adds / 1e9:.3f}",
            f"{part.count * part.multiply_adds / max(variant.multiply_adds, 1):.1%}",
        ]
        for part in variant.parts
    ]
    header = ["part", "what", "output of one", "parameters", "G multiply-adds", "share"]
    return "\n\n".join(
        [
            f"{variant.name}\n{format_fields(fields)}",
            format_table(header, rows, right=(3, 4, 5)),
            "settings (* differs from the family's default):",
            _settings_table(family, variant.settings),
            f"model = vitrail.create_model({variant.name!r}, num_classes=10)",
        ]
    )


def _settings_table(family: FamilyFacts, settings: Mapping[str, Any] | None = None) -> str:
    rows = []
    for name, setting in family.settings.items():
        default = show(setting.default)
        if settings is None:
            rows.append([name, default, setting.help])
        else:
            value = show(settings.get(name, setting.default))
            rows.append([f"{name} *" if value != default else name, value, default, setting.help])
    header = ["setting", "default", "meaning"] if settings is None else ["setting", "value", "default", "meaning"]
    return format_table(header, rows)
