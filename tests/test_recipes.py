"""Every recipe that ships is understood by the code that ships, and its model runs on its data."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
import yaml

from tests.images import embed_images, make_folder
from vitrail.cli.recipes import load_run_recipe, make_recipe
from vitrail.config.schema import PRETRAINING
from vitrail.data import open_data
from vitrail.models import create_model
from vitrail.models.image_size import image_size
from vitrail.train import pretrain, train


def stand_in(recipe, folder):
    """The recipe on data of its kind, made small, where its own has to be got elsewhere."""
    if recipe.data.path is None or Path(recipe.data.path).exists():
        return recipe
    path = folder / Path(recipe.data.path).name
    if recipe.data.source == "arrays":
        rng = np.random.default_rng(0)
        content = {"Y": rng.integers(0, 5000, (198, 10000), dtype=np.uint16), "A": rng.random((4, 10000))}
        scipy.io.savemat(path, {**content, "nRow": 100, "nCol": 100})
    if recipe.data.source == "folder":
        make_folder(path, splits=(), per_class=12)
    if recipe.data.source == "parquet":
        embed_images(path, [i % 10 for i in range(200)], size=(32, 32))
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, path=str(path)))


ROOT = Path(__file__).parent.parent
# Those of the demo are package data; two of them are linked from the other folder.
FILES = [*(ROOT / "recipes").rglob("*.yaml"), *(ROOT / "src" / "vitrail" / "recipes").rglob("*.yaml")]
RECIPES = sorted({path.resolve() for path in FILES})
# Those on images that are inside a library.
PAIRS = sorted((Path(__file__).parent.parent / "recipes" / "digits").glob("pretrain*.yaml"))


def name_of(path):
    demo = "demo/" if "src" in path.relative_to(ROOT).parts else ""
    return demo + "/".join(path.parts[-2:])


def test_every_recipe_is_read():
    for path in RECIPES:
        assert load_run_recipe(path).model.name


@pytest.mark.fast_cases("demo/digits/swin.yaml")
@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_recipe(path, tmp_path):
    recipe = stand_in(load_run_recipe(path), tmp_path)
    data = open_data(recipe.data, image_size(recipe))
    bands, classes = data.source.bands, len(data.source.classes)
    chans = {"in_chans": len(next(iter(bands.values())))}
    if "spectral" in bands:
        chans["spectral_chans"] = len(bands["spectral"])
    batch = next(iter(data.loader("val")))
    # Shapes decide whether they fit; values cost seconds at these sizes.
    with torch.no_grad(), torch.device("meta"):
        model = create_model(recipe.model.name, **{**recipe.model.settings, **chans, "num_classes": classes}).eval()
        assert model(*(batch[name][:2].to("meta") for name in bands)).shape == (2, classes)


@pytest.mark.parametrize("path", [p for p in RECIPES if p.name.startswith("finetune")], ids=name_of)
def test_fine_tuning_fits_its_pretraining(path):
    """The same model, and the run that the other recipe writes."""
    fine = load_run_recipe(path)
    before = load_run_recipe(path.with_name(path.name.replace("finetune", "pretrain")))
    assert before.task.name in PRETRAINING
    assert fine.model.weights == before.run.dir
    assert (fine.model.name, fine.model.settings) == (before.model.name, before.model.settings)
    assert fine.data.classes.label_fraction < 1
    assert (fine.data.source, fine.data.path) == (before.data.source, before.data.path)


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_recipe_trains(path, tmp_path):
    content = yaml.safe_load(path.read_text())
    content["trainer"]["max_epochs"] = 1
    content["run"]["dir"] = str(tmp_path / "run")
    content["model"].pop("weights", None)
    recipe = stand_in(make_recipe(content), tmp_path)
    run = pretrain(recipe) if recipe.task.name in PRETRAINING else train(recipe)
    assert run.weights.is_file()


@pytest.mark.slow
@pytest.mark.parametrize("path", PAIRS, ids=name_of)
def test_pretraining_and_fine_tuning_in_turn(path, tmp_path):
    """An epoch of each, tiny; at full length the second gains from the first (see the recipes)."""
    contents = [
        yaml.safe_load(p.read_text()) for p in (path, path.with_name(path.name.replace("pretrain", "finetune")))
    ]
    contents[1]["model"]["weights"] = str(tmp_path / "0")
    for number, content in enumerate(contents):
        content["model"] |= {"embed_dim": 16, "depth": 2}
        content["data"].setdefault("splitting", {})["test_fraction"] = 0.8
        content["trainer"] |= {"max_epochs": 1, "accelerator": "cpu"}
        content["run"] = {"dir": str(tmp_path / str(number)), "tensorboard": False}
        recipe = make_recipe(content)
        run = train(recipe) if number else pretrain(recipe)
        assert run.weights.is_file()
