"""``vitrail export``: write a trained run as one file of an engine."""

from __future__ import annotations

import re
import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vitrail.cli.arguments import VerbParser
from vitrail.cli.next_steps import print_next
from vitrail.errors import ConfigError, plural

if TYPE_CHECKING:
    from vitrail.deploy.export.export import Exported
    from vitrail.deploy.export.measure import Measured
    from vitrail.deploy.export.sizes import ImageSize

FORMATS = ("auto", "openvino", "onnx", "torch", "inductor")
PRECISIONS = ("auto", "fp32", "bf16", "int8")
INCLUDE = ("embedding", "heatmap", "sets", "ood")
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def _parser() -> VerbParser:
    parser = VerbParser(
        "export",
        "Write a trained run as one file of an engine, from pixels to probabilities: the fastest engine and precision "
        "that is shown to decide like the run.",
    )
    parser.add_argument("run", nargs="?", help="the run folder")
    parser.add_argument("--out", metavar="DIR", help="folder of the export; export in the run folder if not given")
    parser.add_argument(
        "--format", choices=FORMATS, default="auto", help="engine; auto: the fastest (inductor only on request)"
    )
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help="auto: the fastest that passes")
    parser.add_argument(
        "--include", nargs="*", choices=INCLUDE, default=["embedding"], help="outputs besides logits and probabilities"
    )
    parser.add_argument(
        "--image-size",
        nargs="+",
        metavar="PIXELS",
        help="size of the model's input: height and width, one number for both, or any: pixels of any size, which are "
        "neither cropped nor resized (photographs of any size need no such export: they are resized); the run's size "
        "if not given",
    )
    parser.add_argument(
        "--agreement",
        type=float,
        default=0.99,
        help="least agreement of reduced precision to be shown",
    )
    parser.add_argument(
        "--max-drop", type=float, default=0.01, help="largest drop in accuracy of reduced precision or merged tokens"
    )
    parser.add_argument(
        "--images", nargs="+", default=[], metavar="DIR", help="further images to compare on, without labels"
    )
    parser.add_argument(
        "--gate-images",
        type=int,
        default=2000,
        metavar="N",
        help="images to compare on, at most, at even distances: photographs of unlike sizes take a call each",
    )
    parser.add_argument(
        "--budget",
        default="10m",
        metavar="TIME",
        help="time for the export: 90s, 10m, 1h; candidates that exceed it are skipped, the first never",
    )
    parser.add_argument(
        "--shrink",
        nargs="*",
        type=int,
        metavar="R",
        help="also try token merging, where the model can: pairs of similar tokens that each block merges, one "
        "candidate a number; without numbers those that merge about a half and four fifths of the tokens",
    )
    parser.add_argument("--threads", type=int, help="threads of the engine; all cores if not given")
    parser.add_argument("--check", metavar="DIR", help="compare an export's outputs with the recorded ones, and stop")
    return parser


def main(argv: list[str]) -> int:
    """Export.

    Args:
        argv: Arguments after the verb.
    """
    arguments = _parser().parse_args(argv)
    if arguments.threads is not None and arguments.threads < 1:
        raise ConfigError(f"--threads must be at least 1, got {arguments.threads}")
    if arguments.gate_images < 1:
        raise ConfigError(f"--gate-images must be at least 1, got {arguments.gate_images}")
    if (arguments.run is None) == (arguments.check is None):
        raise ConfigError("vitrail export takes a run folder, or --check DIR for an earlier export")
    if arguments.check is not None:
        return _check(arguments.check, arguments.threads)
    return _export(arguments, _seconds(arguments.budget), _image_size(arguments.image_size))


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if match is None:
        raise ConfigError(f"--budget takes a number of seconds, minutes or hours (90s, 10m, 1h), got {text!r}")
    return float(match[1]) * _UNITS[match[2]]


def _image_size(words: list[str] | None) -> ImageSize:
    if words is None:
        return None
    if words == ["any"]:
        return "any"
    if len(words) > 2 or not all(word.isdecimal() and int(word) > 0 for word in words):
        raise ConfigError(f"--image-size takes height and width in pixels, or any, got {' '.join(words)}")
    return int(words[0]), int(words[-1])


