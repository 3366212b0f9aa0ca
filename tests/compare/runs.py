"""Run folders as training and evaluation leave them, made in milliseconds."""

import numpy as np
import pandas as pd

from vitrail.config.load import dump_recipe
from vitrail.evaluate.metrics import classification_metrics
from vitrail.evaluate.saved_predictions import Intervals, SavedPredictions, evaluate_saved, origin_of

CLASSES = ["a", "b", "c"]


def finish(
    run, quality=0.0, *, images=60, seconds=30.0, evaluated=True, finished=True, names=None, targets=None, whole=False
):
    """Write the folder of a planned run.

    Args:
        run: A planned run.
        quality: How far the right class's logit lies above the others.
        images: How many test images.
        seconds: Of an epoch.
        evaluated: Whether it has been.
        finished: Whether training came to its end; if not, one epoch is done.
        names: Of the images.
        targets: Their classes.
        whole: Whether the evaluation has all of its files, which pages draw; tables need the measures alone.
    """
    folder = run.folder
    folder.path.mkdir(parents=True)
    folder.recipe.write_text(dump_recipe(run.recipe))
    environment = {"vitrail": "0.1.0", "git_commit": None, "images": {"number": 10 * images, "fingerprint": "x"}}
    folder.write_json(folder.environment, environment | ({"finished": "2026-01-01T00:00:00"} if finished else {}))
    epochs = run.recipe.trainer.max_epochs if finished else 1
    rng = np.random.default_rng(int(run.identity, 16))
    value = np.sort(rng.random(epochs))
    rows = pd.DataFrame({"epoch": range(epochs), "train_loss": 1 - value, "val_loss": 1 - value,
                         "val_accuracy": value, "val_f1_macro": value, "epoch_seconds": seconds})  # fmt: skip
    folder.write_metrics(rows.to_dict("records"))
    folder.write_json(folder.card, {"classes": CLASSES, "epoch": epochs - 1})
    if not (finished and evaluated):
        return
    # Images are as hard for every run; which logits come out is each run's own.
    shared = np.random.default_rng(0)
    targets = shared.integers(0, 3, images) if targets is None else targets
    ease = shared.normal(0, 1, images)
    logits = rng.normal(size=(images, 3)).astype(np.float32)
    logits[np.arange(images), targets] += quality + ease
    order = rng.permutation(images)
    names = [f"{i:03}.png" for i in range(images)] if names is None else names
    folder.write_predictions("test", order.tolist(), [names[i] for i in order], targets[order].tolist(), logits[order],
                             logits[order])  # fmt: skip
    if whole:
        _, metrics = evaluate_saved(folder, intervals=Intervals(resamples=100))
    else:
        saved = SavedPredictions.read(folder, "test")
        metrics = classification_metrics(saved.logits, saved.targets, CLASSES) | origin_of(saved)
    efficiency = {"parameters": 1000, "gmacs": 0.5, "inference_images_per_second": 100.0}
    efficiency |= {"batch_size": 64, "device": "cpu"}
    metrics |= {"split": "test", "efficiency": efficiency}
    folder.write_json(folder.evaluation / "metrics.json", metrics)
