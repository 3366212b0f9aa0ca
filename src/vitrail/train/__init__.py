"""Training and pre-training: from a recipe to a run folder."""

from vitrail.train.fit import pretrain, train

__all__ = ["pretrain", "train"]