def _export(arguments: Namespace, budget: float, image_size: ImageSize) -> int:
    from vitrail.cli.outputs import output_folder
    from vitrail.deploy.export import export
    from vitrail.deploy.export.gate import Limits
    from vitrail.runs.folder import RunFolder

    run = RunFolder.open(arguments.run)
    out = run.export if arguments.out is None else output_folder(arguments.out, [arguments.run])
    exported = export(
        run,
        out=out,
        format=arguments.format,
        precision=arguments.precision,
        include=arguments.include,
        image_size=image_size,
        images=arguments.images,
        gate_images=arguments.gate_images,
        limits=Limits(agreement=arguments.agreement, max_drop=arguments.max_drop),
        budget=budget,
        shrink=arguments.shrink,
        threads=arguments.threads,
        report=lambda line: print(line, file=sys.stderr),
    )
    print(_tables(exported, arguments.agreement))
    record = exported.export.record
    merged = (
        f", {plural(record['token_merging'], 'pair')} of tokens merged in each block,"
        if record["token_merging"]
        else ""
    )
    print(f"{record['engine']} {record['precision']}{merged} written to {exported.export.folder}")
    if record["no_photographs"]:
        print(f"it takes pixels at the model's size alone: {record['no_photographs']}")
    if (slower := _slower(exported)) is not None:
        print(slower)
    print_next(["vitrail", "predict", out, "FILES"])
    return 0


def _slower(exported: Exported) -> str | None:
    """Warn that a forced engine is slower than the run, beyond the noise of speeds."""
    chosen = next(result.name for result in exported.results if result.chosen)
    slower = exported.measured[chosen].slower
    return f"slower than the run itself: {slower}; --format auto looks for a faster engine" if slower else None


def _over_run(own: Measured) -> str:
    """Format the time of a call over that of the run, with its interval."""
    if own.ratio is None:
        return "1"
    ends = "" if not own.ratio.low else f" ({own.ratio.low:.2f} to {own.ratio.high:.2f})"
    return f"{own.ratio.median:.2f}{ends}"


def _tables(exported: Exported, agreement: float) -> str:
    """Format the measurements and the verdicts of the gate."""
    from vitrail.cli.tables import format_table
    from vitrail.deploy.export.bounds import power_text
    from vitrail.deploy.export.verdict import gate_table
    from vitrail.models.modality import reword
    from vitrail.runs.trained import card_from_values

    modality = card_from_values(exported.export.record["model"]).modality

    def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
        named = [[reword(cell, modality) for cell in row] for row in (header, *rows)]
        return format_table(named[0], named[1:], right=(1,))

    rows = []
    for name, own in exported.measured.items():
        times = [f"{1000 * t:.1f}" for speed in own.speeds for t in (speed.p50, speed.p99)]
        sizes = ["-" if n is None else f"{n / 1e6:.1f}" for n in (own.size, own.memory)]
        counts = ", ".join(f"{n} {precision}" for precision, n in own.operations.items()) or "-"
        rows.append([name, *times, f"{own.images_per_second:.1f}", _over_run(own), *sizes, own.precision, counts])
    batches = [speed.batch for speed in next(iter(exported.measured.values())).speeds]
    times = [f"ms at {batch}, {share}" for batch in batches for share in ("p50", "p99")]
    header = ["candidate", *times, "images/s", "time / run's", "file MB", "memory MB", "computes in", "products"]
    lines = [format_table(header, rows, right=range(1, 9)), "", table(*gate_table(exported.results))]
    unmeasured: dict[str, list[str]] = {}
    for name, own in exported.measured.items():
        if own.no_memory:
            unmeasured.setdefault(own.no_memory, []).append(name)
    lines += [f"no memory of {', '.join(names)}: {reason}" for reason, names in unmeasured.items()]
    if exported.gate_images < exported.available:
        compared = f"compared on {exported.gate_images:,} of {plural(exported.available, 'image')}"
        lines.append(reword(f"{compared}; --gate-images compares on more", modality))
    if any(not result.name.endswith("fp32") and " r=" not in result.name for result in exported.results):
        lines += ["", reword(f"power of the gate: {power_text(exported.gate_images, agreement)}", modality)]
    lines += (
        ["", table(*exported.final.lines())] if exported.final else ["", reword("the run has no test images", modality)]
    )
    if exported.budget.left_out:
        lines.append(f"left out, --budget is spent: {'; '.join(map(str, exported.budget.left_out))}")
    if overrun := exported.budget.overrun():
        lines.append(overrun)
    if exported.known:
        lines.append(f"{exported.known} of --images are left out: the run was made from them")
    return "\n".join(lines)


def _check(folder: str, threads: int | None) -> int:
    from vitrail.engines.load import load_export

    export = load_export(folder, threads, check=False)
    differences = export.check()
    for name, value in differences.items():
        print(f"{name}: differs by {value:.2g} of its scale (bound {export.record['check']['bounds'][name]:.2g})")
    print(f"{export.folder}: as recorded")
    return 0
