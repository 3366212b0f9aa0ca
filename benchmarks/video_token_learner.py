"""What TokenLearner buys in a ViViT: training iterations a second and accuracy, with and without it.

    .venv/bin/python benchmarks/video_token_learner.py [--rounds 7] [--out FILE]

Training steps (forward, backward, AdamW) of both models are timed in alternation, in processor time of one thread, so
that a machine that slows down slows both. Then both are trained on moving digits, as recipes/moving_digits/vivit.yaml
does it and with more tokens.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from vitrail.bench.speed import Step, Workload, alternate, make_step
from vitrail.cli.recipes import load_run_recipe
from vitrail.evaluate.run import evaluate
from vitrail.files import write_text
from vitrail.machine import cores, processor
from vitrail.models import create_model
from vitrail.train import train

OUT = Path(__file__).parent / "results" / "video_token_learner.md"
RECIPE = Path(__file__).parent.parent / "recipes" / "moving_digits" / "vivit.yaml"
_MEAN = {"class_token": False, "global_pool": "avg", "in_chans": 1, "num_classes": 8}
# Name -> settings of the model, clips of a batch, tokens learned of each slice of time, blocks before it.
CASES: dict[str, tuple[dict[str, Any], int, tuple[tuple[int, int], ...]]] = {
    "16 x 64 x 64, tubelet 2 x 8 x 8, 512 tokens": (
        {"num_frames": 16, "img_size": 64, "tubelet_size": (2, 8, 8), "embed_dim": 128, "depth": 8, "num_heads": 4},
        4,
        ((8, 2), (8, 4), (8, 6)),
    ),
    "the same, of the width and depth that are trained below": (
        {
            "num_frames": 16, "img_size": 64, "tubelet_size": (2, 8, 8), "embed_dim": 64, "depth": 4, "num_heads": 4,
            "mlp_ratio": 2.0,
        },
        32,
        ((8, 1),),
    ),
    "8 x 24 x 24, tubelet 2 x 6 x 6, 64 tokens (the recipe)": (
        {
            "num_frames": 8, "img_size": 24, "tubelet_size": (2, 6, 6), "embed_dim": 64, "depth": 3, "num_heads": 4,
            "mlp_ratio": 2.0,
        },
        64,
        ((4, 1),),
    ),
}  # fmt: skip

# Name -> settings of the recipe, of its TokenLearner, and epochs.
ACCURACY: dict[str, tuple[list[str], str, int]] = {
    "8 x 24 x 24, 64 tokens (the recipe)": ([], "{num_tokens: 4, layer: 1}", 3),
    "16 x 64 x 64, 512 tokens": (
        ["--model.num_frames", "16", "--model.img_size", "64", "--model.tubelet_size", "[2, 8, 8]",
         "--model.depth", "4", "--data.batch_size", "32", "--trainer.learning_rate", "1e-3"],
        "{num_tokens: 8, layer: 1}",
        1,
    ),
}  # fmt: skip


def training_step(settings: dict[str, Any], batch: int) -> Step:
    """Build a training step of a model on random clips."""
    torch.manual_seed(0)
    model = create_model("vivit", **settings, **_MEAN)
    return make_step(model, [torch.randn(batch, *model.streams[0].shape)], Workload("train"))


def measure_accuracy(epochs: int, changes: list[str]) -> tuple[dict[str, Any], float]:
    """Train the recipe with other settings; measures of its test split, and seconds of its epochs."""
    with tempfile.TemporaryDirectory() as folder:
        words = [
            "--run.dir",
            f"{folder}/run",
            "--trainer.max_epochs",
            str(epochs),
            "--run.explain_images",
            "0",
            *changes,
        ]
        recipe = load_run_recipe(RECIPE, words)
        run = train(recipe)
        seconds = float(run.read_metrics()["epoch_seconds"].sum())
        return evaluate(run, load_run_recipe(run.recipe).data)[1], seconds


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--accuracy", nargs="*", choices=ACCURACY, default=list(ACCURACY), help="trainings", metavar="CASE"
    )
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES), help="speeds", metavar="CASE")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "| clips and tubelets | clips a step | tokens of a slice, after block | steps a second without, with | ratio |",
        "|---|---|---|---|---|",
    ]
    for name in arguments.cases:
        settings, batch, learners = CASES[name]
        for tokens, layer in learners:
            learned = settings | {"token_learner": {"num_tokens": tokens, "layer": layer}}
            steps = [training_step(settings, batch), training_step(learned, batch)]
            times = alternate(steps, rounds=arguments.rounds, least=0, clock=time.process_time)
            ratios = [plain / other for plain, other in zip(*times, strict=True)]
            low, _, high = statistics.quantiles(ratios, n=4)
            rates = ", ".join(f"{1 / statistics.median(own):.2f}" for own in times)
            ratio = f"{statistics.median(ratios):.2f} ({low:.2f} to {high:.2f})"
            lines.append(f"| {name} | {batch} | {tokens}, {layer} | {rates} | {ratio} |")
            print(lines[-1], flush=True)
    text = f"""# TokenLearner in a ViViT

`benchmarks/video_token_learner.py` on {processor()}, one thread, torch {torch.__version__}, float32. Training steps in
processor time: medians of {arguments.rounds} alternating rounds (quartiles). The first model has width 128 and 8
blocks, the one that is trained width 64 and 4 blocks; tokens are learned of each of 8 slices of time.

""" + "\n".join(lines)
    if arguments.accuracy:
        torch.set_num_threads(cores())
        text += f"""

Moving digits, one seed, {cores()} threads. The intervals (95 %) are over digits, the groups of the test split.

| clips | TokenLearner | epochs | their time, s | test accuracy |
|---|---|---|---|---|
"""
        for name in arguments.accuracy:
            changes, learner, epochs = ACCURACY[name]
            for kind, own in (("without", []), ("with", ["--model.token_learner", learner])):
                found, seconds = measure_accuracy(epochs, [*changes, *own])
                text += (
                    f"| {name} | {kind} | {epochs} | {seconds:.0f} | {found['accuracy']:.4f} "
                    f"({found['accuracy_low']:.4f} to {found['accuracy_high']:.4f}) |\n"
                )
                print(text.rsplit("\n", 2)[1], flush=True)
    write_text(arguments.out, text.rstrip() + "\n")


if __name__ == "__main__":
    main()
