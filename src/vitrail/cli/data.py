"""``vitrail data``: measure, audit and split the images of a recipe."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.cli import data_show
from vitrail.cli.arguments import VerbParser
from vitrail.cli.data_location import override_run_data, split_arguments
from vitrail.cli.next_steps import data_words, print_next
from vitrail.cli.outputs import PAGE, SPLIT_TABLE, STATISTICS, output_file
from vitrail.cli.tables import format_table, format_terms
from vitrail.config.changes import PREFIXES, split_words
from vitrail.errors import ConfigError, closest, few, plural

if TYPE_CHECKING:
    from vitrail.config.schema import Recipe
    from vitrail.data import ImageData
    from vitrail.data.audit import Audit
    from vitrail.models.modality import Modality
    from vitrail.runs.folder import RunFolder

# Word -> what it does.
WORDS = {
    "stats": "mean, deviation, saturated shares and percentiles of each band over the training images",
    "audit": "unreadable files and leaks (exit code 1 for both), duplicates, balance, sizes, constant bands",
    "split": "how many images of each class each split has; --out writes the split as a table",
    "show": "draw what training will see: images as augmentation changes them, both streams, mixed classes",
}
# Training images of a class below which an audit lists it.
_FEW = 10
# Between the labels of an image in a table that is written.
_SEPARATOR = ";"


def main(argv: list[str]) -> int:
    """Run the subcommand.

    Args:
        argv: Arguments after the verb.
    """
    words: dict[str, Callable[[list[str]], int]] = {
        "stats": _stats,
        "audit": _audit,
        "split": _split,
        "show": data_show.main,
    }
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: vitrail data WORD [RECIPE.yaml] [--data.SETTING VALUE ...]\n\n{format_terms(WORDS)}")
        return 0 if argv else 2
    if argv[0] not in words:
        raise ConfigError(f"unknown `vitrail data {argv[0]}`{closest(argv[0], words)}")
    return words[argv[0]](argv[1:])


def _parser(word: str, description: str) -> VerbParser:
    parser = VerbParser(f"data {word}", description)
    parser.add_argument("recipe", nargs="?", help="a recipe; settings (--data.path ...) change it or do without")
    return parser


def _read(parser: VerbParser, argv: list[str]) -> tuple[argparse.Namespace, Recipe]:
    """Parse the subcommand's options, and the recipe of the other arguments."""
    from vitrail.cli.recipes import load_run_recipe, make_recipe

    settings, own = split_words(argv, PREFIXES)
    arguments = parser.parse_args(own)
    if arguments.recipe is None and not settings:
        raise ConfigError(f"{parser.prog} needs a recipe or settings such as --data.source folder --data.path photos")
    if arguments.recipe is None:
        return arguments, load_run_recipe({}, settings, parser.prog) if settings else make_recipe({})
    return arguments, load_run_recipe(arguments.recipe, settings, parser.prog)


def _inputs(arguments: argparse.Namespace, recipe: Recipe) -> list[str | None]:
    """List the input files, which outputs must not replace."""
    return [arguments.recipe, recipe.data.path, recipe.data.arrays.labels, recipe.data.values.statistics]


def _check_source(word: str, recipe: Recipe) -> None:
    """Refuse a source whose inputs a subcommand does not take."""
    from vitrail.data.sources.opening import first_stream
    from vitrail.models.modality import MODALITIES, check_need

    source = recipe.data.source
    check_need(f"data {word}", MODALITIES[first_stream(source)], f"data.source {source}")


def _open(recipe: Recipe) -> ImageData:
    from vitrail.data import open_data
    from vitrail.models.image_size import image_size

    return open_data(recipe.data, image_size(recipe))


