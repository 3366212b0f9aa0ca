"""Infidelity and sensitivity of explanations, through captum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from vitrail.errors import ConfigError
from vitrail.explain.capture.forwarding import check_count, check_score, forward_of, given, slice_inputs, to_scores
from vitrail.explain.capture.prepare import Explainable, Images, Target, prepared
from vitrail.explain.interface import explain
from vitrail.explain.methods.baselines import make_baseline
from vitrail.explain.methods.registry import get_method
from vitrail.explain.metrics.scoring import Maps, maps_of, target_of

# Sides of the squares that are covered, over the sides of the image.
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
    """How badly a map predicts what the class loses when random squares are covered.

    The map's sum over a square is its prediction. Maps are scaled to predict best, as the authors' code does, so that
    those of any unit can be compared; what is left is the mean squared error. Every image is covered by the same
    squares, of an eighth to a half of its sides, in all streams that have a map.

    Args:
        model: Any model of vitrail.
        images: As for :func:`vitrail.explain.explain`.
        explanation: What is measured: an explanation, or maps ``(B, H, W)`` by stream.
        target: The class; that of the explanation, or the predicted one, where it is not given.
        samples: Squares an image.
        baseline: What covers: "zero" (the data set's mean), "mean" (the image's) or "blur".
        score: As for :func:`vitrail.explain.metrics.faithfulness.deletion`.
        seed: Of the squares.
        batch_size: Covered images that run at once.

    Returns:
        Shape ``(B,)``; small is good.

    Raises:
        ConfigError: A setting out of range, or a map that fits no stream.
        ShapeError: A map of another size than its images.

    Source: Yeh et al. 2019, arXiv:1901.09392, definition 2.1 and section 3.1.
    """
    from captum.metrics import infidelity as captum_infidelity

    check_score(score)
    check_count("samples", samples)
    check_count("batch_size", batch_size)
    values = []
    with prepared(model, images, target_of(explanation, target)) as (network, inputs, classes):
        assert classes is not None, "asked for by class"
        maps = maps_of(network, inputs, explanation)
        mapped = [name in maps for name in given(network, inputs)]
        for number in range(len(classes)):
            one = slice_inputs(inputs, slice(number, number + 1))
            tensors = tuple(given(network, one).values())
            # What a pixel is worth, spread evenly over its bands, which are covered together.
            worth = tuple(
                (maps[name][number][None, None] / x.shape[1]).expand_as(x).to(x.dtype) if name in maps else x * 0
                for name, x in given(network, one).items()
            )
            forward = forward_of(network, one)

            def scores(*x: Tensor, forward: Any = forward) -> Tensor:
                return to_scores(forward(*x).float(), score)

            squares = _Squares(mapped, baseline, seed)
            found: Tensor = captum_infidelity(
                scores,
                squares,
                tensors,
                worth,
                target=classes[number : number + 1],
                n_perturb_samples=samples,
                max_examples_per_batch=min(samples, batch_size),
                normalize=True,
            )
            values.append(found.reshape(1))
    # Of a map that predicts perfectly rounding leaves a little, on either side.
    return torch.cat(values).clamp_min(0)


class _Squares:
    """Covers random squares, of one call after the other, as captum asks for them.

    Args:
        mapped: Which of the inputs are covered.
        baseline: What covers.
        seed: Of the squares.
    """

    def __init__(self, mapped: list[bool], baseline: str, seed: int) -> None:
        self.mapped, self.baseline = mapped, baseline
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, inputs: Tensor | tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Masks of what was covered, and the covered inputs."""
        images = inputs if isinstance(inputs, tuple) else (inputs,)
        # Side, then where its middle may lie, drawn for height and width: the same of every stream.
        drawn = torch.rand(len(images[0]), 2, 2, generator=self.generator).to(images[0].device)
        masks, covered = [], []
        for x, there in zip(images, self.mapped, strict=True):
            axes = []
            for axis, length in enumerate(x.shape[2:]):
                side = (_SMALLEST + (_LARGEST - _SMALLEST) * drawn[:, 0, axis]) * length
                start = drawn[:, 1, axis] * (length - side)
                middle = torch.arange(length, device=x.device) + 0.5
                axes.append((middle >= start[:, None]) & (middle < (start + side)[:, None]))
            inside = axes[0][:, None, :, None] & axes[1][:, None, None, :] & there
            mask = inside.expand_as(x).to(x.dtype)
            masks.append(mask)
            covered.append(x * (1 - mask) + make_baseline(x, self.baseline) * mask)
        return tuple(masks), tuple(covered)


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
    """How much a map can change when the image hardly does: the largest change over its own size.

    Args:
        model: Any model of vitrail.
        images: As for :func:`vitrail.explain.explain`.
        method: Of :func:`vitrail.explain.list_methods`.
        target: The class, that of the image itself; the predicted one where it is not given.
        radius: Largest change of a value, in units of the normalised image.
        samples: Changed images, each by uniform noise within the radius.
        seed: Of the noise, which is the same for every image.
        batch_size: Changed images that are explained at once.
        settings: Of the method.

    Returns:
        Shape ``(B,)``; small is good, though a map that is always the same has 0.

    Raises:
        ConfigError: An unknown method, setting or class, or a setting out of range.

    Source: Yeh et al. 2019, arXiv:1901.09392, definition 4.1.
    """
    from captum.metrics import sensitivity_max

    if not radius > 0:
        raise ConfigError(f"radius must be above 0, got {radius}")
    check_count("samples", samples)
    check_count("batch_size", batch_size)
    chosen, values = get_method(method), []
    with prepared(model, images, target) as (network, inputs, classes):
        assert classes is not None, "asked for by class"
        present = [x is not None for x in inputs]
        for number in range(len(classes)):
            tensors = tuple(x[number : number + 1] for x in inputs if x is not None)
            explained = int(classes[number]) if chosen.by_class else None

            def maps(x: Tensor | tuple[Tensor, ...], target: int | None = explained) -> tuple[Tensor, ...]:
                remaining = iter(x if isinstance(x, tuple) else (x,))
                given_again = [next(remaining) if there else None for there in present]
                found = explain(network, given_again, method, target, **(settings or {}))
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
    """Moves inputs by uniform noise, of one call after the other, as captum asks for it.

    Args:
        radius: Largest change of a value.
        seed: Of the noise.
    """

    def __init__(self, radius: float, seed: int) -> None:
        self.radius = radius
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, inputs: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        """The moved inputs."""
        if isinstance(inputs, tuple):
            return tuple(self._move(x) for x in inputs)
        return self._move(inputs)

    def _move(self, x: Tensor) -> Tensor:
        return x + self.radius * (2 * torch.rand(x.shape, generator=self.generator).to(x) - 1)
