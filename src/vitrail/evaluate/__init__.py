"""Measures of trained runs, with confidence intervals."""

from vitrail.evaluate.run import evaluate
from vitrail.evaluate.saved_predictions import evaluate_saved

__all__ = ["evaluate", "evaluate_saved"]
