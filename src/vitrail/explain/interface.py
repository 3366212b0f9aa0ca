"""The public entry point: ``explain(model, images, method=..., target=...)``."""

from __future__ import annotations

from typing import Any

from vitrail.errors import ConfigError
from vitrail.explain.capture.prepare import Explainable, Images, Target, network_of, prepared
from vitrail.explain.methods.maps import Explanation
from vitrail.explain.methods.registry import METHODS, Method, default_method, get_method, list_methods
from vitrail.models.base import VisionModel


def explain(
    model: Explainable, images: Images, method: str | None = None, target: Target = None, **settings: Any
) -> Explanation:  # fmt: skip
    """Compute the relevance of each pixel.

    The mode, the gradients and the taps of the model are restored, also after an error. A compiled model runs
    uncompiled. Other threads may use a model in evaluation mode meanwhile; explanations themselves run one at a time.

    Args:
        model: Any model of vitrail; also compiled, in DataParallel or DistributedDataParallel, or in a LightningModule;
            or a trained model, as :func:`vitrail.runs.load_trained` returns it.
        images: Normalised images, shape ``(B, C, H, W)``; for a model of two streams a tensor for each, in order or by
            name. For a trained model images in 0..1, which it normalises itself.
        method: One of :func:`list_methods`; by default that of :func:`default_method`.
        target: The class to explain, one for all images or one for each, by index or, for a trained model, by name. By
            default the predicted class. Only for methods that explain a class.
        **settings: Settings of the method.

    Raises:
        ConfigError: An unknown method, setting or class, a method that cannot explain this model, or a class for a
            method that explains none.
        ShapeError: Images of a shape that the model does not accept.
    """
    network = network_of(model)
    chosen = get_method(default_method(network) if method is None else method)
    chosen.check_settings(settings)
    _check_method(chosen, network, target)
    with prepared(model, images, target, by_class=chosen.by_class) as (_, inputs, classes):
        streams = chosen.compute(network, inputs, classes, **settings)
    return Explanation(streams, chosen.name, classes, {**chosen.settings, **settings})


def _check_method(method: Method, network: VisionModel, target: Target) -> None:
    refusal = method.refusal(network)
    if refusal is not None:
        possible = ", ".join(list_methods(network))
        raise ConfigError(f"{method.name} cannot explain this model: {refusal}; methods that can: {possible}")
    if target is not None and not method.by_class:
        by_class = ", ".join(name for name in list_methods(network) if METHODS[name].by_class)
        raise ConfigError(
            f"{method.name} explains no class, and target is {target!r}; leave it out, or use a method that explains a "
            f"class: {by_class or 'none can explain this model'}"
        )
