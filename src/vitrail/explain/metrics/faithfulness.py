"""Deletion and insertion: the score of a class while relevant pixels are removed or restored.

At each step the same share of pixels is replaced in every stream with a map, in the order of its own map, since the
maps of two streams have no common scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vitrail.explain.capture.forwarding import check_count, check_score, in_batches, score_class, slice_inputs
from vitrail.explain.capture.prepare import Explainable, Images, Target, prepared
from vitrail.explain.methods.baselines import make_baseline
from vitrail.explain.metrics.scoring import Maps, maps_of, rank_pixels, target_of


@dataclass(frozen=True)
class Curve:
    """Score of the class by share of replaced pixels.

    Attributes:
        fractions: Shares of replaced pixels, from 0 to 1, shape ``(S,)``.
        scores: Scores of the class, shape ``(B, S)``.
    """

    fractions: Tensor
    scores: Tensor

    @property
    def area(self) -> Tensor:
        """Area under each curve, shape ``(B,)``, by the trapezoidal rule; between 0 and 1 for probabilities."""
        return torch.trapezoid(self.scores, self.fractions, dim=1)


def deletion(
    model: Explainable,
    images: Images,
    explanation: Maps,
    target: Target = None,
    *,
    steps: int = 20,
    baseline: str = "zero",
    score: str = "probability",
    seed: int = 0,
    batch_size: int = 16,
) -> Curve:
    """Compute the score of the class while pixels are removed, most relevant first; a small area is good.

    Args:
        model: Any model of vitrail, or a trained model.
        images: As for :func:`vitrail.explain.explain`.
        explanation: An explanation, or maps ``(B, H, W)`` by stream.
        target: The class; by default that of the explanation, else the predicted class.
        steps: Number of steps from the whole image to the baseline.
        baseline: Values of removed pixels: "zero" (mean of the data set), "mean" (of the image) or "blur".
        score: "probability" (softmax), "independent" (sigmoid, multi-label) or "logit".
        seed: Seed of the order of tied pixels.
        batch_size: Batch size.

    Raises:
        ConfigError: A setting out of range, or a map of no stream of the model.
        ShapeError: A map of another size than its images.

    Source: Petsiuk et al. 2018, arXiv:1806.07421, section 3.4.
    """
    return _curve(model, images, explanation, target, True, steps, baseline, score, seed, batch_size)


def insertion(
    model: Explainable,
    images: Images,
    explanation: Maps,
    target: Target = None,
    *,
    steps: int = 20,
    baseline: str = "blur",
    score: str = "probability",
    seed: int = 0,
    batch_size: int = 16,
) -> Curve:
    """Compute the score of the class while pixels are restored in a blurred image, most relevant first.

    A large area is good. Arguments, errors and source as for :func:`deletion`.
    """
    return _curve(model, images, explanation, target, False, steps, baseline, score, seed, batch_size)


def _curve(
    model: Explainable,
    images: Images,
    explanation: Maps,
    target: Target,
    delete: bool,
    steps: int,
    baseline: str,
    score: str,
    seed: int,
    batch_size: int,
) -> Curve:
    check_count("steps", steps)
    check_score(score)
    with prepared(model, images, target_of(explanation, target)) as (network, inputs, classes):
        assert classes is not None, "by_class is True"
        maps = maps_of(network, inputs, explanation)
        names = [stream.name for stream in network.streams]
        fractions = torch.linspace(0, 1, steps + 1)
        rows = []
        for part in in_batches(len(classes), batch_size):
            batch = slice_inputs(inputs, part)
            ranks = {name: rank_pixels(one[part], seed) for name, one in maps.items()}
            empty = {name: make_baseline(x, baseline) for name, x in zip(names, batch, strict=False) if x is not None}
            columns = []
            for step in range(steps + 1):
                changed = list(batch)
                for i, (name, x) in enumerate(zip(names, batch, strict=False)):
                    if x is None or name not in ranks:
                        continue
                    replaced = ranks[name] < round(step / steps * ranks[name][0].numel())
                    changed[i] = torch.where(replaced[:, None] == delete, empty[name], x)
                columns.append(score_class(network, changed, classes[part], score))
            rows.append(torch.stack(columns, dim=1))
    scores = torch.cat(rows)
    return Curve(fractions.to(scores.device), scores)
