"""The sanity check: what depends on the model changes, what does not stays; the model itself is untouched."""

import pytest
import torch
from scipy.stats import spearmanr

from tests.explain.tiny_models import tiny_inputs, tiny_model
from vitrail.errors import ConfigError
from vitrail.explain import explain, randomisation_check


@pytest.mark.fast_cases("maxvit", "vit token")
@pytest.mark.parametrize("name", ["vit token", "vit fuser mean", "swin", "maxvit", "hvt two streams"])
def test_the_model_is_untouched_in_every_family(name):
    model = tiny_model(name).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.random.get_rng_state()
    found = randomisation_check(model, tiny_inputs(model), "gradcam", 1, parts=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert found.rank.shape == found.similarity.shape == (3, 2)
    assert len(found.parts) == 3
    assert (found.rank.abs() <= 1 + 1e-6).all()


@pytest.mark.fast_cases("independent")
@pytest.mark.parametrize("mode", ["cascading", "independent"])
def test_against_models_randomised_by_hand(mode):
    model = tiny_model("maxvit")
    inputs = tiny_inputs(model)
    found = randomisation_check(model, inputs, "input_x_gradient", [1, 2], mode=mode, seed=7)
    groups = model.layer_groups()[::-1]
    assert len(found.parts) == len(groups)
    assert found.parts[0] == "head"
    assert found.parts[-1] == "stem"
    original = explain(model, inputs, "input_x_gradient", [1, 2])
    torch.manual_seed(7)
    fresh = type(model)(model.config)
    state = {}
    for number in range(len(groups)):
        if mode == "independent":
            state = {}
        modules = {name.rpartition(".")[0] for name in groups[number]}
        state |= {k: v for k, v in fresh.state_dict().items() if k.rpartition(".")[0] in modules}
        other = tiny_model("maxvit")
        other.load_state_dict({**other.state_dict(), **state})
        tokens = explain(other, inputs, "input_x_gradient", [1, 2]).tokens
        for b in range(2):
            expected = spearmanr(original.tokens[b].flatten(), tokens[b].flatten()).statistic
            assert float(found.rank[number, b]) == pytest.approx(expected, abs=0.02)


def test_a_map_that_ignores_the_model_is_found_out():
    model = tiny_model("swin")
    inputs = tiny_inputs(model)
    blind, seeing = (randomisation_check(model, inputs, m, parts=1) for m in ("centre", "input_x_gradient"))
    assert torch.allclose(blind.rank, torch.ones(1, 2), atol=1e-5)
    assert torch.allclose(blind.similarity, torch.ones(1, 2), atol=1e-5)
    assert seeing.rank.max() < 0.8
    assert seeing.similarity.max() < 0.9


def test_bad_settings():
    model = tiny_model("vit mean")
    for settings, words in (
        ({"mode": "bottom"}, "cascading"),
        ({"parts": 0}, "parts"),
        ({"settings": {"layr": 1}}, "layer"),
    ):
        with pytest.raises(ConfigError, match=words):
            randomisation_check(model, tiny_inputs(model), "gradcam", **settings)
