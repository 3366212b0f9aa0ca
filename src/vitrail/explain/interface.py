"""One way to ask for any explanation: ``explain(model, images, method=..., target=...)``."""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.errors import ConfigError, DataWarning, ShapeError, UnknownNameError, closest, did_you_mean
from vitrail.explain.settings import check_settings
from vitrail.explain.trained import Explainable, Trained, as_trained, class_indices, network_of
from vitrail.models.base import VisionModel, describe

# Explaining sets up a model for a while, and tells torch to run no compiled code: one thread at a time.
_ONE_AT_A_TIME = threading.RLock()
Images = Tensor | Mapping[str, Tensor | None] | Sequence[Tensor | None]
Target = int | str | Sequence[int | str] | Tensor | None
# Normalised values lie a few standard deviations around zero. Images without a negative value that reach beyond this
# are of the range 0..255 or of raw measurements.
_UNNORMALIZED = 50.0


@dataclass(frozen=True, eq=False)
class StreamMap:
    """What an explanation says of one input.

    Attributes:
        map: Shape ``(B, H, W)``, at the input's resolution.
        tokens: Shape ``(B, h, w)``, on the grid on which the method works; a rollout's sum to one.
        share: How much of the whole this input had, shape ``(B,)``; None where the method does not say.
        parts: What the tokens are made of, one by one, shape ``(B, parts, h, w)``: learned tokens, heads; None where
            the method has no parts.
    """

    map: Tensor
    tokens: Tensor
    share: Tensor | None = None
    parts: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Explanation(Mapping[str, StreamMap]):
    """Maps by stream, and how they were made; ``.map`` and ``.tokens`` are those of the first stream.

    Attributes:
        streams: The maps by the name of the stream.
        method: Name of the method.
        target: The class explained for each image, shape ``(B,)``; None for a method that knows no class.
        settings: The method's settings, defaults included.
    """

    streams: dict[str, StreamMap]
    method: str
    target: Tensor | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, stream: str) -> StreamMap:
        if stream not in self.streams:
            raise UnknownNameError(f"no map of the stream {stream!r}{closest(stream, self.streams)}")
        return self.streams[stream]

    def __iter__(self) -> Iterator[str]:
        return iter(self.streams)

    def __len__(self) -> int:
        return len(self.streams)

    @property
    def map(self) -> Tensor:
        """Of the first stream, shape ``(B, H, W)``."""
        return next(iter(self.streams.values())).map

    @property
    def tokens(self) -> Tensor:
        """Of the first stream, shape ``(B, h, w)``."""
        return next(iter(self.streams.values())).tokens


Compute = Callable[..., dict[str, StreamMap]]


@dataclass(frozen=True)
class Method:
    """A way to explain.

    Attributes:
        name: What users call it.
        compute: ``compute(model, inputs, target, **settings)``; inputs are a tuple of tensors ``(B, C, H, W)`` (None
            for a stream that was left out), the target ``(B,)`` or None.
        by_class: Whether it explains a class; others look at the model alone.
        signed: Whether its maps have negative values (evidence against the class).
        summary: One line on what it shows.
        lacks: Says what a model lacks that the method needs, or None where it can be explained.
    """

    name: str
    compute: Compute
    by_class: bool
    signed: bool
    summary: str
    lacks: Callable[[VisionModel], str | None] = lambda model: None

    def refusal(self, model: VisionModel) -> str | None:
        """Why a model cannot be explained in this way, in words; None where it can."""
        return (lacks_class(model) if self.by_class else None) or self.lacks(model)

    def target(self, classes: Tensor | None) -> Tensor | None:
        """Classes as :func:`explain` takes them for this method: none for a method that explains no class."""
        return classes if self.by_class else None

    @property
    def settings(self) -> dict[str, Any]:
        """Its settings with their defaults."""
        parameters = list(inspect.signature(self.compute).parameters.values())[3:]
        return {parameter.name: parameter.default for parameter in parameters}


def lacks_class(model: VisionModel) -> str | None:
    """Why a model gives no image a class; None where it does."""
    if model.num_classes < 1:
        return "a model without classes (num_classes=0) has no class to explain"
    if not model.global_pool:
        return "global_pool='' gives logits for each token, not for the image; build the model with global_pool='avg'"
    return None


METHODS: dict[str, Method] = {}


