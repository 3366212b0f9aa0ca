"""The run folder: all that a run leaves behind, and how to read it."""

from vitrail.runs.folder import RunFolder
from vitrail.runs.trained import ModelCard, StreamCard, TrainedModel, load_trained

__all__ = ["ModelCard", "RunFolder", "StreamCard", "TrainedModel", "load_trained"]
