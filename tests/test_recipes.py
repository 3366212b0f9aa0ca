"""Every recipe that ships is understood by the code that ships, and its model runs on its data."""

from pathlib import Path

import pytest
import torch
import yaml

from vitrail.cli.recipes import load_run_recipe, make_recipe
from vitrail.config.schema import PRETRAINING
from vitrail.data import open_data
from vitrail.models import create_model
from vitrail.train import pretrain, train
from vitrail.train.fit import image_size

RECIPES = sorted((Path(__file__).parent.parent / "recipes").rglob("*.yaml"))
# Those whose images ship with the code, which are inside a library.
SHIPPED = [path for path in RECIPES if yaml.safe_load(path.read_text())["data"]["source"] == "digits"]
PAIRS = [path for path in SHIPPED if path.name.startswith("pretrain")]


def name_of(path):
    return "/".join(path.parts[-2:])


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_recipe(path):
    recipe = load_run_recipe(path)
    bands = 1 if path in SHIPPED else 3
    model = create_model(recipe.model.name, **{**recipe.model.settings, "num_classes": 10, "in_chans": bands}).eval()
    images = torch.rand(2, bands, *image_size(recipe))
    if path in SHIPPED:
        data = open_data(recipe.data, image_size(recipe))
        images = next(iter(data.loader("val")))["image"][:2]
    with torch.no_grad():
        assert model(images).shape == (2, 10)


@pytest.mark.parametrize("path", [p for p in RECIPES if p.name.startswith("finetune")], ids=name_of)
def test_fine_tuning_fits_its_pretraining(path):
    """The same model, and the run that the other recipe writes."""
    fine = load_run_recipe(path)
    before = load_run_recipe(path.with_name(path.name.replace("finetune", "pretrain")))
    assert before.task.name in PRETRAINING
    assert fine.model.weights == before.run.dir
    assert (fine.model.name, fine.model.settings) == (before.model.name, before.model.settings)
    assert fine.data.label_fraction < 1
    assert (fine.data.source, fine.data.path) == (before.data.source, before.data.path)


@pytest.mark.slow
@pytest.mark.parametrize("path", SHIPPED, ids=name_of)
def test_recipe_trains(path, tmp_path):
    content = yaml.safe_load(path.read_text())
    content["trainer"]["max_epochs"] = 1
    content["run"]["dir"] = str(tmp_path / "run")
    content["model"].pop("weights", None)
    recipe = make_recipe(content)
    run = pretrain(recipe) if recipe.task.name in PRETRAINING else train(recipe)
    assert run.weights.is_file()


@pytest.mark.parametrize("path", PAIRS, ids=name_of)
def test_pretraining_and_fine_tuning_in_turn(path, tmp_path):
    """An epoch of each, tiny; at full length the second gains from the first (see the recipes)."""
    contents = [
        yaml.safe_load(p.read_text()) for p in (path, path.with_name(path.name.replace("pretrain", "finetune")))
    ]
    contents[1]["model"]["weights"] = str(tmp_path / "0")
    for number, content in enumerate(contents):
        content["model"] |= {"embed_dim": 16, "depth": 2}
        content["data"]["test_fraction"] = 0.8
        content["trainer"] |= {"max_epochs": 1, "accelerator": "cpu"}
        content["run"] = {"dir": str(tmp_path / str(number)), "tensorboard": False}
        recipe = make_recipe(content)
        run = train(recipe) if number else pretrain(recipe)
        assert run.weights.is_file()
