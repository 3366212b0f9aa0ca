"""Infidelity and sensitivity of explanations, by captum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from vitrail.explain.capture.forwarding import (
    check_count,
    check_positive,
    check_score,
    forward_of,
    inputs_by_stream,
    slice_inputs,
    to_scores,
)
from vitrail.explain.capture.prepare import Explainable, Images, Target, prepared
from vitrail.explain.interface import explain
from vitrail.explain.methods.baselines import make_baseline
from vitrail.explain.methods.registry import get_method
from vitrail.explain.metrics.scoring import Maps, maps_of, target_of

# Range of the sides of covered rectangles, as shares of the sides of the image.
_SMALLEST, _LARGEST = 1 / 8, 1 / 2


def infidelity(
    model: Explainable,
    images: Images,
    explanation: Maps,
    target: Target = None,
    *,
    samples: int = 32,
    baseline: str = "zero",
    score: str = "probability",
    seed: int = 0,
    batch_size: int = 16,
) -> Tensor:
    """Compute the error of a map as a prediction of score drops when random rectangles are covered.

    The prediction is the sum of the map over the rectangle. Maps are scaled optimally, as in the code of the paper, so
    that maps of any unit are comparable; the result is the mean squared error. The rectangles have an eighth to a half
    of the sides, and are the same for every image and every stream with a map.

    Args:
        model: Any model of vitrail, or a trained model.
        images: As for :func:`vitrail.explain.explain`.
        explanation: An explanation, or maps ``(B, H, W)`` by stream.
        target: The class; by default that of the explanation, else the predicted class.
        samples: Rectangles for each image.
        baseline: Values of covered pixels: "zero" (mean of the data set), "mean" (of the image) or "blur".
        score: As for :func:`vitrail.explain.metrics.faithfulness.deletion`.
        seed: Seed of the rectangles.
        batch_size: Batch size, in covered images.

    Returns:
        Shape ``(B,)``; small is good.

    Raises:
        ConfigError: A setting out of range, or a map of no stream of the model.
        ShapeError: A map of another size than its images.

    Source: Yeh et al. 2019, arXiv:1901.09392, definition 2.1 and section 3.1.
    """
    from captum.metrics import infidelity as captum_infidelity

    check_score(score)
    check_count("samples", samples)
    check_count("batch_size", batch_size)
    values = []
    with prepared(model, images, target_of(explanation, target)) as (network, inputs, classes):
        assert classes is not None, "by_class is True"
        maps = maps_of(network, inputs, explanation)
        covered = [name in maps for name in inputs_by_stream(network, inputs)]
        for number in range(len(classes)):
            one = slice_inputs(inputs, slice(number, number + 1))
            tensors = tuple(inputs_by_stream(network, one).values())
            # Relevance of a pixel, divided evenly among its bands, which are covered together.
            relevance = tuple(
                (maps[name][number][None, None] / x.shape[1]).expand_as(x).to(x.dtype) if name in maps else x * 0
                for name, x in inputs_by_stream(network, one).items()
            )
            forward = forward_of(network, one)

            def scores(*x: Tensor, forward: Any = forward) -> Tensor:
                return to_scores(forward(*x).float(), score)

            rectangles = _Rectangles(covered, baseline, seed)
            found: Tensor = captum_infidelity(
                scores,
                rectangles,
                tensors,
                relevance,
                target=classes[number : number + 1],
                n_perturb_samples=samples,
                max_examples_per_batch=min(samples, batch_size),
                normalize=True,
            )
            values.append(found.reshape(1))
    # Rounding can make the error of a perfect prediction slightly negative.
    return torch.cat(values).clamp_min(0)


class _Rectangles:
    """Cover random rectangles, new ones at each call.

    Args:
        covered: Inputs to cover.
        baseline: Kind of baseline.
        seed: Seed of the rectangles.
    """

    def __init__(self, covered: list[bool], baseline: str, seed: int) -> None:
        self.covered, self.baseline = covered, baseline
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, inputs: Tensor | tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return the masks of covered pixels, and the covered inputs."""
        images = inputs if isinstance(inputs, tuple) else (inputs,)
        # Side and position, for height and width; the same for every stream.
        random = torch.rand(len(images[0]), 2, 2, generator=self.generator).to(images[0].device)
        masks, images_covered = [], []
        for x, is_covered in zip(images, self.covered, strict=True):
            axes = []
            for axis, length in enumerate(x.shape[2:]):
                side = (_SMALLEST + (_LARGEST - _SMALLEST) * random[:, 0, axis]) * length
                start = random[:, 1, axis] * (length - side)
                middle = torch.arange(length, device=x.device) + 0.5
                axes.append((middle >= start[:, None]) & (middle < (start + side)[:, None]))
            inside = axes[0][:, None, :, None] & axes[1][:, None, None, :] & is_covered
            mask = inside.expand_as(x).to(x.dtype)
            masks.append(mask)
            images_covered.append(x * (1 - mask) + make_baseline(x, self.baseline) * mask)
        return tuple(masks), tuple(images_covered)


