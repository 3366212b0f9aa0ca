"""Every pooling of every family: by hand, trained, explained, changed afterwards, saved and recognised."""

import copy
from typing import get_args

import pytest
import torch

import vitrail
from tests.tiers import spread
from vitrail.errors import ConfigError
from vitrail.explain import explain
from vitrail.layers.fast.dispatch import without_fast_paths
from vitrail.layers.head import Pool, pool_tokens
from vitrail.models import list_families
from vitrail.models.profile import walk

FAMILIES = list_families("image")
CASES = {
    "vit": {},
    "vit without class token": {"class_token": False, "global_pool": "avg"},
    "swin": {},
    "maxvit": {},
    "maxvit without hidden layer": {"head_hidden_size": 0},
    "maxvit of another flavour": {"flavour": "torchvision", "head_hidden_size": 24},
    "hvt": {},
    "hvt of one stream": {"spectral_chans": 0, "spectral_embed_dim": None, "fusion_heads": None},
    "hvt side by side": {"fusion": "concat", "fusion_heads": None, "attention": 4},
}


def pytest_generate_tests(metafunc):
    spread(metafunc, case=CASES)


def build(case, **settings):
    torch.manual_seed(3)
    name = case.split()[0]
    return vitrail.create_model(name, **{**FAMILIES[name].test_config, **CASES[case], **settings})


def inputs_of(model, grow=0):
    torch.manual_seed(4)
    return [torch.randn(2, chans, size[0] + grow, size[1] + 2 * grow) for _, chans, size, _ in model.streams]


def tokens_of(features, model):
    """The last tokens in a row, without prefix."""
    rows = features.flatten(2).transpose(1, 2) if model.channels_first else features.flatten(1, -2)
    return rows[:, model.num_prefix :]


