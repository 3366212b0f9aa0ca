"""How good a trained run is, and how sure that is."""

from vitrail.evaluate.run import evaluate
from vitrail.evaluate.saved_predictions import evaluate_saved

__all__ = ["evaluate", "evaluate_saved"]
