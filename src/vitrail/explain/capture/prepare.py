"""Prepare a model and its inputs for an explanation, and restore the model afterwards."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from vitrail.errors import ConfigError, DataWarning, ShapeError, did_you_mean, few, plural
from vitrail.explain.capture.scores import main_class
from vitrail.layers.modes import evaluation_mode
from vitrail.models.base import VisionModel
from vitrail.models.facts import describe
from vitrail.models.modality import is_per_point
from vitrail.weights.wrapped import network_inside

# An explanation changes the model's mode and torch's compiler stance for a while: one thread at a time.
_LOCK = threading.RLock()
Images = Tensor | Mapping[str, Tensor | None] | Sequence[Tensor | None]
Target = int | str | Sequence[int | str] | Tensor | None
# Normalised values lie a few standard deviations around zero. Images without a negative value and beyond this limit
# have the range 0..255 or are raw measurements.
_UNNORMALIZED = 50.0
# Keys of a batch of images that are not streams.
_BESIDE_STREAMS = ("target", "index")
# Class names that an error lists.
_SHOWN = 8


class Card(Protocol):
    """Class names of a trained model."""

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes, in the order of the logits."""
        ...


@runtime_checkable
class Trained(Protocol):
    """A model with its normalisation and class names, as ``load_trained`` returns it."""

    @property
    def model(self) -> VisionModel:
        """The model."""
        ...

    @property
    def normalize(self) -> Any:
        """Normalises streams in 0..1, by name, to the inputs of the model."""
        ...

    @property
    def card(self) -> Card:
        """Names of the classes."""
        ...


Explainable = nn.Module | Trained


@contextmanager
def prepared(
    model: Explainable, images: Images, target: Target = None, by_class: bool = True
) -> Iterator[tuple[VisionModel, tuple[Tensor | None, ...], Tensor | None]]:
    """Prepare a model and its inputs; the model is restored on exit.

    Args:
        model: As for :func:`vitrail.explain.explain`.
        images: As for :func:`vitrail.explain.explain`.
        target: As for :func:`vitrail.explain.explain`.
        by_class: Whether a class is explained.

    Yields:
        The model inside of all wrappers, uncompiled; one input for each stream, or None; the class of each image, shape
        ``(B,)``, or None without a class.

    Raises:
        ConfigError: No model of vitrail, or a class that it does not have.
        ShapeError: Images of a shape that the model does not accept.
    """
    network = network_of(model)
    lack = lacks_class(network) if by_class else None
    if lack is not None:
        raise ConfigError(lack)
    with restored(network):
        trained = as_trained(model)
        inputs = _inputs(trained, network, images)
        indices = class_indices(target, trained.card.classes if trained else ())
        yield network, inputs, _classes(network, inputs, indices) if by_class else None


def lacks_class(model: VisionModel) -> str | None:
    """Return the reason why a model assigns images no class; None where it does."""
    if model.num_classes < 1:
        return "a model without classes (num_classes=0) has no class to explain"
    if not model.global_pool and not labels_points(model):
        return "global_pool='' gives logits for each token, not for the image; build the model with global_pool='avg'"
    return None