@pytest.mark.parametrize("grow", [0, 7])
@pytest.mark.fast_cases("vit-0", "swin-0", "swin-7", "maxvit-7", "hvt-7")
def test_attention_pooling_by_hand(case, grow):
    model = build(case, global_pool="map").eval()
    inputs, pool = inputs_of(model, grow), model.attn_pool
    with torch.no_grad():
        features = model.forward_features(*inputs)
        tokens = tokens_of(features, model)
        B, N, C = tokens.shape
        H = pool.num_heads
        keys, values = pool.kv(tokens).view(B, N, 2, H, C // H).unbind(2)
        query = pool.q(pool.latent).view(H, C // H)
        weights = torch.einsum("hd,bnhd->bhn", query, keys).div((C // H) ** 0.5).softmax(-1)
        pooled = pool.proj(torch.einsum("bhn,bnhd->bhd", weights, values).flatten(1))
        pooled = pooled + pool.mlp(pool.norm(pooled))
        for name in ("fc_norm", "head_norm"):
            pooled = getattr(model, name, torch.nn.Identity())(pooled)
        torch.testing.assert_close(model.forward_head(features), model.head(pooled), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model(*inputs), model.head(pooled), rtol=1e-4, atol=1e-5)
        found = model.pooling_weights(features)
        torch.testing.assert_close(found[:, model.num_prefix :], weights.mean(1), rtol=1e-4, atol=1e-6)
        assert found[:, : model.num_prefix].count_nonzero() == 0
        with without_fast_paths():
            torch.testing.assert_close(model(*inputs), model.head(pooled), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pool", get_args(Pool))
@pytest.mark.fast_cases(
    "vit without class token-avg",
    "vit without class token-map",
    "swin-",
    "maxvit without hidden layer-map",
    "hvt of one stream-avgmax",
)
def test_every_pooling_trains(case, pool):
    model = build(case, global_pool=pool)
    model(*inputs_of(model)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert (model.attn_pool is not None) == (pool == "map")
    names = [name for group in model.layer_groups() for name in group]
    assert sorted(names) == sorted(dict(model.named_parameters()))


@pytest.mark.slow_cases("maxvit of another flavour")
def test_the_attention_of_the_pooling_is_rolled_out(case):
    """The rollout starts from the pooling's weights: with all of them on one token it is that token's row."""
    model = build(case, global_pool="map").eval()
    inputs = [x[:1] for x in inputs_of(model)]
    found = explain(model, inputs, "rollout").streams["image"]
    weights = model.pooling_weights(model.forward_features(*inputs))
    count = weights.shape[1]
    model.pooling_weights = lambda features: torch.eye(count)
    rows = explain(model, [x.expand(count, -1, -1, -1) for x in inputs], "rollout").streams["image"]
    mixed = torch.einsum("bn,nhw->bhw", weights, rows.tokens * rows.share[:, None, None])
    torch.testing.assert_close(found.tokens * found.share[:, None, None], mixed, rtol=1e-4, atol=1e-6)


@pytest.mark.slow_cases("maxvit")
def test_explanations_by_class(case):
    model = build(case, global_pool="map").eval()
    inputs = inputs_of(model)
    for method in ("gradcam", "gradient_rollout"):
        found = explain(model, inputs, method, target=1).map
        assert found.isfinite().all(), method
        assert found.abs().max() > 0, method
    with pytest.raises(ConfigError, match=r"attribution cannot .*: global_pool='map' .*'gradcam'"):
        explain(model, inputs, "attribution", target=1)


@pytest.mark.slow_cases("maxvit without hidden layer")
def test_changing_the_pooling_afterwards(case):
    model = build(case).double()
    inputs = [x.double() for x in inputs_of(model)]
    keys = set(model.state_dict())
    for pool in ("map", "max", "map", "avgmax", "avg"):
        model.reset_classifier(3, pool)
        assert (model.attn_pool is None) == (pool != "map")
        assert model(*inputs).shape == (2, 3)
    assert set(model.state_dict()) == keys
    model.reset_classifier(4, "map")
    kept = model.attn_pool
    model.reset_classifier(6)
    assert model.attn_pool is kept
    assert model(*inputs).shape == (2, 6)
    assert model.global_pool == "map"


@pytest.mark.fast_cases("vit without class token")
def test_models_with_attention_pooling_are_saved_and_recognised(case, tmp_path):
    model = build(case, global_pool="map").eval()
    vitrail.save_pretrained(model, tmp_path)
    again, inputs = vitrail.from_pretrained(tmp_path), inputs_of(model)
    with torch.no_grad():
        assert torch.equal(again(*inputs), model(*inputs))
    assert type(model).read_settings(model.state_dict())["global_pool"] == "map"
    assert copy.deepcopy(model).attn_pool.num_heads == model.attn_pool.num_heads


def test_a_pruned_model_pools_no_more(case):
    model = build(case, global_pool="map").eval()
    if len(model.streams) > 1:
        with pytest.raises(ConfigError, match="cannot be pruned"):
            model.prune_intermediate_layers([1])
        return
    model.prune_intermediate_layers([1])
    assert model.attn_pool is None
    assert not any("attn_pool" in name for name in model.state_dict())
    model(*inputs_of(model))


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "vit"])
def test_a_class_token_that_a_family_lacks_is_refused_with_the_reason(name):
    with pytest.raises(ConfigError, match=r"global_pool must be .*got 'token': there is no class token"):
        vitrail.create_model(name, **{**FAMILIES[name].test_config, "global_pool": "token"})
    model = vitrail.create_model(name, **FAMILIES[name].test_config)
    head = model.head
    with pytest.raises(ConfigError, match=r"global_pool must be .*got 'token': there is no class token"):
        model.reset_classifier(3, "token")
    assert model.head is head
    assert model.config.global_pool == "avg"


def test_pooling_of_tokens_refuses_what_it_does_not_compute():
    with pytest.raises(ConfigError, match=r"pool must be 'token' or 'avg' .*got 'map'; for 'map' use AttentionPool"):
        pool_tokens(torch.zeros(1, 2, 3), "map", (1,))


@pytest.mark.fast_cases("vit without class token")
def test_the_attention_of_the_pooling_is_a_step_of_the_walk(case):
    model = build(case, global_pool="map")
    pool, dim = model.attn_pool, model.attn_pool.q.in_features
    (step,) = (step for step in walk(model, inputs_of(model), repeats=1) if step.name == "attn_pool")
    assert step.parameters == sum(p.numel() for p in pool.parameters())
    images, tokens = 2, tokens_of(model.forward_features(*inputs_of(model)), model).shape[1]
    products = images * (dim * dim * 2 + tokens * 2 * dim * dim + 2 * tokens * dim)
    assert step.multiply_adds == products + images * 2 * dim * pool.mlp.fc1.out_features
