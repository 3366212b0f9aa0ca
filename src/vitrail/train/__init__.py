"""From a recipe to a run folder."""

from vitrail.train.fit import train
from vitrail.train.pretraining import pretrain

__all__ = ["pretrain", "train"]
