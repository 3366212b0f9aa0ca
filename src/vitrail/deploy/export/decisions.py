"""Decisions of an export: temperature, conformal sets and out-of-distribution p-values, fitted on its own outputs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import logsumexp
from torch import Tensor, nn
from torch.nn import functional as F

from vitrail.bootstrap import Doubles
from vitrail.errors import DataError, plural
from vitrail.evaluate.calibration import MAX_TEMPERATURE, MIN_TEMPERATURE, fit_temperature
from vitrail.evaluate.conformal import prediction_sets
from vitrail.evaluate.out_of_distribution import check_outputs, fit_mahalanobis

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

ALPHA = 0.1
# Outputs that jump where others, which are compared, pass a threshold.
STEPS = ("set", "ood_p_value")
# Probabilities that are equal up to rounding in float32; a class at the threshold belongs to the set.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Reference:
    """Reference of the out-of-distribution score, which is higher for images that are further away.

    "mahalanobis": squared Mahalanobis distance of the embedding to the nearest class mean of the training images, with
    the shared covariance. "energy": minus the log-sum-exp of the logits (multi-label: minus the sum of log(1 + exp)).

    Attributes:
        kind: The score.
        scores: Scores of the validation images, ascending, shape ``(n,)``.
        center: Mean of the class means, shape ``(C,)``; subtracted first, for precision in float32. Empty for "energy".
        whitening: Map to coordinates in which the covariance is the identity, shape ``(C, C)``.
        means: Class means in these coordinates, shape ``(M, C)``.
    """

    kind: Literal["mahalanobis", "energy"]
    scores: Floats
    center: Floats
    whitening: Floats
    means: Floats


@dataclass(frozen=True)
class Decisions:
    """Fitted values of an export's decisions.

    Attributes:
        multi_label: Whether an image has any number of labels.
        temperature: Divides the logits of probabilities; 1 where none could be fitted.
        alpha: Miscoverage rate of the sets; None if multi-label.
        least_probability: Least probability, at temperature 1, of the classes of a set; 0: all classes. None if
            multi-label, where the set holds the labels with a probability of at least 0.5.
        reference: Reference of the out-of-distribution score.
        notes: Decisions that could not be fitted, with the reason.
    """

    multi_label: bool
    temperature: float
    alpha: float | None
    least_probability: float | None
    reference: Reference
    notes: tuple[str, ...]

    def with_scores(self, scores: Floats) -> Decisions:
        """Replace the reference's scores by those that the engine computes for the validation images.

        An engine in bf16 rounds the products of the distance, which shifts p-values by some percent otherwise.

        Args:
            scores: The engine's ``ood_score``, shape ``(n,)``.

        Raises:
            DataError: Another number of scores, or scores that are not finite.
        """
        if scores.shape != self.reference.scores.shape or not np.isfinite(scores).all():
            n = len(self.reference.scores)
            raise DataError(f"{plural(n, 'finite score')} of the validation images needed, got shape {scores.shape}")
        return replace(self, reference=replace(self.reference, scores=np.sort(scores).astype(np.float32)))

    def describe(self) -> dict[str, Any]:
        """Describe the decisions, for export.json."""
        return {
            "temperature": self.temperature,
            "set": {"method": "lac", "alpha": self.alpha, "least_probability_at_temperature_1": self.least_probability}
            if not self.multi_label
            else {"method": "probability of at least 0.5"},
            "ood": {"score": self.reference.kind, "reference_images": len(self.reference.scores)},
            "notes": list(self.notes),
        }


def fit_decisions(
    logits: Floats,
    targets: Ints,
    embeddings: Floats,
    train: tuple[Floats, Ints] | None = None,
    alpha: float = ALPHA,
) -> Decisions:
    """Fit the decisions of an export.

    Sets apply to logits without temperature: the conformal guarantee needs scores that were fixed before the
    calibration images are used, which a temperature fitted on them is not.

    Args:
        logits: The export's logits of the validation images, shape ``(n, K)``.
        targets: Their classes ``(n,)``, or labels ``(n, K)``.
        embeddings: Their embeddings, shape ``(n, C)``.
        train: The export's embeddings ``(m, C)`` of training images, and their targets, for the Mahalanobis distance;
            None scores by energy.
        alpha: Miscoverage rate of the sets.

    Raises:
        ConfigError: Alpha out of range.
        DataError: No images, outputs that are not finite, or another number or size of embeddings.

    Source: Guo et al. 2017, arXiv:1706.04599 (temperature); Sadinle et al. 2019, J. Am. Stat. Assoc. 114, 223-234
    (sets); Lee et al. 2018, arXiv:1807.03888 (Mahalanobis); Bates et al. 2023, Ann. Stat. 51, 149-178 (p-values).
    """
    check_outputs(logits, embeddings, "validation images of the export")
    notes = []
    temperature = fit_temperature(logits, targets)
    if temperature is None:
        notes.append(
            f"no temperature in {MIN_TEMPERATURE}..{MAX_TEMPERATURE} minimises the log-loss of the "
            f"{plural(len(logits), 'validation image')}; probabilities are those of the model"
        )
    multi_label = targets.ndim == 2
    least = None
    if not multi_label:
        threshold = prediction_sets(logits, (logits, targets), alpha, "lac")[1]
        least = max(0.0, 1 - threshold - _ROUNDING)
        if np.isinf(threshold):
            needed = int(np.ceil(1 / alpha - 1 - 1e-9))
            notes.append(
                f"sets hold all classes: a coverage of {1 - alpha:.0%} needs at least "
                f"{plural(needed, 'validation image')}, there are {len(logits)}"
            )
    reference = _energy(logits, multi_label) if train is None else _mahalanobis(embeddings, *train)
    return Decisions(
        multi_label, 1.0 if temperature is None else temperature, None if multi_label else alpha, least, reference,
        tuple(notes),
    )  # fmt: skip


def _energy(logits: Floats, multi_label: bool) -> Reference:
    wide = logits.astype(np.float64)
    scores: Doubles = -(np.logaddexp(0, wide).sum(axis=1) if multi_label else logsumexp(wide, axis=1))
    none = np.zeros(0, np.float32)
    return Reference("energy", np.sort(scores).astype(np.float32), none, none, none)


def _mahalanobis(embeddings: Floats, train: Floats, targets: Ints) -> Reference:
    if not len(train) or train.shape[1] != embeddings.shape[1] or not np.isfinite(train).all():
        raise DataError(
            f"embeddings of training images must be finite, of {embeddings.shape[1]} dimensions and at least one, got "
            f"shape {train.shape}"
        )
    fitted = fit_mahalanobis(train, targets)
    center = fitted.means.mean(axis=0)
    whitening = np.linalg.cholesky(fitted.precision)
    arrays = (np.sort(fitted.distances(embeddings)), center, whitening, (fitted.means - center) @ whitening)
    return Reference("mahalanobis", *(x.astype(np.float32) for x in arrays))


class DecisionOutputs(nn.Module):
    """Compute decisions in the exported graph.

    Args:
        decisions: Fitted values.
    """

    scores: Tensor
    center: Tensor
    whitening: Tensor
    means: Tensor

    def __init__(self, decisions: Decisions) -> None:
        super().__init__()
        self.multi_label, self.temperature = decisions.multi_label, decisions.temperature
        self.least_probability = decisions.least_probability
        self.kind = decisions.reference.kind
        # torch.export.save cannot write empty tensors (2.13), so that those of the distance stay out of the energy.
        for name in ("scores",) if self.kind == "energy" else ("scores", "center", "whitening", "means"):
            self.register_buffer(name, torch.from_numpy(getattr(decisions.reference, name)))

    def forward(self, logits: Tensor, embedding: Tensor) -> dict[str, Tensor]:
        """Decide.

        Args:
            logits: Shape ``(B, K)``.
            embedding: Shape ``(B, C)``.

        Returns:
            ``probabilities`` ``(B, K)``; ``set`` (membership of each class) ``(B, K)``; ``ood_score`` and
            ``ood_p_value`` ``(B,)``: the share of validation images that are at least as far away, the image itself
            counted among them.
        """
        score = self._score(logits, embedding)
        further = (self.scores >= score[:, None]).to(score.dtype).sum(dim=1)
        scaled = logits / self.temperature
        return {
            "probabilities": scaled.sigmoid() if self.multi_label else scaled.softmax(dim=1),
            "set": self._set(logits),
            "ood_score": score,
            "ood_p_value": (further + 1) / (self.scores.shape[0] + 1),
        }

    def _set(self, logits: Tensor) -> Tensor:
        if self.least_probability is None:
            return logits >= 0
        return logits.softmax(dim=1) >= self.least_probability

    def _score(self, logits: Tensor, embedding: Tensor) -> Tensor:
        if self.kind == "energy":
            return -(F.softplus(logits).sum(dim=1) if self.multi_label else logits.logsumexp(dim=1))
        x = (embedding - self.center) @ self.whitening
        squares = x.square().sum(dim=1, keepdim=True) + self.means.square().sum(dim=1)
        return (squares - 2 * x @ self.means.T).amin(dim=1).clamp_min(0)