def register_method(
    name: str, *, by_class: bool, signed: bool = False, lacks: Callable[[VisionModel], str | None] = lambda model: None
) -> Callable[[Compute], Compute]:
    """Add a method to those that :func:`explain` knows; the first line of its docstring says what it shows.

    Args:
        name: What users call it.
        by_class: Whether it explains a class.
        signed: Whether its maps have negative values.
        lacks: Says what a model lacks that the method needs, in words, or None.
    """

    def add(compute: Compute) -> Compute:
        summary = (inspect.getdoc(compute) or "").split("\n")[0]
        METHODS[name] = Method(name, compute, by_class, signed, summary, lacks)
        return compute

    return add


def list_methods(model: VisionModel | None = None) -> list[str]:
    """Names of all methods, or of those that a model can be explained by."""
    return sorted(name for name, method in METHODS.items() if model is None or method.refusal(model) is None)


def get_method(name: str) -> Method:
    """A method by its name.

    Raises:
        ConfigError: There is none of that name.
    """
    if not isinstance(name, str):
        raise ConfigError(f"a method is a name, got {name!r}; methods: {', '.join(list_methods())}")
    if name not in METHODS:
        raise ConfigError(f"no method {name!r}{did_you_mean(name, METHODS)}; methods: {', '.join(list_methods())}")
    return METHODS[name]


def explain(
    model: Explainable, images: Images, method: str = "rollout", target: Target = None, **settings: Any
) -> Explanation:  # fmt: skip
    """Explain what a model looks at.

    The model is left as it was: its mode, its gradients and its taps, also after an error. A compiled model is
    explained as it was before it was compiled. Other threads may meanwhile use a model that is in evaluation mode; of
    several that explain, one at a time does.

    Args:
        model: Any model of vitrail; also compiled, in DataParallel or DistributedDataParallel, or in a LightningModule;
            or a trained model, as :func:`vitrail.runs.load_trained` returns it.
        images: Normalised images, shape ``(B, C, H, W)``; of a model of two streams one tensor for each, in order or by
            name. Of a trained model images in 0..1, which it normalises itself.
        method: One of :func:`list_methods`.
        target: The class to explain, one for all images or one for each, by index or, of a trained model, by name; the
            predicted one where it is not given. Only for methods that explain a class.
        **settings: Of the method.

    Raises:
        ConfigError: An unknown method, setting or class, a method that this model cannot have, or a class for a method
            that explains none.
        ShapeError: Images that the model does not take.
    """
    chosen = get_method(method)
    unknown = [name for name in settings if name not in chosen.settings]
    if unknown:
        raise ConfigError(f"{method} has no setting {unknown[0]!r}{closest(unknown[0], chosen.settings)}")
    check_settings(method, chosen.compute, settings)
    network = network_of(model)
    refusal = chosen.refusal(network)
    if refusal is not None:
        possible = ", ".join(list_methods(network))
        raise ConfigError(f"{method} cannot explain this model: {refusal}; what can: {possible}")
    if target is not None and not chosen.by_class:
        by_class = ", ".join(name for name in list_methods(network) if METHODS[name].by_class)
        raise ConfigError(
            f"{method} explains no class, and target is {target!r}; leave it out, or take a method that explains a "
            f"class: {by_class or 'none can explain this model'}"
        )
    with opened(model, images, target, by_class=chosen.by_class) as (_, inputs, classes):
        streams = chosen.compute(network, inputs, classes, **settings)
    return Explanation(streams, method, classes, {**chosen.settings, **settings})


@contextmanager
def opened(
    model: Explainable, images: Images, target: Target = None, by_class: bool = True
) -> Iterator[tuple[VisionModel, tuple[Tensor | None, ...], Tensor | None]]:
    """A model ready to be asked; afterwards it is as it was before.

    Args:
        model: As for :func:`explain`.
        images: As for :func:`explain`.
        target: As for :func:`explain`.
        by_class: Whether a class is asked about.

    Yields:
        The model as it was before it was compiled; one input for each stream, or None; the class of each image, shape
        ``(B,)``, or None.

    Raises:
        ConfigError: No model of vitrail, or a class that it does not have.
        ShapeError: Images that the model does not take.
    """
    network = network_of(model)
    lack = lacks_class(network) if by_class else None
    if lack is not None:
        raise ConfigError(lack)
    with left_as_it_was(network):
        trained = as_trained(model)
        inputs = _inputs(trained, network, images)
        known = class_indices(target, trained.card.classes if trained else ())
        yield network, inputs, _classes(network, inputs, known) if by_class else None


