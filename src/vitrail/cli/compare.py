"""``vitrail compare``: run a suite, and report its results."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vitrail.cli.arguments import VerbParser
from vitrail.cli.next_steps import print_next
from vitrail.cli.report import add_without
from vitrail.config.changes import PREFIXES, split_words
from vitrail.errors import ConfigError, plural

if TYPE_CHECKING:
    from vitrail.compare.plan import Run, State
    from vitrail.compare.pools import Pool


def main(argv: list[str]) -> int:
    """Compare.

    Args:
        argv: Arguments after the verb.
    """
    parser = VerbParser(
        "compare",
        "Train the variants of a suite on several seeds or folds, evaluate them, and compare the results. Finished "
        "runs are not repeated; interrupted ones continue.",
    )
    parser.add_argument("suite", help="the suite's YAML file")
    parser.add_argument("--size", help="one of the sizes in the suite, for example quick or full")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each with its share of the cores")
    parser.add_argument("--plan", action="store_true", help="show the plan and stop")
    parser.add_argument(
        "--list", action="store_true", help="print one command a missing run, for a scheduler, and stop"
    )
    parser.add_argument("--ray", metavar="ADDRESS", help="run on a Ray cluster; local starts one on this machine")
    parser.add_argument("--dir", help="folder for the results, instead of the suite's own")
    parser.add_argument("--runs-dir", metavar="DIR", help="folder of the runs, instead of the suite's own")
    parser.add_argument(
        "--margin", type=float, metavar="SIZE",
        help="largest difference of the metric that counts as equal (0.01: one percentage point); claims of equality "
        "are tested against it",
    )  # fmt: skip
    parser.add_argument("--speed", action="store_true", help="time the variants' models in turn")
    add_without(parser)
    parser.epilog = "--PART.SETTING VALUE changes all variants: --data.path DIR --trainer.max_epochs 2"
    changes, own = split_words(argv, PREFIXES)
    # As the option was once spelled.
    own = [f"--runs-dir{word.removeprefix('--runs_dir')}" if word.startswith("--runs_dir") else word for word in own]
    arguments = parser.parse_args(own)
    if arguments.jobs < 1:
        raise ConfigError(f"--jobs must be at least 1, got {arguments.jobs}")

    from vitrail.cli.recipes import load_run_recipe
    from vitrail.compare.execute import execute, write_recipes
    from vitrail.compare.findings import about_pretraining, unit_of
    from vitrail.compare.plan import commands, plan
    from vitrail.compare.results import tabulate
    from vitrail.compare.suite import load_suite
    from vitrail.compare.timing import add_time_ratios
    from vitrail.compare.write import write_suite
    from vitrail.report.suite import write_suite_report
    from vitrail.runs.suite import SuiteFolder
    from vitrail.runs.suite_columns import table_of_tests

    suite = load_suite(arguments.suite, arguments.size, changes, runs_dir=arguments.runs_dir, out=arguments.dir,
                       margin=arguments.margin)  # fmt: skip
    runs = plan(suite)
    folder = SuiteFolder(suite.dir)
    if arguments.list:
        _print_commands(commands(runs, write_recipes(runs, folder)))
        return 0
    states = {run.task: run.state() for run in runs}
    print(_describe(suite.title, runs, states, arguments.jobs), flush=True)
    for sentence in about_pretraining(suite):
        print(sentence, flush=True)
    if arguments.plan:
        print_next(["vitrail", "compare", *(word for word in argv if word != "--plan")])
        return 0
    failures = []
    if any(state != "done" for state in states.values()):
        pool = _pool(arguments.ray, arguments.jobs)
        failures = execute(runs, folder, pool, lambda line: print(line, flush=True))
    tables = tabulate(suite, runs)
    if suite.speed or arguments.speed:
        tables = add_time_ratios(tables, runs)
    write_suite(suite, runs, tables, failures)
    page = write_suite_report(folder, load_run_recipe, without=arguments.without)
    print()
    if (tests := table_of_tests(tables.summary, unit_of(suite.metric))) is not None:
        print(tests.markdown() + f"\n\n{tests.caption}")
    for sentence in folder.read_facts()["sentences"]:
        print(f"- {sentence}")
    print(f"\nwritten to {folder}: results.csv, summary.csv, pairs.csv, suite.md; page: {page}")
    for failure in failures:
        where = f" (all of it: {failure.log})" if failure.log else ""
        print(f"failed: {failure.run.label}: {failure.error}{where}", file=sys.stderr)
    return 1 if failures else 0


def _pool(ray: str | None, jobs: int) -> Pool:
    import torch

    from vitrail.compare.pools import LocalPool, RayPool

    gpus = torch.cuda.device_count()
    return RayPool(ray, jobs, min(gpus, 1)) if ray else LocalPool(jobs, gpus)


def _describe(title: str, runs: Sequence[Run], states: dict[tuple[str, str], State], jobs: int) -> str:
    from vitrail.cli.tables import format_table
    from vitrail.compare.plan import STATES, expect
    from vitrail.durations import format_duration

    rows = []
    for run in runs:
        state = states[run.task]
        text = STATES[state]
        if state == "resume":
            text += f" (epoch {run.folder.trained_epochs()} of {run.recipe.trainer.max_epochs})"
        rows.append([run.variant, str(run.seed), "" if run.fold is None else str(run.fold), run.identity, text])
    expected = expect(runs, states)
    counts = {name: list(states.values()).count(name) for name in STATES}
    missing = counts["run"] + counts["resume"]
    if missing == 0:
        when = "nothing to train"
    elif expected.seconds is None:
        when = "expected time: known after the first run"
    else:
        at_once = min(jobs, missing)
        when = (
            f"expected time: about {format_duration(expected.seconds / at_once)} of training, from {expected.basis} "
            f"finished {'run' if expected.basis == 1 else 'runs'}; start and evaluation of each come on top"
        )
    table = format_table(["variant", "seed", "fold", "run", "state"], rows)
    parts = ", ".join(f"{number} {STATES[name]}" for name, number in counts.items() if number)
    return f"{title}\n\n{table}\n\n{plural(len(states), 'run')}: {parts}; {when}\n"


def _print_commands(listed: Sequence[tuple[Run, list[str]]]) -> None:
    first = {run.identity for run, _ in listed if run.is_pretraining}
    printed = False
    for run, words in listed:
        if run.needs in first and not printed:
            print("# what follows needs all of the above")
            printed = True
        print(shlex.join(words))
