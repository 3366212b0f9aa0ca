"""The model families and the registry that lists them."""

from vitrail.models.base import FeatureInfo, Stream, VisionModel
from vitrail.models.registry import Family, create_model, find_family, list_families, list_models, register_family

__all__ = [
    "Family",
    "FeatureInfo",
    "Stream",
    "VisionModel",
    "create_model",
    "find_family",
    "list_families",
    "list_models",
    "register_family",
]
