"""Recipes: model, data and training settings; loaded, overridden, validated and written as YAML."""

from vitrail.config.data import DataConfig
from vitrail.config.load import dump_recipe, load_recipe, read_yaml
from vitrail.config.schema import ModelConfig, Recipe, RunConfig, TaskConfig, TrainerConfig

__all__ = [
    "DataConfig",
    "ModelConfig",
    "Recipe",
    "RunConfig",
    "TaskConfig",
    "TrainerConfig",
    "dump_recipe",
    "load_recipe",
    "read_yaml",
]