def _stats(argv: list[str]) -> int:
    parser = _parser("stats", f"Measure {WORDS['stats']}.")
    parser.add_argument("--robust", action="store_true", help="normalise by the pixels that are neither 0 nor 1")
    parser.add_argument("--most", type=int, help="images to measure at most, evenly spaced; all when not given")
    parser.add_argument("--out", help="JSON file to write, for --data.values.statistics")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments, recipe = _read(parser, argv)
    if arguments.most is not None and arguments.most < 1:
        raise ConfigError(f"--most must be at least 1, got {arguments.most}")
    _check_source("stats", recipe)

    from dataclasses import asdict

    from vitrail.data.statistics import MANY_SATURATED, write_statistics
    from vitrail.models.modality import MODALITIES

    if arguments.out is not None:
        arguments.out = str(output_file(arguments.out, STATISTICS, _inputs(arguments, recipe)))

    measured = _open(recipe).measure(arguments.most, robust=arguments.robust)
    if arguments.json:
        print(json.dumps(asdict(measured), indent=2))
    else:
        header = ("stream", "band", "nm", "mean", "std", "mean inside", "std inside", "at 0", "at 1",
                  "cut low", "cut high", "no data", "1 %", "50 %", "99 %")  # fmt: skip
        rows = [
            (
                stream,
                band.name,
                "" if band.wavelength is None else f"{band.wavelength:g}",
                *(f"{v:.4f}" for v in (band.mean, band.std, band.mean_inside, band.std_inside)),
                f"{band.at_zero:.2%}",
                f"{band.at_one:.2%}",
                f"{band.cut_low:.2%}",
                f"{band.cut_high:.2%}",
                f"{band.no_data:.2%}",
                *(f"{band.percentiles[p]:.4f}" for p in ("1", "50", "99")),
            )
            for stream, bands in measured.streams.items()
            for band in bands
        ]
        print(format_table(header, rows, right=range(2, len(header))))
        print(
            f"{measured.images} training {MODALITIES[next(iter(measured.streams))].noun}; values in 0..1; inside: "
            "without the pixels that are 0 or 1; cut: stored values below and above the range"
        )
        for note in measured.notes:
            print(note)
    for warning in measured.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    constant = [band.name for own in measured.streams.values() for band in own if band.constant]
    if constant:
        print(
            f"warning: {', '.join(constant)}: one value throughout; training refuses such bands unless "
            "--data.bands.allow_constant names them",
            file=sys.stderr,
        )
    saturated = [
        band.name for own in measured.streams.values() for band in own if band.at_zero + band.at_one > MANY_SATURATED
    ]
    if saturated and not arguments.robust:
        print(
            f"warning: more than {MANY_SATURATED:.0%} of the pixels are 0 or 1 in {', '.join(saturated)}; --robust "
            "leaves them out of the mean and the deviation",
            file=sys.stderr,
        )
    if arguments.out is not None:
        write_statistics(arguments.out, measured)
        print(f"written to {arguments.out}; --data.values.statistics {arguments.out} trains with it", file=sys.stderr)
    return 0


