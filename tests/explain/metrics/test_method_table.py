"""The table of methods: controls, order, intervals, pairs; a known model whose truth must win."""

import math

import numpy as np
import pytest
import torch

from tests.explain.tiny_models import known_case, tiny_inputs, tiny_model
from vitrail.bootstrap import bootstrap_mean
from vitrail.errors import ConfigError, ShapeError
from vitrail.explain import compare_methods, explain, measure, score_methods
from vitrail.explain.methods.maps import StreamMap
from vitrail.explain.methods.registry import METHODS, Method
from vitrail.explain.metrics.measures import MEASURES


@pytest.fixture
def truth(monkeypatch):
    model, images, masks = known_case()

    def known(network, inputs, target):
        relevance = masks[: len(inputs[0])].float()
        return {"image": StreamMap(relevance, relevance)}

    monkeypatch.setitem(METHODS, "truth", Method("truth", known, False, False, ""))
    return model, images, masks


def test_the_truth_wins_on_every_measure(truth):
    model, images, masks = truth
    table = measure(model, images, ["truth"], masks, 1, steps=8, fractions=(0.1, 0.4), batch_size=5, resamples=300)
    wanted = ["deletion", "insertion", "road", "infidelity", "pointing", "mask_iou", "energy_inside"]
    assert list(table["measure"].unique()) == wanted
    assert list(table["method"].unique()) == ["truth", "random", "centre"]
    assert (table["images"] == 12).all()
    best = table[table["method"] == "truth"]
    assert best["beats_random"].all()
    assert best["beats_centre"].all()
    assert (table["low"] <= table["mean"] + 1e-12).all()
    assert not table[table["method"] == "random"]["beats_random"].any()
    disjoint = table.set_index(["measure", "method"])
    assert disjoint.loc[("mask_iou", "truth"), "low"] > disjoint.loc[("mask_iou", "random"), "high"]


def test_scores_are_what_the_measures_give_whatever_the_batch(truth):
    model, images, masks = truth
    settings = {"measures": ["mask_iou", "deletion", "road"], "steps": 4, "fractions": (0.3,)}
    one, other = (
        score_methods(model, images, ["truth", "saliency"], masks, 1, batch_size=n, **settings) for n in (12, 5)
    )
    from vitrail.explain import deletion, mask_iou

    keys = ["image", "method", "measure"]
    values, again = (x.sort_values(keys)["value"].to_numpy() for x in (one, other))
    # The truth of this test repeats the first images' masks, which are all the same.
    assert np.allclose(values, again, atol=1e-5)
    found = one.set_index(["method", "measure", "image"])["value"].sort_index()
    saliency = explain(model, images, "saliency", 1)
    assert np.allclose(found["saliency", "deletion"], deletion(model, images, saliency, 1, steps=4).area, atol=1e-5)
    assert np.allclose(found["saliency", "mask_iou"], mask_iou(saliency.map, masks), atol=1e-5)


@pytest.mark.fast_cases("vit token")
@pytest.mark.parametrize("name", ["vit token", "hvt two streams"])
def test_every_measure_runs(name):
    model = tiny_model(name)
    inputs = tiny_inputs(model, 2)
    masks = {s.name: torch.rand(2, *x.shape[2:]) < 0.3 for s, x in zip(model.streams, inputs, strict=True)}
    methods = {"cam": ("gradcam", {"layer": 0}), "smooth": ("smoothgrad", {"samples": 2, "seed": 3})}
    measures = list(MEASURES) if name == "vit token" else ["deletion", "road", "energy_inside"]
    scores = score_methods(model, inputs, methods, masks, measures=measures, steps=2, fractions=(0.5,), batch_size=2)
    assert len(scores) == 2 * 4 * len(measures)
    assert np.isfinite(scores["value"]).all()


def test_a_stream_with_nothing_to_find_leaves_the_image_to_the_other():
    model = tiny_model("hvt two streams")
    inputs = tiny_inputs(model, 3)
    first, second = (s.name for s in model.streams)
    masks = {n: torch.rand(3, *x.shape[2:]) < 0.5 for n, x in zip((first, second), inputs, strict=True)}
    masks[first][1:] = False
    masks[second][2] = False

    def score(known):
        scores = score_methods(model, inputs, ["saliency"], known, 0, measures=["energy_inside"])
        return scores[scores["method"] == "saliency"].sort_values("image")["value"].to_numpy()

    both, alone = score(masks), {n: score({n: masks[n]}) for n in masks}
    assert both[0] == pytest.approx((alone[first][0] + alone[second][0]) / 2)
    assert both[1] == pytest.approx(alone[second][1])
    assert np.isnan(both[2])


def test_pairs_and_intervals_by_hand():
    import pandas as pd

    rng = np.random.default_rng(0)
    noise, rows = 3 * rng.normal(size=40), []
    for method, shift in (("good", 0.5), ("random", 0.0), ("centre", 0.4)):
        rows += [(i, method, "insertion", noise[i] + shift + 0.05 * rng.normal()) for i in range(40)]
    rows[3] = (3, "good", "insertion", math.nan)
    table = compare_methods(pd.DataFrame(rows, columns=["image", "method", "measure", "value"])).set_index("method")
    # Images differ far more than methods do: only the pairs tell them apart.
    assert table.loc["good", "low"] < table.loc["random", "high"]
    assert table.loc["good", "images"] == 39
    assert table.loc["good", "vs_random"] == pytest.approx(0.5, abs=0.05)
    assert table.loc["good", ["beats_random", "beats_centre"]].all()
    assert not table.loc["centre", "beats_centre"]
    assert table.loc["random", "vs_random_high"] == 0


def test_the_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(1)
    draws = rng.exponential(size=(300, 40))
    found = [bootstrap_mean(row, 0.9, 400, seed) for seed, row in enumerate(draws)]
    covered = np.mean([low <= 1 <= high for _, low, high in found])
    assert 0.8 < covered < 0.95
    both = bootstrap_mean(draws[:2].T, 0.9, 400, 0)
    assert both.mean.shape == both.low.shape == (2,)


def test_controls_differ_between_images_and_stay_in_any_batch():
    model = tiny_model("vit mean")
    (x,) = tiny_inputs(model, 3)
    whole, part = explain(model, x, "random").map, explain(model, x[1:], "random").map
    assert torch.equal(whole[1:], part)
    assert not torch.allclose(whole[0], whole[1])
    assert not torch.allclose(explain(model, x, "random", seed=1).map, whole)
    centre = explain(model, x, "centre").map
    assert centre[0].argmax() in (10 * 18 + 8, 10 * 18 + 9)
    assert torch.allclose(centre, centre.flip(1, 2), atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"methods": ["gradcan"]}, ConfigError, "did you mean 'gradcam'"),
        ({"methods": "gradcam"}, ConfigError, "list of names"),
        ({"measures": ["deletio"]}, ConfigError, "did you mean 'deletion'"),
        ({"measures": ["pointing"]}, ConfigError, "needs|give masks"),
        ({"masks": torch.ones(2, 5, 5, dtype=torch.bool)}, ShapeError, "5, 5"),
        ({"masks": torch.ones(2, 21, 18)}, ConfigError, "boolean"),
        ({"masks": {"thermal": torch.ones(2, 21, 18)}}, ConfigError, "thermal"),
        ({"target": 8}, ConfigError, "from 0 to 3, got 8"),
        ({"batch_size": 0}, ConfigError, "batch_size"),
    ],
)
def test_bad_input(settings, error, words):
    model = tiny_model("vit mean")
    with pytest.raises(error, match=words):
        measure(model, tiny_inputs(model), **{"methods": ["gradcam"], **settings})
