"""Band importance: drop of a class's score when a band is replaced."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor

from vitrail.bootstrap import NOT_SHOWN, bootstrap_mean
from vitrail.errors import ConfigError
from vitrail.explain.capture.forwarding import (
    check_count,
    check_score,
    in_batches,
    inputs_by_stream,
    score_class,
    slice_inputs,
)
from vitrail.explain.capture.prepare import Explainable, Images, Target, prepared
from vitrail.explain.methods.input_gradients import integrated_gradients
from vitrail.models.base import VisionModel

APPROACHES = ("zero", "mean", "noise", "permutation", "integrated_gradients")


@dataclass(frozen=True)
class BandScores:
    """Importance of the bands of one stream.

    Attributes:
        scores: Contribution of each band to the class's score, by image, shape ``(B, C)``.
        mean: Mean over the images, shape ``(C,)``.
        low: Lower bound of the mean's interval, shape ``(C,)``; NaN for a single image.
        high: Upper bound, shape ``(C,)``.
        p: Two-sided p-values of the paired t-test, corrected for all bands of all streams (Holm), shape ``(C,)``; NaN
            for a single image.
    """

    scores: Tensor
    mean: Tensor
    low: Tensor
    high: Tensor
    p: Tensor

    def verdicts(self, alpha: float = 0.05) -> list[str]:
        """Test each band for a contribution to the score.

        Args:
            alpha: Family-wise error rate.

        Returns:
            "needed" (the score drops without it), "against" (the score rises without it) or "not shown".
        """
        pairs = zip(self.mean.tolist(), self.p.tolist(), strict=True)
        return [NOT_SHOWN if not p < alpha else "needed" if mean > 0 else "against" for mean, p in pairs]


@dataclass(frozen=True)
class BandImportance:
    """Importance of the bands of all streams.

    Attributes:
        streams: Stream -> importance of its bands.
        by: Approach, one of :data:`APPROACHES`.
        target: Class of each image, shape ``(B,)``.
    """

    streams: dict[str, BandScores]
    by: str
    target: Tensor

    def __getitem__(self, stream: str) -> BandScores:
        if stream not in self.streams:
            raise ConfigError(f"no bands of a stream {stream!r}; streams: {', '.join(self.streams)}")
        return self.streams[stream]


def band_importance(
    model: Explainable,
    images: Images,
    target: Target = None,
    by: str = "mean",
    *,
    score: str = "logit",
    repeats: int = 5,
    steps: int = 32,
    seed: int = 0,
    batch_size: int = 16,
    confidence: float = 0.95,
    resamples: int = 2000,
) -> BandImportance:
    """Compute the contribution of each band to the score of a class; negative for evidence against it.

    Of redundant bands, each is unimportant when it alone is replaced. Integrated gradients change all bands together
    and divide the importance among them.

    Args:
        model: Any model of vitrail.
        images: As for :func:`vitrail.explain.explain`.
        target: The class, one for all images or one for each; by default the predicted class.
        by: Replacement of the band: its mean over the data set ("zero", after normalisation), its mean over the image
            ("mean": importance of its pattern), noise of the same mean and standard deviation ("noise"), or the same
            band of another image ("permutation", at least two images). "integrated_gradients" is the band's part of
            integrated gradients from "zero"; the parts of all bands sum to the difference of the logits.
        score: "logit", "probability" (softmax) or "independent" (sigmoid, multi-label). Integrated gradients need
            "logit".
        repeats: Number of samples of "noise" and "permutation", which are averaged.
        steps: Steps of integrated gradients.
        seed: Seed of the samples and of the bootstrap.
        batch_size: Batch size.
        confidence: Confidence level of the intervals over images.
        resamples: Number of bootstrap resamples.

    Raises:
        ConfigError: A setting out of range, an unknown replacement or class, or a permutation of one image.
        ShapeError: Images of a shape that the model does not accept.
    """
    if by not in APPROACHES:
        raise ConfigError(f"by must be one of {', '.join(APPROACHES)}, got {by!r}")
    check_score(score)
    check_count("repeats", repeats)
    if by == "integrated_gradients" and score != "logit":
        raise ConfigError(f"by 'integrated_gradients' needs score 'logit', got {score!r}")
    with prepared(model, images, target) as (network, inputs, classes):
        assert classes is not None, "by_class is True"
        if by == "integrated_gradients":
            parts = integrated_gradients(network, inputs, classes, steps, "zero", batch_size)
            found = {name: part.sum(dim=(2, 3)) for name, part in parts.items()}
        else:
            if by == "permutation" and len(classes) < 2:
                raise ConfigError("by 'permutation' needs at least 2 images, got 1")
            times = repeats if by in ("noise", "permutation") else 1
            found = _by_replacing(network, inputs, classes, by, score, times, seed, batch_size)
    streams = {}
    corrected = _corrected_p(found)
    for name, scores in found.items():
        interval = bootstrap_mean(scores.double().cpu().numpy(), confidence, resamples, seed)
        mean, low, high = (torch.from_numpy(np.asarray(end)).to(scores) for end in interval)
        streams[name] = BandScores(scores, mean, low, high, corrected[name])
    return BandImportance(streams, by, classes)


def _corrected_p(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Compute Holm-corrected p-values of each band's drops, paired by image, by stream."""
    scores = np.concatenate([x.double().cpu().numpy() for x in found.values()], axis=1)
    count, bands = scores.shape
    p = np.full(bands, np.nan)
    if count > 1:
        mean, error = scores.mean(axis=0), scores.std(axis=0, ddof=1) / np.sqrt(count)
        # Drops within rounding, and drops without variance, are not significant.
        testable = (error > 0) & (np.abs(mean) > 1e-5 * np.abs(scores).max())
        t = np.divide(mean, error, out=np.zeros(bands), where=testable)
        raw = 2 * student.sf(np.abs(t), count - 1)
        order = np.argsort(raw, kind="stable")
        p[order] = np.minimum(np.maximum.accumulate(raw[order] * np.arange(bands, 0, -1)), 1)
    parts = np.split(p, np.cumsum([x.shape[1] for x in found.values()])[:-1])
    return {name: torch.from_numpy(part).to(x) for (name, x), part in zip(found.items(), parts, strict=True)}


