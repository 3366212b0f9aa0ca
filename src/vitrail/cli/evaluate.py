"""``vitrail evaluate``: measure a trained run."""

from __future__ import annotations

from vitrail.cli.arguments import VerbParser


def main(argv: list[str]) -> int:
    """Evaluate.

    Args:
        argv: Arguments after the verb.
    """
    parser = VerbParser("evaluate", "Measure a trained run on a split of its data, or on other images.")
    parser.add_argument("run", help="the run folder")
    parser.add_argument("--split", choices=("test", "val", "train"), help="which images; test, or val if there is none")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    parser.epilog = "--data.SETTING VALUE changes the data: --data.source folder --data.path OTHER"
    own, rest = _divide(argv)
    arguments = parser.parse_args(own)

    from vitrail.cli.recipes import load_run_recipe
    from vitrail.evaluate.run import evaluate
    from vitrail.runs.folder import RunFolder

    run = RunFolder.open(arguments.run)
    recipe = load_run_recipe(run.recipe)
    changed = load_run_recipe(run.recipe, rest, "vitrail evaluate")
    other = (changed.data.source, changed.data.path) != (recipe.data.source, recipe.data.path)
    folder, metrics = evaluate(run, changed.data, split=arguments.split, other=other, device=arguments.device)
    if arguments.split is None and metrics["split"] != "test" and not other:
        print(f"the data has no test split: measured on {metrics['split']}, which chose the best epoch")
    print(
        f"{run} on {metrics['name']}: accuracy {metrics['accuracy']:.4f} "
        f"(95 % interval {metrics['accuracy_low']:.4f} to {metrics['accuracy_high']:.4f}), "
        f"macro F1 {metrics['f1_macro']:.4f}, {metrics['images']} images"
    )
    print(f"written to {folder}")
    return 0


def _divide(argv: list[str]) -> tuple[list[str], list[str]]:
    """Keep the options of a recipe's data apart from the verb's own."""
    own: list[str] = []
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        if word.startswith("--data."):
            rest.append(word)
            if "=" not in word:
                rest += [value for value in [next(words, None)] if value is not None]
        else:
            own.append(word)
    return own, rest
