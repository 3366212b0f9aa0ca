"""Every recipe that ships is understood by the code that ships, and its model runs on its data."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
import yaml

from vitrail.cli.recipes import load_run_recipe, make_recipe
from vitrail.data import open_data
from vitrail.models import create_model
from vitrail.train.fit import image_size, train


def stand_in(recipe, folder):
    """The recipe on data of its kind, made small, where its own has to be got elsewhere."""
    if recipe.data.path is None or Path(recipe.data.path).exists():
        return recipe
    path = folder / Path(recipe.data.path).name
    if recipe.data.source == "arrays":
        rng = np.random.default_rng(0)
        content = {"Y": rng.integers(0, 5000, (198, 10000), dtype=np.uint16), "A": rng.random((4, 10000))}
        scipy.io.savemat(path, {**content, "nRow": 100, "nCol": 100})
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, path=str(path)))


RECIPES = sorted((Path(__file__).parent.parent / "recipes").rglob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: "/".join(p.parts[-2:]))
def test_recipe(path, tmp_path):
    recipe = stand_in(load_run_recipe(path), tmp_path)
    data = open_data(recipe.data, image_size(recipe))
    bands, classes = data.source.bands, len(data.source.classes)
    chans = {"in_chans": len(bands["image"])}
    if "spectral" in bands:
        chans["spectral_chans"] = len(bands["spectral"])
    model = create_model(recipe.model.name, **{**recipe.model.settings, **chans, "num_classes": classes}).eval()
    batch = next(iter(data.loader("val")))
    with torch.no_grad():
        assert model(*(batch[name][:2] for name in bands)).shape == (2, classes)


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda p: "/".join(p.parts[-2:]))
def test_recipe_trains(path, tmp_path):
    content = yaml.safe_load(path.read_text())
    content["trainer"]["max_epochs"] = 1
    content["run"]["dir"] = str(tmp_path / "run")
    run = train(stand_in(make_recipe(content), tmp_path))
    assert run.weights.is_file()
