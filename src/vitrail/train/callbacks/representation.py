"""Quality of the features during pre-training."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from typing_extensions import override

from vitrail.data.dataset import ImageData
from vitrail.layers.modes import evaluation_mode
from vitrail.tasks.pretraining import PretrainingTask
from vitrail.tasks.representation import alignment, collapse, knn_predict, probe_predict, rank_me, spread, uniformity
from vitrail.train.module import seed_from
from vitrail.train.sharding import ShardedStrategy, gathering

MEASURES = (
    "knn_accuracy", "knn_f1_macro", "probe_accuracy", "probe_f1_macro", "rank_me", "alignment", "uniformity",
)  # fmt: skip
# Largest number of measured images: labelled training images, and validation images.
_MOST_LABELLED, _MOST_HELD_OUT = 5000, 2000
# Separates the seeds of the alignment's views from all others.
_VIEWS = 1 << 21


class CollapseWarning(UserWarning):
    """Features of different images are nearly equal."""


class RepresentationMetrics(Callback):
    """Measure the features of images without augmentation at the end of an epoch.

    kNN and a linear probe are fitted to the labelled training images and evaluated on the validation images; they need
    single-label data. RankMe, alignment and uniformity are those of the validation images, or of the training images
    without such a split. Large splits are sampled at even spacing. The first process measures, with all processes that
    hold a shard of the model; random numbers and gradients of training do not change.

    Args:
        data: Images with the splits "labelled" and, optionally, "val".
        views: Augments the streams of a batch, for the alignment.
        every: Epochs between measurements; the last epoch is always measured.
        seed: Seed of the run.

    Attributes:
        values: Measurements of the epoch by the names of MEASURES; empty in other epochs.
    """

    def __init__(self, data: ImageData, views: nn.Module, every: int, seed: int) -> None:
        self.data, self.views, self.every, self.seed = data, views, every, seed
        self.held_out = "val" if "val" in data.splits else "train"
        self.first_spread: float | None = None
        self.values: dict[str, float] = {}

    @property
    @override
    def state_key(self) -> str:
        return "Watching"  # the key in checkpoints

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"first_spread": self.first_spread}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.first_spread = state_dict["first_spread"]

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.first_spread is None and _takes_part(trainer):
            with _evaluating(trainer, pl_module) as task:
                features, _ = self._features(task, self.held_out, _MOST_HELD_OUT, pl_module.device)
                self.first_spread = spread(features)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.values.clear()
        last = trainer.current_epoch + 1 == trainer.max_epochs
        if not _takes_part(trainer) or not (last or (trainer.current_epoch + 1) % self.every == 0):
            return
        with _evaluating(trainer, pl_module) as task:
            values, problem = self._measure(task, pl_module.device)
        if not trainer.is_global_zero:
            return
        self.values |= values
        for name, value in values.items():
            pl_module.log(name, value, rank_zero_only=True)
        if problem is not None:
            warnings.warn(
                f"epoch {trainer.current_epoch + 1}: the model may have collapsed: {problem}; try another "
                "trainer.learning_rate, a larger data.batch_size or another task",
                CollapseWarning,
                stacklevel=2,
            )

    def _measure(self, task: PretrainingTask, device: torch.device) -> tuple[dict[str, float], str | None]:
        features, targets = self._features(task, self.held_out, _MOST_HELD_OUT, device)
        values = {"rank_me": rank_me(features)}
        if len(features) > 1:
            seed_from(self.seed, _VIEWS)
            pair = [self._features(task, self.held_out, _MOST_HELD_OUT, device, self.views)[0] for _ in range(2)]
            values["alignment"] = alignment(*pair)
            values["uniformity"] = uniformity(features)
        one_label = self.data.source.targets.ndim == 1
        if self.held_out == "val" and one_label and len(self.data.splits["labelled"]) > 1:
            known, labels = self._features(task, "labelled", _MOST_LABELLED, device)
            values |= _judge(known.numpy(), labels, features.numpy(), targets)
        return {name: values[name] for name in MEASURES if name in values}, collapse(features, self.first_spread or 0.0)

    def _features(
        self, task: PretrainingTask, split: str, most: int, device: torch.device, views: nn.Module | None = None
    ) -> tuple[Tensor, npt.NDArray[np.int64]]:
        """Compute features ``(N, C)`` and targets of a split's images, or of views of them, on the CPU."""
        chosen = self.data.evenly_spaced(split, most)
        parts: list[Tensor] = []
        size = self.data.config.images_a_step
        for start in range(0, len(chosen), size):
            loaded = self.data.load(chosen[start : start + size])
            streams = {name: loaded[name].to(device) for name in task.normalize if name in loaded}
            parts.append(task.represent(streams if views is None else views(streams)).float().cpu())
        return torch.cat(parts), self.data.source.targets[chosen]


def _takes_part(trainer: Trainer) -> bool:
    return trainer.is_global_zero or isinstance(trainer.strategy, ShardedStrategy)


@contextmanager
def _evaluating(trainer: Trainer, pl_module: LightningModule) -> Iterator[PretrainingTask]:
    """Yield the task in evaluation mode, without gradients, in the run's precision; restore its modes afterwards."""
    task = pl_module.task
    assert isinstance(task, PretrainingTask)
    precision = trainer.precision_plugin.forward_context()
    with evaluation_mode(task), torch.no_grad(), precision, gathering(task, "represent"):
        yield task


def _judge(
    known: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    features: npt.NDArray[np.float32],
    targets: npt.NDArray[np.int64],
) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, f1_score

    predictions = {"knn": knn_predict(known, labels, features)}
    if len(np.unique(labels)) > 1:
        predictions["probe"] = probe_predict(known, labels, features)
    values: dict[str, float] = {}
    for name, prediction in predictions.items():
        values[f"{name}_accuracy"] = float(accuracy_score(targets, prediction))
        values[f"{name}_f1_macro"] = float(f1_score(targets, prediction, average="macro", zero_division=0.0))
    return values
