"""Every suite that ships is understood by the code that ships: its plan, its recipes, its models."""

from pathlib import Path

import pytest
import torch

from vitrail.compare import load_suite, plan
from vitrail.config.load import read_yaml
from vitrail.models import create_model
from vitrail.models.profile import count_parameters

SUITES = sorted((Path(__file__).parent.parent / "suites").glob("*.yaml"))
WANTED = {
    "leaf_ablation": 6, "families_equal_parameters": 5, "families_equal_time": 5, "token_learner": 7,
    "spectral_leaves": 3, "spectral_jasper_ridge": 3, "leaf_pretraining": 4, "rotated_scans": 6,
}  # fmt: skip
# The larger ones take seconds to read.
SIZES = ["quick", pytest.param("full", marks=pytest.mark.slow)]


def test_they_are_all_there():
    assert {path.stem for path in SUITES} == set(WANTED)
    assert all(set(read_yaml(path)["sizes"]) == {"quick", "full"} for path in SUITES)


@pytest.mark.fast_cases("spectral_leaves-quick")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("path", SUITES, ids=lambda p: p.stem)
def test_suite(path, size):
    suite = load_suite(path, size)
    runs = plan(suite)
    trained = [run for run in runs if not run.is_pretraining]
    assert len(suite.variants) == WANTED[path.stem]
    assert len(trained) == WANTED[path.stem] * len(suite.seeds) * (suite.folds or 1)
    assert len(suite.seeds) * (suite.folds or 1) >= 3
    counts = []
    for run in {run.variant: run for run in trained}.values():
        with torch.device("meta"):
            counts.append(
                count_parameters(create_model(run.recipe.model.name, num_classes=10, **run.recipe.model.settings))
            )
    if "families" in path.stem:
        assert max(counts) < 1.1 * min(counts)
    if "time" in path.stem:
        (minutes,) = {run.recipe.trainer.max_minutes for run in trained}
        assert minutes > 0
        assert {run.recipe.model.name for run in trained} == {
            run.recipe.model.name for run in plan(load_suite(path.with_name("families_equal_parameters.yaml"), size))
        }


def test_the_ablation_takes_out_one_part_at_a_time():
    suite = load_suite(SUITES[[p.stem for p in SUITES].index("leaf_ablation")], "quick")
    runs = {run.variant: run for run in plan(suite)}
    full, pretrained = runs["full"].recipe, runs["simmim"]
    assert runs["full"].needs == pretrained.identity
    assert runs["no pre-training"].needs is None
    assert runs["no pre-training"].recipe.model.weights is None
    assert (full.model.name, full.model.settings) == (pretrained.recipe.model.name, pretrained.recipe.model.settings)
    assert {name: run.tta for name, run in runs.items() if not run.is_pretraining} == {
        name: "none" if name == "no average, no views" else "flips" for name in WANTED_PARTS
    }
    assert runs["plain loss"].recipe.task.loss == "cross_entropy"
    assert full.task.loss == "focal"
    assert (full.trainer.ema_decay, runs["no average, no views"].recipe.trainer.ema_decay) == (0.99, 0)


WANTED_PARTS = ("full", "no pre-training", "no augmentation", "no average, no views", "no freezing", "plain loss")
