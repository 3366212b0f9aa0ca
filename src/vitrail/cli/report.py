"""``vitrail report``: the page of one or several runs."""

from __future__ import annotations

from pathlib import Path

from vitrail.cli.arguments import VerbParser


def main(argv: list[str]) -> int:
    """Write the report.

    Args:
        argv: Arguments after the verb.
    """
    parser = VerbParser("report", "Write the self-contained page of one or several evaluated runs.")
    parser.add_argument("runs", nargs="+", help="run folders")
    parser.add_argument("--out", help="the page; report.html in the run folder, or beside several runs")
    arguments = parser.parse_args(argv)

    from vitrail.cli.recipes import load_run_recipe
    from vitrail.report.page import write_report
    from vitrail.runs.folder import RunFolder

    runs = [RunFolder.open(path) for path in arguments.runs]
    beside = runs[0].report if len(runs) == 1 else runs[0].path.parent / "report.html"
    page = write_report(runs, Path(arguments.out) if arguments.out else beside, load_run_recipe)
    print(f"written to {page}")
    return 0