def _audit(argv: list[str]) -> int:
    parser = _parser("audit", f"Look for {WORDS['audit']}.")
    parser.add_argument(
        "--distance", type=int, default=8, help="bits of 64 in which the hashes of unconfirmed look-alikes may differ"
    )
    parser.add_argument("--groups", help="CSV file to write, with duplicates in groups, for data.split grouped")
    parser.add_argument("--out", help="HTML page to write, with thumbnails")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument(
        "--run", metavar="RUN", help="audit the data of a run, and record in its folder what its report shows of it"
    )
    arguments, recipe, run = _read_audit(parser, argv)
    if not 0 <= arguments.distance <= 15:
        raise ConfigError(f"--distance must be from 0 to 15, got {arguments.distance}")
    _check_source("audit", recipe)

    from vitrail.data.audit import audit
    from vitrail.data.split_checks import describe_split
    from vitrail.data.video.source import REENCODE
    from vitrail.models.modality import MODALITIES, reword
    from vitrail.runs.images import read_image_record

    inputs = _inputs(arguments, recipe)
    if arguments.out is not None:
        arguments.out = str(output_file(arguments.out, PAGE, inputs))
    if arguments.groups is not None:
        arguments.groups = str(output_file(arguments.groups, SPLIT_TABLE, inputs, "--groups"))
    classes = run.read_json(run.card)["classes"] if run is not None and run.card.is_file() else None
    known = None if run is None else read_image_record(run)
    found, data = audit(recipe.data, arguments.distance, classes or None, known)
    refuses = bool(found.unreadable) and recipe.data.errors.on_unreadable == "error"
    modality = MODALITIES[data.source.first]
    if run is not None:
        run.write_json(run.audit, {**found.to_dict(), "distance": arguments.distance, **data.identity()})
        arguments.out = arguments.out or str(run.audit_page)
        print(f"written to {run.audit}; `vitrail report {run}` shows it", file=sys.stderr)
    if arguments.json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        print(_describe(found, modality, data.source.classes))
        for line in describe_split(data):
            print(reword(line, modality, names=data.source.classes))
        for line in _on_joined(found):
            print(f"warning: {line}", file=sys.stderr)
        if found.split_leaks and arguments.groups is None:
            print(f"\n{reword(_advice(argv, recipe, data), modality, names=data.source.classes)}")
        if refuses:
            print(
                "\nmend or remove the files that training refuses, or train without them: "
                "--data.errors.on_unreadable skip"
            )
        if found.damaged:
            print("", *(f"{name} {why}" for name, why in found.damaged), sep="\n")
            print(f"take out the damaged clips, or {REENCODE}")
    if arguments.out is not None:
        from vitrail.report.audit import write_audit

        write_audit(found, data, Path(arguments.out))
        print(f"written to {arguments.out}", file=sys.stderr)
    if arguments.groups is not None:
        from vitrail.data.audit import merge_groups

        _write_table(data, Path(arguments.groups), merge_groups(found, data))
        print(
            f"written to {arguments.groups}; train with its groups by\n"
            f"  {shlex.join(_training(argv, recipe, data, arguments.groups))}",
            file=sys.stderr,
        )
    if run is None and not found.split_leaks and not found.unreadable and not found.damaged:
        print_next(["vitrail", "train", *data_words(arguments.recipe, argv)])
    return 1 if found.split_leaks or refuses or found.damaged else 0


def _read_audit(parser: VerbParser, argv: list[str]) -> tuple[argparse.Namespace, Recipe, RunFolder | None]:
    """Parse like :func:`_read`; for a run, use its recipe with its images at their current path."""
    if not any(word == "--run" or word.startswith("--run=") for word in argv):
        return *_read(parser, argv), None
    from vitrail.cli.recipes import load_run_recipe
    from vitrail.runs.folder import RunFolder

    options, settings = split_arguments(argv, "vitrail data audit --run")
    others = [word for word in options if word.startswith(PREFIXES)]
    if others:
        raise ConfigError(f"--run audits the images that the run was trained on; leave out {others[0].split('=')[0]}")
    arguments = parser.parse_args(options)
    if arguments.recipe is not None:
        raise ConfigError(f"--run {arguments.run} has a recipe of its own; leave out {arguments.recipe}")
    run = RunFolder.open(arguments.run)
    _, changed = override_run_data(run.recipe, settings, parser.prog)
    return arguments, dataclasses.replace(load_run_recipe(run.recipe, prog=parser.prog), data=changed), run


