"""``vitrail demo``: all steps from data to a page, on scikit-learn's digits."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.cli.arguments import VerbParser
from vitrail.cli.next_steps import print_next
from vitrail.errors import RunError

if TYPE_CHECKING:
    from vitrail.runs.folder import RunFolder

# Recipes of the demo, package data so that an installed vitrail has them.
_RECIPES = Path(__file__).parent.parent / "recipes" / "digits"


# The model that is exported, where it is trained: chosen beforehand, since the best on test images would be by chance.
_EXPORTED = "vit"
# Seconds for the export.
_BUDGET = 30.0


def demo_models() -> list[str]:
    """Names of the demo's models, those of its recipe files."""
    return sorted(file.stem for file in _RECIPES.glob("*.yaml"))


def demo_recipe(name: str) -> dict[str, Any]:
    """Read the recipe of one of the demo's models, as plain values."""
    from vitrail.config.load import read_yaml

    return read_yaml(_RECIPES / f"{name}.yaml")


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


def main(argv: list[str]) -> int:
    """Train, evaluate, compare, explain and export.

    Args:
        argv: Arguments after the verb.
    """
    parser = VerbParser(
        "demo", "Train the models on scikit-learn's digits, evaluate and compare them, export one, write a page."
    )
    parser.add_argument("--dir", default="runs/demo", help="folder for the runs, results.csv and report.html")
    parser.add_argument("--epochs", type=int, help="epochs for every model; each has its own number otherwise")
    parser.add_argument(
        "--models",
        nargs="+",
        choices=demo_models(),
        default=demo_models(),
        metavar="MODEL",
        help="which to train",
    )
    arguments = parser.parse_args(argv)

    from vitrail.cli.recipes import load_run_recipe, make_recipe
    from vitrail.compare.execute import execute
    from vitrail.compare.plan import Run
    from vitrail.compare.pools import LocalPool
    from vitrail.evaluate.results_table import results_table
    from vitrail.files import write_text
    from vitrail.machine import cores
    from vitrail.report.page import write_report
    from vitrail.runs.folder import RunFolder
    from vitrail.runs.suite import SuiteFolder

    start = time.perf_counter()
    folder = Path(arguments.dir)
    plan = []
    for name in arguments.models:
        content = {**demo_recipe(name), "run": {"dir": str(folder / name)}}
        if arguments.epochs is not None:
            content["trainer"]["max_epochs"] = arguments.epochs
        recipe = make_recipe(content)
        RunFolder.create(recipe.run_dir, overwrite=True)
        plan.append(Run(name, name, recipe.run.seed, None, recipe))
    # Models this small gain little from a second thread: side by side, a thread each, they take about 0.6 of the time.
    pool = LocalPool(min(cores(), len(plan)))
    print(
        f"training {len(plan)} models on 1,797 handwritten digits, {pool.size} at a time with {pool.threads} "
        f"{'thread' if pool.threads == 1 else 'threads'} each",
        flush=True,
    )
    failures = execute(plan, SuiteFolder(folder), pool, lambda line: print(line, flush=True))
    if failures:
        raise RunError("; ".join(f"{failure.run.variant} failed: {failure.error}" for failure in failures))
    runs = [run.folder for run in plan]
    table = results_table(runs)
    write_text(folder / "results.csv", table.to_csv(index=False))
    exported = _export(_EXPORTED if _EXPORTED in arguments.models else arguments.models[0], runs)
    page = write_report(runs, folder / "report.html", load_run_recipe, "vitrail demo: handwritten digits")
    print()
    print(table.to_string(index=False))
    print(f"\nexport: {exported}")
    print(f"report: {page} (results: {folder / 'results.csv'}; {time.perf_counter() - start:.0f} s)")
    print_next(
        ["vitrail", "explain", runs[0], "--out", folder / "explanations"],
        ["vitrail", "data", "audit", "--data.source", "folder", "--data.path", "DIR"],
    )
    return 0
