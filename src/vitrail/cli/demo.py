"""``vitrail demo``: all steps from data to a page, on scikit-learn's digits; on clips and point clouds too."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vitrail.cli.arguments import VerbParser
from vitrail.cli.next_steps import print_next
from vitrail.errors import RunError, plural

if TYPE_CHECKING:
    from vitrail.runs.folder import RunFolder

# Recipes of the demo, package data so that an installed vitrail has them: a folder for each set.
_RECIPES = Path(__file__).parent.parent / "recipes"


class DemoSet(NamedTuple):
    """Inputs that the demo trains on.

    Attributes:
        name: Folder of its recipes.
        inputs: Description of the inputs, for the line at the beginning.
        exported: Model that is exported, where it is trained: chosen beforehand, since the best on test images would
            be by chance.
    """

    name: str
    inputs: str
    exported: str


_DIGITS = DemoSet("digits", "1,797 handwritten digits", "vit")
_OTHERS = (
    DemoSet("moving_digits", "14,376 clips of digits that move in eight directions", "vivit"),
    DemoSet("solids", "1,200 point clouds of solids", "vnt"),
)
# Seconds for conversion, measurements and quantisation: enough for OpenVINO and ONNX.
_BUDGET = 25.0


class _Done(NamedTuple):
    """Results of a data set: evaluated runs, the outcome of the export in words, the page, seconds."""

    runs: list[RunFolder]
    exported: str
    page: Path
    seconds: float


def demo_models(data: str = _DIGITS.name) -> list[str]:
    """Return the names of the demo's models on a data set, those of its recipe files."""
    return sorted(file.stem for file in (_RECIPES / data).glob("*.yaml"))


def demo_recipe(name: str, data: str = _DIGITS.name) -> dict[str, Any]:
    """Read the recipe of one of the demo's models, as plain values."""
    from vitrail.config.load import read_yaml

    return read_yaml(_RECIPES / data / f"{name}.yaml")


def _export(name: str, runs: Sequence[RunFolder]) -> str:
    """Export a run into its folder; return the outcome in words."""
    from vitrail.deploy.export import export

    run = next(run for run in runs if run.name == name)
    print(f"exporting {name}", flush=True)
    try:
        record = export(run, budget=_BUDGET).export.record
    except RunError as error:  # such as an engine that is slower than the run, on this machine
        return f"none of {name}: {error}"
    return f"{run.export} ({name} as {record['engine']} {record['precision']})"


def _run_set(own: DemoSet, models: Sequence[str], folder: Path, epochs: int | None, page: str) -> _Done:
    """Train, evaluate, export and report models on a set."""
    from vitrail.cli.recipes import load_run_recipe, make_recipe
    from vitrail.compare.execute import execute
    from vitrail.compare.plan import Run
    from vitrail.compare.pools import LocalPool
    from vitrail.machine import cores
    from vitrail.report.page import write_report
    from vitrail.runs.folder import RunFolder
    from vitrail.runs.suite import SuiteFolder

    start = time.perf_counter()
    plan = []
    for name in models:
        content = {**demo_recipe(name, own.name), "run": {"dir": str(folder / name)}}
        if epochs is not None:
            content["trainer"]["max_epochs"] = epochs
        recipe = make_recipe(content)
        RunFolder.create(recipe.run_dir, overwrite=True)
        plan.append(Run(name, name, recipe.run.seed, None, recipe))
    # Models this small gain little from a second thread: side by side, a thread each, they take about 0.6 of the time.
    pool = LocalPool(min(cores(), len(plan)))
    print(
        f"training {plural(len(plan), 'model')} on {own.inputs}, {pool.size} at a time with "
        f"{plural(pool.threads, 'thread')} each",
        flush=True,
    )
    failures = execute(plan, SuiteFolder(folder), pool, lambda line: print(line, flush=True))
    if failures:
        raise RunError("; ".join(f"{failure.run.variant} failed: {failure.error}" for failure in failures))
    runs = [run.folder for run in plan]
    exported = _export(own.exported if own.exported in models else models[0], runs)
    written = write_report(runs, folder / page, load_run_recipe, f"vitrail demo: {own.inputs}")
    return _Done(runs, exported, written, time.perf_counter() - start)


def _parser() -> VerbParser:
    parser = VerbParser(
        "demo",
        "Train the models on scikit-learn's digits, evaluate and compare them, export one, write a page. With --all "
        "the same for clips (a ViViT on moving digits) and for point clouds (a vnt on solids), one after another. "
        "All data are made here; the time of each set is printed at the end.",
    )
    parser.add_argument("--dir", default="runs/demo", help="folder for the runs, results.csv and report.html")
    parser.add_argument("--epochs", type=int, help="epochs for every model; each has its own number otherwise")
    parser.add_argument(
        "--models",
        nargs="+",
        choices=demo_models(),
        default=demo_models(),
        metavar="MODEL",
        help=f"models to train on digits: {', '.join(demo_models())}; all if not given",
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="also train, evaluate and export a model of clips (page moving_digits.html) and one of point clouds "
        "(solids.html); results.csv then has all models, with their data",
    )
    return parser


def main(argv: list[str]) -> int:
    """Train, evaluate, compare, explain and export.

    Args:
        argv: Arguments after the verb.
    """
    arguments = _parser().parse_args(argv)

    from vitrail.evaluate.results_table import results_table
    from vitrail.files import write_text

    folder = Path(arguments.dir)
    done = {_DIGITS.name: _run_set(_DIGITS, arguments.models, folder, arguments.epochs, "report.html")}
    for own in _OTHERS if arguments.all else ():
        done[own.name] = _run_set(own, demo_models(own.name), folder, arguments.epochs, f"{own.name}.html")
    table = results_table([run for one in done.values() for run in one.runs])
    if arguments.all:
        table.insert(0, "data", [name for name, one in done.items() for _ in one.runs])
    write_text(folder / "results.csv", table.to_csv(index=False))
    print()
    print(table.to_string(index=False))
    print()
    for one in done.values():
        print(f"export: {one.exported}")
    for name, one in done.items():
        print(f"report: {one.page} ({name}, {one.seconds:.0f} s)")
    print(f"results: {folder / 'results.csv'} ({sum(one.seconds for one in done.values()):.0f} s in all)")
    print_next(
        ["vitrail", "explain", done[_DIGITS.name].runs[0], "--out", folder / "explanations"],
        ["vitrail", "data", "audit", "--data.source", "folder", "--data.path", "DIR"],
    )
    return 0
