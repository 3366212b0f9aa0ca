"""``vitrail report``: page of one or several runs, or of a suite."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vitrail.cli.arguments import VerbParser
from vitrail.cli.data_location import EPILOG, override_run_data, split_arguments
from vitrail.cli.outputs import PAGE, output_file
from vitrail.errors import ConfigError, DataError

if TYPE_CHECKING:
    from vitrail.config.data import DataConfig


def add_without(parser: VerbParser) -> None:
    """Add the option that leaves out slow parts."""
    parser.add_argument(
        "--without", nargs="+", choices=("features", "explanations", "mistakes"), default=[], metavar="SECTION",
        help="leave out sections that take time: features, explanations, mistakes",
    )  # fmt: skip


def main(argv: list[str]) -> int:
    """Write the report.

    Args:
        argv: Arguments after the verb.
    """
    parser = VerbParser("report", "Write the self-contained page of one or several evaluated runs, or of a suite.")
    parser.epilog = EPILOG
    parser.add_argument("runs", nargs="+", help="run folders, or the folder of one suite")
    parser.add_argument("--out", help="the page; report.html in the run folder, or beside several runs")
    add_without(parser)
    options, settings = split_arguments(argv, "vitrail report")
    arguments = parser.parse_args(options)

    from vitrail.cli.recipes import load_run_recipe
    from vitrail.report.page import write_report
    from vitrail.report.suite import write_suite_report
    from vitrail.runs.folder import RunFolder
    from vitrail.runs.images import has_other_paths, refuse_absent
    from vitrail.runs.suite import SuiteFolder

    def read_moved(recipe: Path) -> DataConfig:
        """Read the data settings of a run's recipe, with its present path."""
        return override_run_data(recipe, settings, "vitrail report")[1]

    suites = [path for path in arguments.runs if SuiteFolder.is_one(path)]
    out = output_file(arguments.out, PAGE) if arguments.out else None
    if suites:
        if len(arguments.runs) > 1:
            raise ConfigError(f"{suites[0]} is a suite's folder, which has a page of its own; give it alone")
        page = write_suite_report(SuiteFolder(suites[0]), load_run_recipe, out, arguments.without, read_moved)
        print(f"written to {page}")
        return 0
    runs = [RunFolder.open(path) for path in arguments.runs]
    beside = runs[0].report if len(runs) == 1 else runs[0].path.parent / "report.html"
    page = write_report(runs, out or beside, load_run_recipe, without=arguments.without, read_moved=read_moved)
    print(f"written to {page}")
    for run in runs:
        own, now = load_run_recipe(run.recipe).data, read_moved(run.recipe)
        try:
            refuse_absent(run, now, has_other_paths(now, own), "report")
        except DataError as error:
            print(f"warning: sections that show images are left out: {error}", file=sys.stderr)
    return 0
