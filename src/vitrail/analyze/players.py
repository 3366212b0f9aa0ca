"""Clips of an evaluated run as animations: correct and incorrect ones, beside the maps that explain them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitrail.analyze.evaluated import Evaluation
from vitrail.analyze.examples import in_turns, true_and_predicted
from vitrail.analyze.explanations import explain_images, signed_methods
from vitrail.data.dataset import ImageData
from vitrail.evaluate.selective import confidence_and_correct
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
        prediction: The predicted class with its probability, by all views of the clip, and the true class.
        correct: Whether they are the same.
        frames: Shape ``(T, H, W, 3)``, uint8.
    """

    key: str
    prediction: str
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
    chosen = _choose(evaluation)
    indices = data.source.indices_of(list(chosen["path"]))
    found = []
    for index, row in zip(indices, chosen.to_dict("records"), strict=True):
        # Of the class that all views of the clip predict together, which the clip in the middle need not.
        target = int(np.argmax(row["logits"]))
        (one,) = explain_images(trained, data, [index], {name: {} for name in methods}, target=target)
        assert one.frames is not None, "the model takes clips"
        true, predicted = true_and_predicted(trained, row["target"], row["logits"])
        text = f"{predicted} {row['confidence']:.0%} " + ("(correct)" if row["correct"] else f"(true: {true})")
        animation = panes(one.frames, {name: one.values(name) for name in methods}, signed_methods(methods))
        found.append(Animated(one.key, text, bool(row["correct"]), animation))
    return found


def _choose(evaluation: Evaluation) -> pd.DataFrame:
    """Choose predictions, the most confident incorrect ones first; with the columns "confidence" and "correct"."""
    table = evaluation.run.read_predictions(evaluation.name)
    logits, targets = np.stack(list(table["logits"])), np.stack(list(table["target"]))
    confidence, correct = confidence_and_correct(logits, targets)
    table = table.assign(confidence=confidence, correct=correct)
    wrong = table[~correct].sort_values(["confidence", "path"], ascending=[False, True])
    right = in_turns(table[correct], targets.ndim > 1)
    wrong = wrong.head(max(MOST_CLIPS // 2, MOST_CLIPS - len(right)))
    return pd.concat([wrong, right.head(MOST_CLIPS - len(wrong))])
