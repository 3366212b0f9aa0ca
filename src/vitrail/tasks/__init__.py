"""Training objectives: losses, parameter groups and learning-rate schedules."""

from vitrail.tasks.classification import ClassificationTask
from vitrail.tasks.optim import parameter_groups, warmup_cosine, warmup_steps_down

__all__ = ["ClassificationTask", "parameter_groups", "warmup_cosine", "warmup_steps_down"]
