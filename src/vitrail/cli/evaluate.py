"""``vitrail evaluate``: measure a trained run."""

from __future__ import annotations

import os

from vitrail.cli.arguments import VerbParser
from vitrail.errors import ConfigError

_CHANGEABLE = (
    "source", "path", "spectral_path", "labels", "batch_size", "num_workers", "on_band_mismatch", "on_unreadable",
)  # fmt: skip


def main(argv: list[str]) -> int:
    """Evaluate.

    Args:
        argv: Arguments after the verb.
    """
    parser = VerbParser("evaluate", "Measure a trained run on a split of its data, or on other images.")
    parser.add_argument("run", help="the run folder")
    parser.add_argument("--split", choices=("test", "val", "train"), help="which images; test, or val if there is none")
    parser.add_argument(
        "--tta",
        choices=("none", "mirror", "flips", "turns", "crops"),
        default="none",
        help="average the probabilities over views of each image",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    parser.epilog = "--data.SETTING VALUE changes the data: --data.source folder --data.path OTHER"
    own, rest = _divide(argv)
    arguments = parser.parse_args(own)

    from vitrail.cli.recipes import load_run_recipe
    from vitrail.evaluate.run import evaluate
    from vitrail.runs.folder import RunFolder

    for word in rest:
        option = word.split("=")[0].removeprefix("--data.")
        if word.startswith("--data.") and option not in _CHANGEABLE:
            raise ConfigError(
                f"--data.{option} cannot be changed in an evaluation: images are prepared and split as in training; "
                f"only {', '.join(_CHANGEABLE)} can"
            )
    run = RunFolder.open(arguments.run)
    recipe = load_run_recipe(run.recipe)
    changed = load_run_recipe(run.recipe, rest, "vitrail evaluate")
    other = changed.data.source != recipe.data.source or _place(changed.data.path) != _place(recipe.data.path)
    folder, metrics = evaluate(
        run, changed.data, split=arguments.split, other=other, device=arguments.device, tta=arguments.tta
    )
    if arguments.split is None and metrics["split"] != "test" and not other:
        print(f"the data has no test split: measured on {metrics['split']}, which chose the best epoch")
    right = "all labels right" if "map" in metrics else "accuracy"
    print(
        f"{run} on {metrics['name']}: {right} {metrics['accuracy']:.4f} "
        f"(95 % interval {metrics['accuracy_low']:.4f} to {metrics['accuracy_high']:.4f}), "
        + (f"mean average precision {metrics['map']:.4f}, " if "map" in metrics else "")
        + f"macro F1 {metrics['f1_macro']:.4f}, {metrics['images']} images"
    )
    if metrics["unreadable"]:
        print(f"{len(metrics['unreadable'])} files cannot be read and were left out; metrics.json lists them")
    print(f"written to {folder}")
    return 0


def _place(path: str | None) -> str | None:
    return None if path is None else os.path.realpath(path)


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