def _describe(found: Audit, modality: Modality, classes: Sequence[str]) -> str:
    """Format the tables of an audit."""
    from vitrail.models.modality import reword

    splits = list(found.splits)
    counts = {**found.balance, "all": found.splits}
    balance = [(name, *(str(row[split]) for split in splits)) for name, row in counts.items()]
    parts = [format_table(("class", *splits), balance, right=range(1, len(splits) + 1)), ""]
    large_first = sorted(found.duplicates, key=lambda g: -len(g.rows))
    sizes = [size for size, _ in found.sizes]
    heights, widths = [h for h, _ in sizes], [w for _, w in sizes]
    rows = [
        ("images", str(found.images), ""),
        ("sizes", str(len(sizes)), f"{min(heights)} to {max(heights)} high, {min(widths)} to {max(widths)} wide"),
    ]
    if found.clips is not None and found.clips.durations is not None:
        shortest, median, longest = found.clips.durations
        rates = sorted(rate for rate, _ in found.clips.rates)
        rows += [
            ("frame rates", str(len(rates)), f"{rates[0]:g} to {rates[-1]:g} a second"),
            ("seconds", "", f"{shortest:.1f} to {longest:.1f}, half are of {median:.1f} or less"),
        ]
    look_alikes = [f"{a} ({s}) ~ {b} ({t})" for (a, b), (s, t) in ((p.keys, p.splits) for p in found.possible_leaks)]
    lists = {
        "files that training refuses": [f"{name}: {why}" for name, why in found.unreadable],
        **_of_clips(found),
        "groups of exact duplicates": [_pair(g.keys) for g in large_first if g.kind == "exact"],
        "groups of near duplicates": [_pair(g.keys) for g in large_first if g.kind == "near"],
        "duplicates of different classes": [_unlike(g.keys, g.labels) for g in found.conflicts],
        "duplicates across splits": [_unlike(g.keys, g.splits) for g in found.leaks],
        f"possible leaks (look-alikes, --distance {found.distance})": look_alikes,
        "groups across splits": list(found.shared_groups),
        "images with a constant band": list(dict.fromkeys(name for name, *_ in found.constant)),
        "bands constant everywhere": [band for _, band in found.empty_bands],
        f"classes of fewer than {_FEW} training images": [
            f"{name} ({row['train']})" for name, row in found.balance.items() if row.get("train", _FEW) < _FEW
        ],
        "similar class names": [" = ".join(group) for group in found.similar_classes],
    }
    rows += [(what, str(len(items)), few(items, 2)) for what, items in lists.items()]
    if not found.searched:
        why = reword("not searched: the code makes the images, and groups those of one origin", modality)
        rows = [row if row[0] != "groups of near duplicates" else (row[0], "-", why) for row in rows]
    rows = [(reword(what, modality, names=classes), number, first) for what, number, first in rows]
    parts.append(format_table(("what", "number", ""), rows, right=(1,)))
    return "\n".join(parts)


def _of_clips(found: Audit) -> dict[str, list[str]]:
    """Return the findings of an audit that only clips have."""
    if found.clips is None:
        return {}
    return {
        "clips with damaged frames": [f"{name} {why}" for name, why in found.clips.damaged],
        "clips without motion": found.clips.still,
    }


def _advice(argv: Sequence[str], recipe: Recipe, data: ImageData) -> str:
    """Format the commands that remedy a leaking split."""
    begin = "a split leaks: an image of one split is seen in another; "
    if recipe.data.source not in ("folder", "table", "videos"):
        return f"{begin}remove all images but one of each group, which --json lists and --out shows"
    train = _training(argv, recipe, data, "groups.csv")
    return (
        f"{begin}write a table that keeps them together and train on it:\n"
        f"  vitrail data audit {shlex.join(argv)} --groups groups.csv\n  {shlex.join(train)}"
    )


def _training(argv: Sequence[str], recipe: Recipe, data: ImageData, table: str) -> list[str]:
    """Format the command that trains on a table of groups.

    Args:
        argv: Arguments of the audit.
        recipe: Their recipe.
        data: The images.
        table: The table, with the columns path, label and group.
    """
    from vitrail.config.data import DEFAULTS, FORM_SETTINGS
    from vitrail.config.renamed import rename

    # Settings of bands and values hold for the table too; how the images are found and split does not.
    gone = {
        *FORM_SETTINGS, "split", "splitting.group", "splitting.group_pattern", "splitting.fold", "splitting.num_folds",
        "images.repeated_files",
    }  # fmt: skip
    given: list[str] = []
    settings: list[str] = []
    words = iter(argv)
    for word in words:
        name, _, value = word.partition("=")
        if not word.startswith("-"):
            given.append(word)
        elif name == "--run":
            run = Path(value or next(words, ""))
            given.append(str(run / "recipe.yaml"))
            settings += ["--run.dir", f"{run}-grouped"]
        elif name.startswith(PREFIXES):
            value = value or next(words, "")
            name = rename(name.removeprefix("--"), value)
            settings += [f"--{name}", value] if name.removeprefix("data.") not in gone else []
        elif name != "--json" and not value:
            next(words, None)
    for name, default in DEFAULTS.items() if given else ():
        # A recipe's own settings of the form in which the images were given.
        if name in gone - {"source", "path", "split"} and recipe.data.setting(name) != default:
            settings += [f"--data.{name}", json.dumps(default).strip('"')]
    form = "videos" if recipe.data.source == "videos" else "table"
    settings += ["--data.source", form, "--data.path", table, "--data.split", "grouped"]
    settings += ["--data.table.label_separator", _SEPARATOR] if data.source.targets.ndim == 2 else []
    return ["vitrail", "train", *given, *settings]


