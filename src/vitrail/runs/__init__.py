"""The run folder: files of a run, and how to read them."""

from vitrail.runs.folder import RunFolder
from vitrail.runs.trained import ModelCard, StreamCard, TrainedModel, load_trained

__all__ = ["ModelCard", "RunFolder", "StreamCard", "TrainedModel", "load_trained"]