def sensitivity(
    model: Explainable,
    images: Images,
    method: str,
    target: Target = None,
    *,
    radius: float = 0.02,
    samples: int = 10,
    seed: int = 0,
    batch_size: int = 16,
    settings: Mapping[str, Any] | None = None,
) -> Tensor:
    """Compute the largest relative change of a map under small changes of the image.

    Args:
        model: Any model of vitrail, or a trained model.
        images: As for :func:`vitrail.explain.explain`.
        method: One of :func:`vitrail.explain.list_methods`.
        target: The class; by default the predicted class of the unchanged image.
        radius: Largest change of a value, in units of the normalised image.
        samples: Number of changed images, each by uniform noise within the radius.
        seed: Seed of the noise, the same for every image.
        batch_size: Batch size, in changed images.
        settings: Settings of the method.

    Returns:
        Shape ``(B,)``; small is good, but a constant map has 0.

    Raises:
        ConfigError: An unknown method, setting or class, or a setting out of range.

    Source: Yeh et al. 2019, arXiv:1901.09392, definition 4.1.
    """
    from captum.metrics import sensitivity_max

    check_positive("radius", radius)
    check_count("samples", samples)
    check_count("batch_size", batch_size)
    chosen, values = get_method(method), []
    with prepared(model, images, target) as (network, inputs, classes):
        assert classes is not None, "by_class is True"
        present = [x is not None for x in inputs]
        for number in range(len(classes)):
            tensors = tuple(x[number : number + 1] for x in inputs if x is not None)
            explained = int(classes[number]) if chosen.by_class else None

            def maps(x: Tensor | tuple[Tensor, ...], target: int | None = explained) -> tuple[Tensor, ...]:
                remaining = iter(x if isinstance(x, tuple) else (x,))
                images_changed = [next(remaining) if is_present else None for is_present in present]
                found = explain(network, images_changed, method, target, **(settings or {}))
                return tuple(one.map.contiguous() for one in found.values())

            found = sensitivity_max(
                maps,
                tensors,
                _Noise(radius, seed),
                n_perturb_samples=samples,
                max_examples_per_batch=min(samples, batch_size),
            )
            values.append(cast(Tensor, found).reshape(1))
    return torch.cat(values)


class _Noise:
    """Add uniform noise to inputs, new noise at each call.

    Args:
        radius: Largest change of a value.
        seed: Seed of the noise.
    """

    def __init__(self, radius: float, seed: int) -> None:
        self.radius = radius
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, inputs: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        """Return the changed inputs."""
        if isinstance(inputs, tuple):
            return tuple(self._add_noise(x) for x in inputs)
        return self._add_noise(inputs)

    def _add_noise(self, x: Tensor) -> Tensor:
        return x + self.radius * (2 * torch.rand(x.shape, generator=self.generator).to(x) - 1)
