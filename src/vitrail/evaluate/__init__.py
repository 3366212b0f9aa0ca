"""How good a trained run is, and how sure that is."""

from vitrail.evaluate.run import evaluate

__all__ = ["evaluate"]
