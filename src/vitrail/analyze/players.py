"""Clips of an evaluated run as animations: correct and incorrect ones, beside the maps that explain them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vitrail.analyze.evaluated import Evaluation
from vitrail.analyze.examples import indices_of
from vitrail.analyze.explanations import explain_images, signed_methods
from vitrail.data.dataset import ImageData
from vitrail.explain.methods.registry import METHODS
from vitrail.figures.clips import panes
from vitrail.runs.trained import TrainedModel

# Clips on a page: as many of either kind as there are, the others of the other kind.
MOST_CLIPS = 6
_METHODS = ("rollout", "gradcam")


@dataclass(frozen=True)
class Animated:
    """A clip beside its maps.

    Attributes:
        key: Key of the clip.
        told: The predicted class with its probability, and the true class.
        correct: Whether they are the same.
        frames: Shape ``(T, H, W, 3)``, uint8.
    """

    key: str
    told: str
    correct: bool
    frames: npt.NDArray[np.uint8]


def choose_page_methods(trained: TrainedModel) -> list[str]:
    """Choose the methods of a page that explain a model."""
    return [name for name in _METHODS if METHODS[name].refusal(trained.model) is None]


def animate_examples(
    evaluation: Evaluation, trained: TrainedModel, data: ImageData, methods: Sequence[str]
) -> list[Animated]:
    """Animate the most confident mistakes of a run, then the first clips of each class that are classified correctly.

    Args:
        evaluation: The evaluation.
        trained: The run's model.
        data: The evaluated clips.
        methods: Methods, at least one.

    Raises:
        DataError: A clip is not in the data any more, or cannot be decoded.
    """
    keys, wrong = _choose(evaluation)
    explained = explain_images(
        trained, data, indices_of(data.source, keys), {name: {} for name in methods}, batch_size=1
    )
    found = []
    for one in explained:
        assert one.frames is not None, "the model takes clips"
        maps = {name: e.map[one.row].detach().float().cpu().numpy() for name, e in one.explanations.items()}
        animation = panes(one.frames, maps, signed_methods(maps))
        found.append(Animated(one.key, one.prediction().replace("\n", " "), one.key not in wrong, animation))
    return found


def _choose(evaluation: Evaluation) -> tuple[list[str], set[str]]:
    """Choose keys of clips, incorrect ones first, and return which of them are incorrect."""
    table = evaluation.run.read_predictions(evaluation.name)
    logits, targets = np.stack(list(table["logits"])), np.stack(list(table["target"]))
    correct = ((logits >= 0) == (targets > 0)).all(axis=1) if targets.ndim == 2 else logits.argmax(axis=1) == targets
    confidence: npt.NDArray[Any] = np.abs(logits).min(axis=1) if targets.ndim == 2 else _largest_probability(logits)
    incorrect = table[~correct].assign(confidence=confidence[~correct])
    incorrect = incorrect.sort_values(["confidence", "path"], ascending=[False, True])
    right = table[correct].sort_values("path", kind="stable")
    if targets.ndim == 1:
        turn = right.groupby("target").cumcount()
        right = right.assign(turn=turn).sort_values(["turn", "target", "path"], kind="stable")
    wrong = list(incorrect["path"].head(max(MOST_CLIPS // 2, MOST_CLIPS - len(right))))
    return wrong + list(right["path"].head(MOST_CLIPS - len(wrong))), set(wrong)


def _largest_probability(logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: npt.NDArray[Any] = shares.max(axis=1) / shares.sum(axis=1)
    return result
