"""Safe reading of weights, and key maps for the checkpoints of other libraries."""

from vitrail.weights.kernels import BandRule, InputKernel, resize_patches
from vitrail.weights.load import load_weights
from vitrail.weights.read import read_state_dict
from vitrail.weights.report import LoadReport
from vitrail.weights.rules import KeyMap

__all__ = [
    "BandRule",
    "InputKernel",
    "KeyMap",
    "LoadReport",
    "load_weights",
    "read_state_dict",
    "resize_patches",
]
