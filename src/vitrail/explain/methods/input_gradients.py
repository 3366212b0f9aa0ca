"""Gradients with respect to pixels, by captum: saliency, input times gradient, integrated gradients, SmoothGrad.

They run in batches of ``batch_size`` images, so that memory does not grow with the number of images or steps.
``input_x_gradient`` and ``integrated_gradients`` are signed: their maps are sums over the bands, negative where a pixel
is evidence against the class. ``saliency`` and ``smoothgrad`` are the largest absolute gradient of any band.

Gradients are noisy, and the maximum of a map is often an isolated pixel. ``smooth`` blurs the maps: the standard
deviation of a Gaussian as a share of the longer side (0: none; Fong et al. 2019, arXiv:1910.08485, use 0.02 for the
pointing game).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from vitrail.errors import ConfigError
from vitrail.explain.capture.forwarding import (
    Inputs,
    check_count,
    check_positive,
    forward_of,
    frozen,
    in_batches,
    inputs_by_stream,
)
from vitrail.explain.methods.baselines import blur, make_baseline
from vitrail.explain.methods.maps import StreamMap, as_streams
from vitrail.explain.methods.registry import register_method
from vitrail.models.base import VisionModel

# Attributions of some images, one tensor for each stream, and the target of each image.
Attribute = Callable[[tuple[Tensor, ...], Tensor], tuple[Tensor, ...]]


@register_method("saliency", by_class=True)
def _saliency(
    model: VisionModel, inputs: Inputs, target: Tensor | None, smooth: float = 0.0, batch_size: int = 16
) -> dict[str, StreamMap]:
    """Absolute gradient of the class's logit with respect to each pixel (Simonyan et al. 2013).

    Not signed: the largest absolute gradient of any band. Source: arXiv:1312.6034, section 3.1.
    """
    from captum.attr import Saliency

    method = Saliency(forward_of(model, inputs))
    parts = _in_batches(
        model, inputs, target, batch_size, lambda x, t: method.attribute(_with_gradients(x), target=t, abs=True)
    )
    return _smoothed(parts, [x.amax(dim=1) for x in parts.values()], smooth)


@register_method("input_x_gradient", by_class=True, signed=True)
def _input_x_gradient(
    model: VisionModel, inputs: Inputs, target: Tensor | None, smooth: float = 0.0, batch_size: int = 16
) -> dict[str, StreamMap]:
    """Each pixel times its gradient, summed over the bands (Shrikumar et al. 2016).

    Signed. Source: arXiv:1605.01713.
    """
    from captum.attr import InputXGradient

    method = InputXGradient(forward_of(model, inputs))
    parts = _in_batches(model, inputs, target, batch_size, lambda x, t: method.attribute(_with_gradients(x), target=t))
    return _smoothed(parts, [x.sum(dim=1) for x in parts.values()], smooth)


@register_method("integrated_gradients", by_class=True, signed=True)
def _integrated_gradients(
    model: VisionModel,
    inputs: Inputs,
    target: Tensor | None,
    steps: int = 32,
    baseline: str = "zero",
    smooth: float = 0.0,
    batch_size: int = 16,
) -> dict[str, StreamMap]:
    """Gradients integrated from a baseline image to this one (Sundararajan et al. 2017).

    Signed. The maps of all streams together sum to the difference of the class's logit between the two images, up to
    the error of the integral, which decreases with ``steps``. ``baseline``: "zero" (the mean of the data set), "mean"
    (of each band of the image) or "blur". Source: arXiv:1703.01365, section 3.
    """
    parts = integrated_gradients(model, inputs, target, steps, baseline, batch_size)
    return _smoothed(parts, [x.sum(dim=1) for x in parts.values()], smooth)


@register_method("smoothgrad", by_class=True)
def _smoothgrad(
    model: VisionModel,
    inputs: Inputs,
    target: Tensor | None,
    samples: int = 25,
    noise: float = 0.15,
    seed: int = 0,
    smooth: float = 0.0,
    batch_size: int = 16,
) -> dict[str, StreamMap]:
    """Gradients averaged over noisy copies of the image (Smilkov et al. 2017).

    Not signed: the largest absolute value of any band. ``noise`` is the standard deviation over the range of the
    image's values. The noise is the same for every image, so that a map does not depend on the rest of the batch;
    ``batch_size`` counts noisy copies. Source: arXiv:1706.03825, section 2.
    """
    from captum.attr import NoiseTunnel, Saliency

    check_count("samples", samples)
    check_count("batch_size", batch_size)
    check_positive("noise", noise)
    forward, kinds = forward_of(model, inputs), [x.dtype for x in inputs_by_stream(model, inputs).values()]
    # captum adds its noise in single precision, whatever the type of the images.
    method = NoiseTunnel(Saliency(lambda *noisy: forward(*(x.to(kind) for x, kind in zip(noisy, kinds, strict=True)))))

    def attribute(x: tuple[Tensor, ...], t: Tensor) -> tuple[Tensor, ...]:
        # captum samples from torch's global generator.
        with torch.random.fork_rng(devices=[t.device] if t.device.type == "cuda" else []):
            torch.manual_seed(seed)
            found: tuple[Tensor, ...] = method.attribute(
                x,
                nt_samples=samples,
                nt_samples_batch_size=min(samples, batch_size),
                stdevs=tuple(float(noise * (one.max() - one.min())) for one in x),
                target=t,
                abs=False,
            )
        return found

    parts = _in_batches(model, inputs, target, 1, attribute)
    return _smoothed(parts, [x.abs().amax(dim=1) for x in parts.values()], smooth)


def integrated_gradients(
    model: VisionModel,
    inputs: Inputs,
    target: Tensor | None,
    steps: int = 32,
    baseline: str = "zero",
    batch_size: int = 16,
) -> dict[str, Tensor]:
    """Compute integrated gradients by band.

    Args:
        model: The model, in evaluation mode.
        inputs: One tensor ``(B, C, H, W)`` for each stream, or None.
        target: Class of each image, shape ``(B,)``.
        steps: Points of the Gauss-Legendre rule.
        baseline: Kind of baseline, see :func:`vitrail.explain.methods.baselines.make_baseline`.
        batch_size: Batch size, images times steps.

    Returns:
        Stream -> shape ``(B, C, H, W)``.
    """
    from captum.attr import IntegratedGradients

    check_count("steps", steps)
    method = IntegratedGradients(forward_of(model, inputs))

    def attribute(x: tuple[Tensor, ...], t: Tensor) -> tuple[Tensor, ...]:
        baselines = tuple(make_baseline(one, baseline) for one in x)
        found: tuple[Tensor, ...] = method.attribute(
            x, baselines, target=t, n_steps=steps, internal_batch_size=max(batch_size, len(t))
        )
        return found

    return _in_batches(model, inputs, target, batch_size, attribute)


def _in_batches(
    model: VisionModel, inputs: Inputs, target: Tensor | None, batch_size: int, attribute: Attribute
) -> dict[str, Tensor]:
    assert target is not None, "explain() passes a target to methods by class"
    images = inputs_by_stream(model, inputs)
    batches = []
    with frozen(model):
        for part in in_batches(len(target), batch_size):
            batch = tuple(x[part] for x in images.values())
            batches.append(tuple(x.detach() for x in attribute(batch, target[part])))
    return {name: torch.cat(found) for name, found in zip(images, zip(*batches, strict=True), strict=True)}


def _smoothed(names: Iterable[str], maps: list[Tensor], smooth: float) -> dict[str, StreamMap]:
    """Blur maps ``(B, H, W)`` if ``smooth`` is above 0."""
    if not 0 <= smooth <= 1:
        raise ConfigError(f"smooth must be from 0 (none) to 1, a share of the longer side, got {smooth}")
    if smooth:
        maps = [blur(one[:, None], smooth * max(one.shape[1:]))[:, 0] for one in maps]
    return as_streams(list(names), maps)


def _with_gradients(images: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Copy images that require gradients; captum would change them in place, with a warning."""
    return tuple(x.detach().clone().requires_grad_() for x in images)
