"""``vitrail bench``: speed and memory of models, alone or beside other libraries' counterparts."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vitrail.cli.arguments import VerbParser, parse_settings, repeat_set
from vitrail.cli.outputs import SPEEDS, output_file
from vitrail.cli.tables import format_table
from vitrail.errors import ConfigError

if TYPE_CHECKING:
    from vitrail.bench.side_by_side import Plan, Row


def main(argv: list[str]) -> int:
    """Run the verb.

    Args:
        argv: Arguments after ``vitrail bench``.

    Returns:
        0.

    Raises:
        ConfigError: An unknown model, setting or option, a value out of range, or a model without counterpart.
        RunError: No run in a folder.
        VitrailError: A library that is not installed or computes something else, or a step that cannot run.
    """
    arguments = _parser().parse_args(repeat_set(argv))
    settings = parse_settings(arguments.set)
    if arguments.csv:
        arguments.csv = str(output_file(arguments.csv, SPEEDS, option="--csv"))
    if "img_size" in settings:
        raise ConfigError("give the size of the images as --img-size, not with --set")

    from vitrail.bench.side_by_side import Subject, measure

    plan = _plan(arguments)
    size = _size(arguments.img_size)
    subjects = [Subject(name, settings, size) for name in arguments.names]
    libraries = list(dict.fromkeys(arguments.against))
    total = len(subjects) * len(plan.workloads) * max(1, 2 * len(libraries))
    rows: list[Row] = []
    show = sys.stderr.isatty()
    try:
        for row in measure(subjects, libraries, plan):
            rows.append(row)
            if show:
                print(f"\r\033[K{len(rows)} of {total}: {row.model}, {row.library}", end="", file=sys.stderr)
    finally:
        # What was measured before something failed is not lost.
        if show:
            print("\r\033[K", end="", file=sys.stderr)
        if rows:
            _write_rows(rows, plan, arguments)
    return 0


def _parser() -> VerbParser:
    parser = VerbParser(
        "bench",
        "Measure models: images a second, time of a step, operations a second and their share of the machine's "
        "matrix products, and peak memory.",
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="a variant, a family, or the folder of a trained run")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="images a step")
    parser.add_argument(
        "--img-size",
        nargs="+",
        type=int,
        default=None,
        metavar="PIXELS",
        help="size of the images: one number, or height and width; the model's own without it",
    )
    parser.add_argument(
        "--mode",
        nargs="+",
        choices=("forward", "train"),
        default=["forward"],
        help="forward pass, training step (forward, loss, backward, optimiser), or both",
    )
    parser.add_argument(
        "--precision",
        nargs="+",
        choices=("32", "bf16"),
        default=["32"],
        help="float32, bfloat16 (training under autocast), or both",
    )
    parser.add_argument("--compile", action="store_true", help="measure the compiled model too")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="rounds in which contenders take turns")
    parser.add_argument(
        "--against",
        nargs="+",
        metavar="LIBRARY",
        default=[],
        help="alternate with the same model of this library (timm, torchvision), on the same weights (vitrail[peers])",
    )
    parser.add_argument("--no-memory", action="store_true", help="leave out memory, which takes a process a number")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of the models, e.g. spectral_chans=8; several may follow",
    )
    parser.add_argument("--csv", default=None, metavar="FILE", help="write the rows to this file too")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _plan(arguments: argparse.Namespace) -> Plan:
    from vitrail.bench.side_by_side import Plan
    from vitrail.bench.speed import Workload
    from vitrail.runs.trained import choose_device

    workloads = [
        Workload(mode, precision, compiled)
        for mode in dict.fromkeys(arguments.mode)
        for precision in dict.fromkeys(arguments.precision)
        for compiled in ((False, True) if arguments.compile else (False,))
    ]
    return Plan(
        workloads,
        arguments.batch,
        choose_device(arguments.device),
        arguments.rounds,
        memory=not arguments.no_memory,
    )


def _size(values: Sequence[int] | None) -> tuple[int, int] | None:
    from vitrail.layers.shapes import to_pair

    return None if values is None else to_pair(values[0] if len(values) == 1 else list(values), "--img-size")


def _write_rows(rows: Sequence[Row], plan: Plan, arguments: argparse.Namespace) -> None:
    import torch

    from vitrail.bench.speed import device_name
    from vitrail.files import write_text

    machine = device_name(plan.device)
    records = [row.cells() for row in rows]
    if arguments.csv:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
        write_text(arguments.csv, text.getvalue())
    if arguments.json:
        print(json.dumps({"machine": machine, "torch": torch.__version__, "rows": records}, indent=2))
        return
    print(f"{machine}, torch {torch.__version__}; batches of {plan.batch_size}, {plan.rounds} rounds")
    for precision, peak in {row.precision: row.peak_gflops for row in rows}.items():
        print(f"the machine's matrix product, {precision}: {peak:,.0f} GFLOP/s")
    print(f"\n{table(rows)}")
    if any(row.ratio is not None for row in rows):
        print("\nours/theirs: how many times as fast, median (lowest to highest) of the rounds")
    if arguments.csv:
        print(f"\nwrote {arguments.csv}")


def table(rows: Sequence[Row]) -> str:
    """Format the rows as a printed table."""
    header = ["model", "input", "by", "mode", "precision", "images/s", "ms", "GFLOP/s", "of peak", "peak MB"]
    with_ratio = any(row.ratio is not None for row in rows)
    cells = []
    for row in rows:
        memory = "" if row.memory_peak_mb is None else f"{row.memory_peak_mb:,.0f}"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f} ({row.ratio_low:.2f} to {row.ratio_high:.2f})"
        cells.append(
            [
                row.model,
                " x ".join(map(str, row.img_size)),
                row.library,
                f"{row.mode}, compiled" if row.compiled else row.mode,
                row.precision,
                _number(row.images_per_second),
                _number(row.milliseconds),
                _number(row.gflops),
                f"{row.share_of_peak:.0%}",
                memory,
                *([ratio] if with_ratio else []),
            ]
        )
    return format_table([*header, *(["ours/theirs"] if with_ratio else [])], cells, right=range(5, 10))


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
