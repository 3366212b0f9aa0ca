"""Every recipe that ships is understood by the code that ships, and its model runs on its data."""

from pathlib import Path

import pytest
import torch
import yaml

from vitrail.cli.recipes import load_run_recipe, make_recipe
from vitrail.data import open_data
from vitrail.models import create_model
from vitrail.train.fit import image_size, train

RECIPES = sorted((Path(__file__).parent.parent / "recipes").rglob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: "/".join(p.parts[-2:]))
def test_recipe(path):
    recipe = load_run_recipe(path)
    settings = {**recipe.model.settings, "num_classes": 10, "in_chans": 1}
    model = create_model(recipe.model.name, **settings).eval()
    data = open_data(recipe.data, image_size(recipe))
    batch = next(iter(data.loader("val")))
    with torch.no_grad():
        assert model(batch["image"][:2]).shape == (2, 10)


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda p: "/".join(p.parts[-2:]))
def test_recipe_trains(path, tmp_path):
    content = yaml.safe_load(path.read_text())
    content["trainer"]["max_epochs"] = 1
    content["run"]["dir"] = str(tmp_path / "run")
    run = train(make_recipe(content))
    assert run.weights.is_file()
