"""What TokenLearner buys: accuracy and training iterations a second, with and without, trained in alternation.

The claim (a source article's): a 4-layer ViT on 14 x 14 patches of digits keeps its ~99 % accuracy and trains at
2.75 times the iterations a second (26 -> 72) with 2 tokens learned after the first layer. Both models of the recipe
pair recipes/digits/vit.yaml and vit_token_learner.yaml are trained here in one process, epoch by epoch in turn, so
that a machine that slows down slows both; then the ratio is measured for every layer (1..4) and 2, 8 and 16 tokens.

    python benchmarks/token_learner.py [--epochs 200] [--seeds 3] [--out benchmarks/results]
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from vitrail.bench.speed import time_ratio
from vitrail.cli.recipes import load_run_recipe
from vitrail.config import Recipe
from vitrail.data import open_data
from vitrail.data.augment import build_augmentation
from vitrail.data.normalization import NormalizeStreams
from vitrail.evaluate import statistics
from vitrail.evaluate.metrics import accuracy_interval
from vitrail.files import replacing, write_text
from vitrail.models import create_model
from vitrail.tasks import ClassificationTask, parameter_groups, warmup_cosine
from vitrail.tasks.losses import ClassificationLoss
from vitrail.train.environment import describe_environment

RECIPES = Path(__file__).parent.parent / "recipes" / "digits"
LAYERS = (1, 2, 3, 4)
TOKENS = (2, 8, 16)


class Contender:
    """One model with its optimiser and loader; trains an epoch at a time and keeps its clock."""

    def __init__(self, recipe: Recipe, seed: int) -> None:
        torch.manual_seed(seed)
        settings = recipe.model.settings
        size = (settings["img_size"],) * 2 if isinstance(settings["img_size"], int) else settings["img_size"]
        self.data = open_data(recipe.data, size)
        model = create_model(recipe.model.name, in_chans=1, num_classes=10, **settings)
        augment = build_augmentation(recipe.data.augment, 1, recipe.data.augmentation)
        self.task = ClassificationTask(
            model, NormalizeStreams(self.data.statistics()), augment, ClassificationLoss(recipe.task.label_smoothing)
        )
        self.config = recipe.trainer
        self.loader = self.data.loader("train", shuffle_seed=seed)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(model, self.config.weight_decay), lr=self.config.learning_rate, fused=True
        )
        total = len(self.loader) * self.config.max_epochs
        warmup = round(self.config.warmup_epochs * len(self.loader))
        factor = warmup_cosine(total, warmup, self.config.min_learning_rate / self.config.learning_rate)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)
        self.iterations = 0
        self.seconds = 0.0
        self.epoch_rates: list[float] = []

    def train_epoch(self, epoch: int, most: int | None = None) -> None:
        """All training images once (or ``most`` batches), augmentation and optimiser on the clock."""
        self.task.train()
        self.loader.sampler.set_epoch(epoch)
        start, steps = time.perf_counter(), 0
        for batch in self.loader:
            self.optimizer.zero_grad()
            changed = self.task.prepare(batch)
            self.task.loss(self.task(changed), changed).backward()
            torch.nn.utils.clip_grad_norm_(self.task.parameters(), self.config.gradient_clip)
            self.optimizer.step()
            self.schedule.step()
            steps += 1
            if steps == most:
                break
        seconds = time.perf_counter() - start
        self.iterations, self.seconds = self.iterations + steps, self.seconds + seconds
        self.epoch_rates.append(steps / seconds)

    @torch.no_grad()
    def correct(self, split: str) -> np.ndarray:
        """Whether each image of a split is classified correctly, in order."""
        self.task.eval()
        parts = [(self.task(batch).argmax(1) == batch["target"]).numpy() for batch in self.data.loader(split)]
        return np.concatenate(parts)


def load(name: str, epochs: int) -> Recipe:
    """Return a recipe of the pair, for another number of epochs."""
    recipe = load_run_recipe(RECIPES / f"{name}.yaml")
    trainer = dataclasses.replace(recipe.trainer, max_epochs=epochs, warmup_epochs=min(3, epochs / 4))
    return dataclasses.replace(recipe, trainer=trainer)


def with_learner(base: Recipe, layer: int, tokens: int) -> Recipe:
    """Return the base with a TokenLearner."""
    settings = {**base.model.settings, "token_learner": {"num_tokens": tokens, "layer": layer}}
    return dataclasses.replace(base, model=dataclasses.replace(base.model, settings=settings))


def compare_pair(epochs: int, seeds: int) -> Iterator[tuple[pd.DataFrame, np.ndarray]]:
    """Train the pair in alternation, for each seed; the ratio is the mean over epochs trained side by side.

    Yields the rows of all seeds trained so far, since a seed takes most of an hour; and the difference of the two on
    each test image, shape ``(seeds, N)``.
    """
    rows, differences = [], []
    for seed in range(seeds):
        pair = {name: Contender(load(name, epochs), seed) for name in ("vit", "vit_token_learner")}
        for epoch in range(epochs):
            for name in sorted(pair, reverse=bool(epoch % 2)):
                pair[name].train_epoch(epoch)
        correct = {name: contender.correct("test") for name, contender in pair.items()}
        differences.append(correct["vit_token_learner"].astype(float) - correct["vit"])
        for name, contender in pair.items():
            right, total = int(correct[name].sum()), len(correct[name])
            low, high = accuracy_interval(right, total)
            ratio = time_ratio(1 / np.array(pair["vit"].epoch_rates), 1 / np.array(contender.epoch_rates))
            rows.append(
                {
                    "model": name,
                    "seed": seed,
                    "accuracy": right / total,
                    "accuracy_low": low,
                    "accuracy_high": high,
                    "iterations_per_second": float(np.median(contender.epoch_rates)),
                    "ratio": ratio.ratio,
                    "ratio_low": ratio.low,
                    "ratio_high": ratio.high,
                }
            )
            print(rows[-1], flush=True)
        yield pd.DataFrame(rows), np.stack(differences)


def equality(differences: np.ndarray, margin: float) -> str:
    """State whether the two are as accurate, within a margin."""
    found = statistics.runs_and_images(differences, largest=1.0)
    low, high = found.interval(0.9)
    p = float(found.equivalence_p(margin))
    enough = "" if len(differences) > 1 else ", of this pair of models alone"
    return (
        f"Accuracy with TokenLearner minus without: {100 * float(found.value):.2f} points, 90 % interval "
        f"{100 * float(low):.2f} to {100 * float(high):.2f}{enough}; two one-sided tests of a difference below "
        f"{100 * margin:g} points: p = {p:.2g}, {'equal' if p < 0.05 else 'not shown to be equal'}."
    )


def sweep(steps: int, rounds: int) -> pd.DataFrame:
    """Measure the ratio for every layer and number of tokens, each timed in turn with the base in every round."""
    base = load("vit", 1000)
    contenders = {(layer, tokens): with_learner(base, layer, tokens) for layer in LAYERS for tokens in TOKENS}
    trained = {key: Contender(recipe, 0) for key, recipe in contenders.items()}
    plain = Contender(base, 0)
    ratios: dict[tuple[int, int], list[tuple[float, float]]] = {key: [] for key in trained}
    for round_number in range(rounds + 1):
        for key, contender in trained.items():
            plain.train_epoch(round_number, steps)
            contender.train_epoch(round_number, steps)
            if round_number:  # the first round warms up
                ratios[key].append((1 / plain.epoch_rates[-1], 1 / contender.epoch_rates[-1]))
    rows = []
    for (layer, tokens), values in ratios.items():
        ratio = time_ratio(*zip(*values, strict=True))
        rows.append({"layer": layer, "tokens": tokens, "ratio": ratio.ratio, "low": ratio.low, "high": ratio.high})
    return pd.DataFrame(rows)


def draw(pair: pd.DataFrame, grid: pd.DataFrame, path: Path) -> None:
    """Left: accuracy and speed of the pair; right: the ratio over layer and tokens."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, color in (("vit", "#0072B2"), ("vit_token_learner", "#D55E00")):
        rows = pair[pair["model"] == name]
        error = [rows["accuracy"] - rows["accuracy_low"], rows["accuracy_high"] - rows["accuracy"]]
        left.errorbar(rows["iterations_per_second"], rows["accuracy"], yerr=error, fmt="o", color=color, label=name)
    left.set(xlabel="training iterations / s", ylabel="test accuracy (95 % interval)", title="each point: one seed")
    left.set_xlim(left=0)
    left.legend(frameon=False, loc="lower center")
    for tokens, color in zip(TOKENS, ("#009E73", "#CC79A7", "#E69F00"), strict=True):
        rows = grid[grid["tokens"] == tokens]
        error = [rows["ratio"] - rows["low"], rows["high"] - rows["ratio"]]
        right.errorbar(
            rows["layer"], rows["ratio"], yerr=error, marker="o", capsize=3, color=color, label=f"{tokens} tokens"
        )
    right.axhline(1, color="gray", linewidth=0.8)
    right.axhline(2.75, color="gray", linewidth=0.8, linestyle=":")
    right.text(4, 2.78, "the claim: 2.75", ha="right", fontsize=8, color="gray")
    right.set(xlabel="TokenLearner after layer", ylabel="iterations / s over plain ViT", xticks=LAYERS)
    right.legend(frameon=False)
    # Letters as text, not as outlines: a third of the size.
    with replacing(path) as temporary, plt.rc_context({"svg.fonttype": "none"}):
        figure.savefig(temporary, format="svg")