def _on_joined(found: Audit) -> list[str]:
    """Describe groups of the data set that copies join."""
    if not found.joined_groups:
        return []
    number, first = len(found.joined_groups), found.joined_groups[0]
    return [
        f"duplicates join {plural(sum(map(len, found.joined_groups)), 'group')} of the data into {number}: "
        f"{few(first)} {'are' if number == 1 else 'become'} one; look at them (--out audit.html) before you train on "
        "such groups"
    ]


def _pair(keys: Sequence[str]) -> str:
    return f"{keys[0]} = {keys[1]}" + (f" = ... ({len(keys)} in all)" if len(keys) > 2 else "")


def _unlike(keys: Sequence[str], values: Sequence[str]) -> str:
    """Name the first image and the next one with another value, a class or a split."""
    other = next(i for i, value in enumerate(values) if value != values[0])
    return f"{keys[0]} ({values[0]}) = {keys[other]} ({values[other]})"


def _split(argv: list[str]) -> int:
    parser = _parser("split", f"Show {WORDS['split']}.")
    parser.add_argument("--out", help="CSV file to write; of image files it can be trained on (data.source table)")
    arguments, recipe = _read(parser, argv)
    if arguments.out is not None:
        arguments.out = str(output_file(arguments.out, SPLIT_TABLE, _inputs(arguments, recipe)))
    from vitrail.data.split_checks import describe_split
    from vitrail.models.modality import MODALITIES, reword

    data = _open(recipe)
    splits = list(data.splits)
    rows = [(name, *(str(counts[split]) for split in splits)) for name, counts in data.balance().items()]
    rows.append(("all", *(str(len(data.splits[split])) for split in splits)))
    print(format_table(("class", *splits), rows, right=range(1, len(splits) + 1)))
    for line in describe_split(data):
        print(reword(line, MODALITIES[data.source.first], names=data.source.classes))
    if arguments.out is not None:
        _write_table(data, Path(arguments.out))
        print(f"written to {arguments.out}", file=sys.stderr)
    return 0


def _label(data: ImageData, row: int) -> str:
    """Return an image's class as a table has it; multiple labels are separated."""
    own = data.source.targets[row]
    if own.ndim == 0:
        return data.source.label(row)
    return _SEPARATOR.join(name for name, has in zip(data.source.classes, own, strict=True) if has)


def _write_table(data: ImageData, out: Path, together: dict[int, str] | None = None) -> None:
    """Write one row for each image: path (relative to the table) or key, label, and second file if any.

    Args:
        data: The images.
        out: The CSV file.
        together: Group of the images that belong together; the others get groups of their own, or the data's. The
            split and the data's groups are written when not given.
    """
    import pandas as pd

    from vitrail.data.sources.base import unwrap_source
    from vitrail.data.sources.files import FileSource
    from vitrail.data.video.source import VideoSource
    from vitrail.files import write_text

    inner = unwrap_source(data.source)
    rows = []
    for split, indices in data.splits.items():
        for i in indices:
            row: dict[str, Any] = {"path": data.source.keys[i]}
            if isinstance(inner, VideoSource):
                file, start, end = inner.location(i)
                row |= {"path": os.path.relpath(file, out.parent), "start": start, "end": end}
            if isinstance(inner, FileSource):
                row["path"] = os.path.relpath(inner.files["image"][i], out.parent)
                if "spectral" in inner.files:
                    row["spectral"] = os.path.relpath(inner.files["spectral"][i], out.parent)
            row["label"] = _label(data, i)
            if together is not None:
                row["group"] = together.get(i, data.source.keys[i])
            else:
                row["split"] = split
                if data.source.groups is not None:
                    row["group"] = data.source.groups[i]
            rows.append(row)
    table = pd.DataFrame(rows)
    if "start" in table and not table["start"].any() and table["end"].isna().all():
        table = table.drop(columns=["start", "end"])
    write_text(out, table.to_csv(index=False))
