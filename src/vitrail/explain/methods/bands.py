"""Which bands matter to a class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor

from vitrail.bootstrap import bootstrap_mean
from vitrail.errors import ConfigError
from vitrail.explain.capture.forwarding import check_count, check_score, given, in_batches, score_class, slice_inputs
from vitrail.explain.capture.prepare import Explainable, Images, Target, prepared
from vitrail.explain.methods.input_gradients import integrated_gradients
from vitrail.models.base import VisionModel

WAYS = ("zero", "mean", "noise", "permutation", "integrated_gradients")


@dataclass(frozen=True)
class BandScores:
    """The bands of one stream.

    Attributes:
        scores: What each band adds to the class's score, image by image, shape ``(B, C)``.
        mean: Over the images, shape ``(C,)``.
        low: Lower end of the mean's interval, shape ``(C,)``; not a number for a single image.
        high: Upper end.
        p: Two-sided p-values of no effect, from the t-test of the paired drops, corrected for the number of bands of
            all streams (Holm), shape ``(C,)``; not a number for a single image.
    """

    scores: Tensor
    mean: Tensor
    low: Tensor
    high: Tensor
    p: Tensor

    def verdicts(self, alpha: float = 0.05) -> list[str]:
        """State for each band whether the score is shown to need it.

        Args:
            alpha: How often any verdict may be false where no band matters.

        Returns:
            "needed" (the score drops without it), "against" (the score rises without it) or "not shown".
        """
        pairs = zip(self.mean.tolist(), self.p.tolist(), strict=True)
        return ["not shown" if not p < alpha else "needed" if mean > 0 else "against" for mean, p in pairs]


@dataclass(frozen=True)
class BandImportance:
    """Which bands matter.

    Attributes:
        streams: By the name of the stream.
        by: How it was found.
        target: The class of each image, shape ``(B,)``.
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
    """What each band of each stream adds to the score of the class; below zero where it speaks against it.

    Bands that carry the same are each found unimportant by replacing one at a time; integrated gradients, which move
    all bands together, share their importance out.

    Args:
        model: Any model of vitrail.
        images: As for :func:`vitrail.explain.explain`.
        target: The class, one for all images or one for each; the predicted one where it is not given.
        by: What the score loses when the band is replaced by its mean over the data set ("zero", after normalisation),
            by its mean over the image ("mean": what its pattern is worth), by noise of its mean and spread ("noise") or
            by the same band of another image ("permutation", which needs two); or the band's part of
            "integrated_gradients" from "zero", which together with all others sums to the difference of the logits.
        score: "logit", "probability" (softmax) or "independent" (sigmoid, for several labels an image); integrated
            gradients are of the logit.
        repeats: Draws of "noise" and "permutation", of which the mean is taken.
        steps: Of integrated gradients.
        seed: Of what is drawn, and of the bootstrap.
        batch_size: Images that run at once.
        confidence: Of the intervals over images.
        resamples: Of the bootstrap.

    Raises:
        ConfigError: A setting out of range, an unknown way or class, or a permutation of one image.
        ShapeError: Images that the model does not take.
    """
    if by not in WAYS:
        raise ConfigError(f"by must be one of {', '.join(WAYS)}, got {by!r}")
    check_score(score)
    check_count("repeats", repeats)
    if by == "integrated_gradients" and score != "logit":
        raise ConfigError(f"integrated gradients are of the logit, not of the score {score!r}")
    with prepared(model, images, target) as (network, inputs, classes):
        assert classes is not None, "asked for by class"
        if by == "integrated_gradients":
            parts = integrated_gradients(network, inputs, classes, steps, "zero", batch_size)
            found = {name: part.sum(dim=(2, 3)) for name, part in parts.items()}
        else:
            if by == "permutation" and len(classes) < 2:
                raise ConfigError("permutation takes bands from other images and needs at least two, got 1")
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
    """P-values of each band's drops, paired by image and corrected over all bands, by stream."""
    scores = np.concatenate([x.double().cpu().numpy() for x in found.values()], axis=1)
    count, bands = scores.shape
    p = np.full(bands, np.nan)
    if count > 1:
        mean, error = scores.mean(axis=0), scores.std(axis=0, ddof=1) / np.sqrt(count)
        # Drops of rounding, and drops without spread, show nothing.
        told = (error > 0) & (np.abs(mean) > 1e-5 * np.abs(scores).max())
        t = np.divide(mean, error, out=np.zeros(bands), where=told)
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
    """What the score loses, for each stream ``(B, C)``."""
    images = given(model, inputs)
    lost = {name: torch.zeros(len(x), x.shape[1], device=x.device) for name, x in images.items()}
    numbers = {stream.name: number for number, stream in enumerate(model.streams)}
    generator = torch.Generator().manual_seed(seed)
    for _ in range(times):
        # Each image takes the bands of another one: a shuffled ring leaves none with its own.
        ring = torch.randperm(len(classes), generator=generator)
        donors = torch.empty_like(ring).scatter_(0, ring, ring.roll(1)).to(classes.device)
        for part in in_batches(len(classes), batch_size):
            piece = slice_inputs(inputs, part)
            whole = score_class(model, piece, classes[part], score)
            for name, x in images.items():
                for band in range(x.shape[1]):
                    changed = x[part].clone()
                    other = x[donors[part], band] if by == "permutation" else None
                    changed[:, band] = _instead(x[part, band], by, other, generator)
                    replaced = list(piece)
                    replaced[numbers[name]] = changed
                    lost[name][part, band] += whole - score_class(model, replaced, classes[part], score)
    return {name: total / times for name, total in lost.items()}


def _instead(band: Tensor, by: str, other: Tensor | None, generator: torch.Generator) -> Tensor:
    """What takes the place of a band ``(B, H, W)``."""
    if other is not None:
        return other
    if by == "zero":
        return torch.zeros_like(band)
    mean = band.mean(dim=(1, 2), keepdim=True).expand_as(band)
    if by == "mean":
        return mean
    spread = band.std(dim=(1, 2), correction=0, keepdim=True)
    return mean + spread * torch.randn(band.shape, generator=generator).to(band)
