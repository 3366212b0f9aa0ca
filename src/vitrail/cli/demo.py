"""``vitrail demo``: the whole way, from data to a page, on scikit-learn's digits."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from vitrail.cli.arguments import VerbParser

# With few images, averaging all tokens learns faster than a class token.
_VIT = {"patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 4, "class_token": False, "global_pool": "avg"}
# What the demo trains: the run's name -> the model part of its recipe. A model joins with one line.
MODELS: dict[str, dict[str, Any]] = {
    "vit": {"name": "vit", **_VIT},
    "vit_token_learner": {"name": "vit", **_VIT, "token_learner": {"num_tokens": 8, "layer": 2}},
}
_RECIPE: dict[str, dict[str, Any]] = {
    "data": {"source": "digits", "augment": "light", "batch_size": 32},
    "trainer": {"max_epochs": 40, "learning_rate": 4e-3, "warmup_epochs": 3},
}


def main(argv: list[str]) -> int:
    """Train, evaluate, compare and explain.

    Args:
        argv: Arguments after the verb.
    """
    parser = VerbParser("demo", "Train the models on scikit-learn's digits, evaluate and compare them, write a page.")
    parser.add_argument("--dir", default="runs/demo", help="folder for the runs, results.csv and report.html")
    parser.add_argument("--epochs", type=int, default=_RECIPE["trainer"]["max_epochs"], help="epochs a model")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS), help="which to train")
    arguments = parser.parse_args(argv)

    from vitrail.cli.recipes import load_run_recipe, make_recipe
    from vitrail.evaluate.run import evaluate
    from vitrail.evaluate.table import results_table
    from vitrail.files import write_text
    from vitrail.report.page import write_report
    from vitrail.train.fit import train

    start = time.perf_counter()
    folder = Path(arguments.dir)
    runs = []
    for number, name in enumerate(arguments.models, start=1):
        print(f"[{number}/{len(arguments.models)}] training {name} on 1,797 handwritten digits ...", flush=True)
        recipe = make_recipe(
            {
                "data": _RECIPE["data"],
                "model": {"img_size": 20, **MODELS[name]},
                "trainer": {**_RECIPE["trainer"], "max_epochs": arguments.epochs},
                "run": {"dir": str(folder / name), "overwrite": True},
            }
        )
        run = train(recipe)
        _, metrics = evaluate(run, recipe.data)
        print(
            f"      test accuracy {metrics['accuracy']:.4f} after {time.perf_counter() - start:.0f} s",
            flush=True,
        )
        runs.append(run)
    table = results_table(runs)
    write_text(folder / "results.csv", table.to_csv(index=False))
    page = write_report(runs, folder / "report.html", load_run_recipe, "vitrail demo: handwritten digits")
    print()
    print(table.to_string(index=False))
    print(f"\nreport: {page} (results: {folder / 'results.csv'}; {time.perf_counter() - start:.0f} s)")
    return 0
