"""The model families and the registry that lists them."""

from vitrail.models.base import VisionModel
from vitrail.models.checks import check_stages
from vitrail.models.facts import FeatureInfo, Stream
from vitrail.models.family import Family, register_family
from vitrail.models.pyramid import Pyramid
from vitrail.models.registry import create_model, find_family, list_families, list_models

__all__ = [
    "Family",
    "FeatureInfo",
    "Pyramid",
    "Stream",
    "VisionModel",
    "check_stages",
    "create_model",
    "find_family",
    "list_families",
    "list_models",
    "register_family",
]