def _by_replacing(
    model: VisionModel,
    inputs: tuple[Tensor | None, ...],
    classes: Tensor,
    by: str,
    score: str,
    times: int,
    seed: int,
    batch_size: int,
) -> dict[str, Tensor]:
    """Compute the drops of the score, stream -> shape ``(B, C)``."""
    images = inputs_by_stream(model, inputs)
    drops = {name: torch.zeros(len(x), x.shape[1], device=x.device) for name, x in images.items()}
    positions = {stream.name: i for i, stream in enumerate(model.streams)}
    generator = torch.Generator().manual_seed(seed)
    for _ in range(times):
        # A cyclic shift of a random order is a permutation without fixed points.
        order = torch.randperm(len(classes), generator=generator)
        donors = torch.empty_like(order).scatter_(0, order, order.roll(1)).to(classes.device)
        for part in in_batches(len(classes), batch_size):
            batch = slice_inputs(inputs, part)
            whole = score_class(model, batch, classes[part], score)
            for name, x in images.items():
                for band in range(x.shape[1]):
                    changed = x[part].clone()
                    other = x[donors[part], band] if by == "permutation" else None
                    changed[:, band] = _replacement(x[part, band], by, other, generator)
                    replaced = list(batch)
                    replaced[positions[name]] = changed
                    drops[name][part, band] += whole - score_class(model, replaced, classes[part], score)
    return {name: total / times for name, total in drops.items()}


def _replacement(band: Tensor, by: str, other: Tensor | None, generator: torch.Generator) -> Tensor:
    """Compute the replacement of a band, shape ``(B, H, W)``."""
    if other is not None:
        return other
    if by == "zero":
        return torch.zeros_like(band)
    mean = band.mean(dim=(1, 2), keepdim=True).expand_as(band)
    if by == "mean":
        return mean
    spread = band.std(dim=(1, 2), correction=0, keepdim=True)
    return mean + spread * torch.randn(band.shape, generator=generator).to(band)
