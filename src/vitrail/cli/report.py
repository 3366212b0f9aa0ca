"""``vitrail report``: the page of one or several runs, or of a suite."""

from __future__ import annotations

from vitrail.cli.arguments import VerbParser
from vitrail.cli.outputs import PAGE, output_file
from vitrail.errors import ConfigError


def add_without(parser: VerbParser) -> None:
    """Add the option that leaves out what takes time."""
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
    parser.add_argument("runs", nargs="+", help="run folders, or the folder of one suite")
    parser.add_argument("--out", help="the page; report.html in the run folder, or beside several runs")
    add_without(parser)
    arguments = parser.parse_args(argv)

    from vitrail.cli.recipes import load_run_recipe
    from vitrail.report.page import write_report
    from vitrail.report.suite import write_suite_report
    from vitrail.runs.folder import RunFolder
    from vitrail.runs.suite import SuiteFolder

    suites = [path for path in arguments.runs if SuiteFolder.is_one(path)]
    out = output_file(arguments.out, PAGE) if arguments.out else None
    if suites:
        if len(arguments.runs) > 1:
            raise ConfigError(f"{suites[0]} is a suite's folder, which has a page of its own; give it alone")
        print(f"written to {write_suite_report(SuiteFolder(suites[0]), load_run_recipe, out, arguments.without)}")
        return 0
    runs = [RunFolder.open(path) for path in arguments.runs]
    beside = runs[0].report if len(runs) == 1 else runs[0].path.parent / "report.html"
    page = write_report(runs, out or beside, load_run_recipe, without=arguments.without)
    print(f"written to {page}")
    return 0