def labels_points(model: VisionModel) -> bool:
    """Return whether a model labels points, instead of whole inputs."""
    return is_per_point(vars(model.config))


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode; restore every module's mode and every parameter's gradient on exit.

    One thread at a time is inside; others wait.
    """
    with _LOCK, _evaluation(model):
        yield


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    gradients = {parameter: parameter.grad for parameter in model.parameters()}
    try:
        # Detached from the parameters, since a backward pass would add to them in place.
        model.zero_grad(set_to_none=True)
        eager = torch.compiler.set_stance("force_eager")
        with evaluation_mode(model), eager, torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for parameter, gradient in gradients.items():
            parameter.grad = gradient


def _inputs(trained: Trained | None, network: VisionModel, images: Images) -> tuple[Tensor | None, ...]:
    """Order the images by stream, check them, and normalise them for a trained model."""
    names = [stream.name for stream in network.streams]
    ordered = _by_stream(network, images)
    # A dictionary, since the second stream may have an input where the first has none.
    present = {name: x for name, x in zip(names, ordered, strict=False) if isinstance(x, Tensor)}
    of_points = [stream.name for stream in network.streams if stream.channels_last]
    for name, x in present.items():
        # A map of such an image would be NaN too, and drawn as a map without relevance.
        if x.is_floating_point() and x.numel():
            # A point that is NaN is not a point of its cloud.
            missing = x.isnan().all(dim=-1) & (name in of_points)
            if not bool((torch.isfinite(x).all(dim=-1) | missing).all()):
                raise ConfigError(f"the input {name!r} has values that are not finite")
            _check_range(name, x, trained is not None)
    if trained is not None:
        present = dict(zip(present, trained.normalize(present), strict=True))
    inputs = [present.get(name, x) for name, x in zip(names, ordered, strict=False)]
    # A tensor created in inference mode cannot take part in a graph; its copy can.
    return tuple((x.clone() if x.is_inference() else x.detach()) if isinstance(x, Tensor) else x for x in inputs)


def _by_stream(network: VisionModel, images: Images) -> tuple[Tensor | None, ...]:
    names = [stream.name for stream in network.streams]
    if isinstance(images, Tensor):
        ordered: tuple[Tensor | None, ...] = (images,)
    elif isinstance(images, Mapping):
        unknown = [name for name in images if name not in (*names, *_BESIDE_STREAMS)]
        if unknown:
            raise ConfigError(f"the model has no stream {unknown[0]!r}; its streams: {', '.join(names)}")
        ordered = tuple(images.get(name) for name in names)
    else:
        # Anything else is reported by the error below.
        ordered = tuple(images if isinstance(images, list | tuple) else [cast(Any, images)])
    axes = 1 + len(network.streams[0].shape)
    if not ordered or not isinstance(ordered[0], Tensor) or ordered[0].ndim != axes or not len(ordered[0]):
        noun, shape = network.modality.noun, network.modality.shape
        raise ShapeError(f"expected {noun} of shape {shape}, at least one, got {describe(ordered)}")
    if len(ordered) > len(names):
        raise ShapeError(f"expected one input for each stream ({', '.join(names)}), got {describe(ordered)}")
    return ordered


def _check_range(name: str, x: Tensor, trained: bool) -> None:
    """Warn of images that were not normalised, or for a trained model not scaled to 0..1."""
    low, high = float(x.amin()), float(x.amax())
    if low >= 0 and high > _UNNORMALIZED:
        wanted = "images in 0..1" if trained else "normalised images (mean 0 and standard deviation 1 in each band)"
        warnings.warn(
            f"the input {name!r} has values from {low:.4g} to {high:.4g}, and the model takes {wanted}; "
            "divide by the largest possible value and normalise as in training",
            DataWarning,
            stacklevel=2,
        )


def _classes(
    model: VisionModel, inputs: Sequence[Tensor | None], target: int | Sequence[int] | Tensor | None
) -> Tensor:
    """Return the class of each image, shape ``(B,)``: the target, or the predicted class."""
    assert inputs[0] is not None
    count, device = len(inputs[0]), inputs[0].device
    if target is None:
        with torch.no_grad():
            logits: Tensor = model(*inputs)
        return main_class(logits)
    try:
        classes = torch.as_tensor(target, device=device)
    except (TypeError, ValueError, RuntimeError) as error:  # torch raises one of these, depending on the type
        raise ConfigError(f"target is the index of a class, or one for each image, got {target!r}") from error
    if classes.dtype.is_floating_point or classes.dtype == torch.bool:
        raise ConfigError(f"target is the index of a class, got {target!r}")
    classes = classes.long().expand(count) if classes.ndim == 0 else classes.long()
    if classes.shape != (count,):
        raise ConfigError(
            f"target is one class, or one for each of {plural(count, 'image')}, got {tuple(classes.shape)}"
        )
    invalid = classes[(classes < 0) | (classes >= model.num_classes)]
    if len(invalid):
        raise ConfigError(f"target must be a class from 0 to {model.num_classes - 1}, got {int(invalid[0])}")
    return classes


def as_trained(model: Explainable) -> Trained | None:
    """Return a trained model; None for a module, which may have attributes of the same names (a LightningModule)."""
    return None if isinstance(model, nn.Module) or not isinstance(model, Trained) else model


def network_of(model: Explainable) -> VisionModel:
    """Return the model to explain: itself, that of a trained model, or the only one inside of a wrapper.

    Raises:
        ConfigError: No model of vitrail, several, or one beside other modules.
    """
    trained = as_trained(model)
    network: VisionModel = network_inside(
        cast(nn.Module, trained.model if trained else model), VisionModel, "explained"
    )
    return network


def class_indices(target: Any, names: Sequence[str]) -> Any:
    """Replace class names by indices.

    Args:
        target: A name, a list of names, or anything else, which is returned unchanged.
        names: Class names in the order of the logits; empty where they are unknown.

    Raises:
        ConfigError: An unknown name, or a name without names to look it up in.
    """
    if isinstance(target, str):
        return class_index(target, names)
    if isinstance(target, list | tuple):
        return [class_index(one, names) if isinstance(one, str) else one for one in target]
    return target


def class_index(name: str, names: Sequence[str]) -> int:
    """Return the index of a class.

    Args:
        name: Name of a class, or its index in digits where no class has that name.
        names: Class names in the order of the logits; empty where they are unknown.

    Raises:
        ConfigError: No such class, or no names to look it up in.
    """
    if not names:
        raise ConfigError(
            f"target {name!r} is a name, and the model has no class names (pre-trained, or not from a run); give the "
            "index of the class, or explain what load_trained(RUN) returns"
        )
    if name in names:
        return list(names).index(name)
    if name.isdecimal() and int(name) < len(names):
        return int(name)
    raise ConfigError(
        f"no class {name!r}{did_you_mean(name, names)}; classes: {few(names, _SHOWN)} "
        f"(or by index, 0 to {len(names) - 1})"
    )