@contextmanager
def left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; every module's mode and every parameter's gradient as before afterwards.

    One thread at a time is inside; others wait.
    """
    with _ONE_AT_A_TIME, _as_it_was(model):
        yield


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    gradients = {parameter: parameter.grad for parameter in model.parameters()}
    try:
        model.eval()
        # Taken off, since a backward pass would add to them in place.
        model.zero_grad(set_to_none=True)
        with torch.compiler.set_stance("force_eager"), torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, gradient in gradients.items():
            parameter.grad = gradient


def _inputs(trained: Trained | None, network: VisionModel, images: Images) -> tuple[Tensor | None, ...]:
    names = [stream.name for stream in network.streams]
    if isinstance(images, Tensor):
        given: tuple[Tensor | None, ...] = (images,)
    elif isinstance(images, Mapping):
        strange = [name for name in images if name not in names]
        if strange:
            raise ConfigError(f"the model has no stream {strange[0]!r}; its streams: {', '.join(names)}")
        given = tuple(images.get(name) for name in names)
    else:
        # Anything else is named by the error below.
        given = tuple(images if isinstance(images, list | tuple) else [cast(Any, images)])
    if not given or not isinstance(given[0], Tensor) or given[0].ndim != 4 or not len(given[0]):
        raise ShapeError(f"expected images of shape (B, C, H, W) with at least one image, got {describe(given)}")
    if len(given) > len(names):
        raise ShapeError(f"expected one input for each stream ({', '.join(names)}), got {describe(given)}")
    # Not a list by name: the second stream may be there without the first.
    present = {name: x for name, x in zip(names, given, strict=False) if isinstance(x, Tensor)}
    for name, x in present.items():
        # A map of such an image would be of such values too, and look like a map of a model that looks nowhere.
        if x.is_floating_point() and x.numel():
            if not bool(torch.isfinite(x).all()):
                raise ConfigError(f"the input {name!r} has values that are not finite")
            _check_range(name, x, trained is not None)
    if trained is not None:
        present = dict(zip(present, trained.normalize(present), strict=True))
    taken = [present.get(name, x) for name, x in zip(names, given, strict=False)]
    # A tensor made in inference mode can take part in no graph, but its copy can.
    return tuple((x.clone() if x.is_inference() else x.detach()) if isinstance(x, Tensor) else x for x in taken)


def _check_range(name: str, x: Tensor, trained: bool) -> None:
    """Warn of images that were not normalised, or of a trained model not scaled to 0..1."""
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
    assert inputs[0] is not None
    count, device = len(inputs[0]), inputs[0].device
    if target is None:
        with torch.no_grad():
            logits: Tensor = model(*inputs)
        return logits.argmax(dim=1)
    try:
        classes = torch.as_tensor(target, device=device)
    except (TypeError, ValueError, RuntimeError) as error:  # what torch raises depends on what it was given
        raise ConfigError(f"target is the number of a class, or one for each image, got {target!r}") from error
    if classes.dtype.is_floating_point or classes.dtype == torch.bool:
        raise ConfigError(f"target is the number of a class, got {target!r}")
    classes = classes.long().expand(count) if classes.ndim == 0 else classes.long()
    if classes.shape != (count,):
        raise ConfigError(f"target is one class, or one for each of the {count} images, got {tuple(classes.shape)}")
    wrong = classes[(classes < 0) | (classes >= model.num_classes)]
    if len(wrong):
        raise ConfigError(f"no class {int(wrong[0])}: the model has {model.num_classes}, numbered from 0")
    return classes


def upsample(tokens: Tensor, size: tuple[int, int], stride: tuple[int, int] | None = None) -> Tensor:
    """Interpolate maps ``(B, h, w)`` bilinearly to ``(B, H, W)``.

    Args:
        tokens: Maps, shape ``(B, h, w)``.
        size: Height and width wanted.
        stride: Pixels of a token. The tokens at the bottom and the right of an image whose size is no multiple of it
            reach beyond its edge; without it they are taken to end there.
    """
    full = size if stride is None else (tokens.shape[1] * stride[0], tokens.shape[2] * stride[1])
    maps = F.interpolate(tokens[:, None], size=full, mode="bilinear", align_corners=False)[:, 0]
    return maps[:, : size[0], : size[1]]