def markdown(table: pd.DataFrame, digits: int = 3) -> str:
    """Format a table as Markdown."""
    cells = [
        [f"{v:.{digits}f}" if isinstance(v, float) else str(v) for v in row] for row in table.itertuples(index=False)
    ]
    lines = [list(table.columns), ["---"] * len(table.columns), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_results(pair: pd.DataFrame, grid: pd.DataFrame, equal: str, command: str, rounds: str, out: Path) -> None:
    """Write the page, its two tables and its picture."""
    means = pair.groupby("model")[["accuracy", "iterations_per_second", "ratio"]].mean()
    environment = describe_environment(0)
    text = (
        "# TokenLearner: accuracy and speed of training\n\n"
        f"Recorded by `{command}` ({pair['seed'].nunique()} seeds trained) on "
        f"{environment['processor']}, {environment['threads']} threads, torch {environment['packages']['torch']}, "
        f"Python {platform.python_version()}.\n\n"
        "4-layer ViT, 14 x 14 patches of scikit-learn's digits at 28 x 28, batch 32; TokenLearner 1.1, 2 tokens after "
        "layer 1. Both train in one process, an epoch each in turn. The ratio is the mean over epochs of iterations "
        "a second over the plain ViT's in the same round, with its 95 % interval.\n\n"
        f"{markdown(pair, 4)}\n\n{equal}\n\nMeans over seeds:\n\n{markdown(means.reset_index(), 4)}\n\n"
        "## Ratio by layer and number of tokens\n\n"
        f"Mean (and 95 % interval) of {rounds}, each beside the plain ViT.\n\n{markdown(grid, 2)}\n\n"
        "![accuracy and speed](token_learner.svg)\n"
    )
    write_text(out / "token_learner.md", text)
    write_text(out / "token_learner_pair.csv", pair.to_csv(index=False))
    write_text(out / "token_learner_sweep.csv", grid.to_csv(index=False))
    draw(pair, grid, out / "token_learner.svg")
    print(means)
    print(f"written to {out}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5, help="of the sweep over layers and tokens")
    parser.add_argument("--steps", type=int, default=8, help="iterations a round")
    parser.add_argument("--margin", type=float, default=0.01, help="difference of accuracy that counts as equal")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    command = (
        f"python benchmarks/token_learner.py --epochs {arguments.epochs} --seeds {arguments.seeds} "
        f"--rounds {arguments.rounds} --steps {arguments.steps}"
    )
    grid = sweep(arguments.steps, arguments.rounds)
    print(grid.to_string(index=False), flush=True)
    for pair, differences in compare_pair(arguments.epochs, arguments.seeds):
        rounds = f"{arguments.rounds} rounds of {arguments.steps} iterations"
        write_results(pair, grid, equality(differences, arguments.margin), command, rounds, arguments.out)


if __name__ == "__main__":
    main()
