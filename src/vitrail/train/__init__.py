"""From a recipe to a run folder."""

from vitrail.train.fit import train

__all__ = ["train"]
