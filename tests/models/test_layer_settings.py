"""Settings of blocks, heads and positions, tried on every family that has them."""

import pytest
import torch
from torch import nn

import vitrail
from tests.tiers import fast_first
from vitrail.errors import ConfigError
from vitrail.explain import explain
from vitrail.layers.activations import ACTIVATIONS
from vitrail.layers.fast.dispatch import without_fast_paths
from vitrail.layers.norms import NORMS
from vitrail.models import list_families

FAMILIES = {name: family for name, family in list_families("image").items() if "attn_drop_rate" in family.settings}
RATES = ("drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate")
POSITIONS = {
    "swin": ("relative", "none", "learned", "sincos2d", "learned+relative", "sincos2d+relative"),
    "maxvit": ("relative", "none"),
    "hvt": ("learned", "sincos2d", "rope", "none"),
}
CHANGES = [
    *({"act_layer": name} for name in ACTIVATIONS),
    *({"norm_layer": name} for name in NORMS if name != "layernorm"),
    {"mlp_layer": "swiglu"},
    {"init_values": 1e-2},
    {"qk_norm": True},
    {"qk_norm": True, "norm_layer": "rmsnorm", "mlp_layer": "swiglu", "act_layer": "gelu", "init_values": 0.5},
]


def _build(name, seed=0, **settings):
    torch.manual_seed(seed)
    config = {**FAMILIES[name].test_config}
    if name in ("swin", "hvt"):
        config["embed_dim"], config["num_heads"] = 16, (2, 4)
    return vitrail.create_model(name, **{**config, **settings})


def _inputs(model, grow=0):
    torch.manual_seed(1)
    return [torch.randn(2, chans, size[0] + grow, size[1] + 2 * grow) for _, chans, size, _ in model.streams]


def _positions():
    return [pytest.param(name, kind, id=f"{name}-{kind}") for name, kinds in POSITIONS.items() for kind in kinds]


def _add_positions(name, rate):
    """Settings with which a dropout rate has something to act on."""
    return {"pos_embed": "learned+relative"} if (name, rate) == ("swin", "pos_drop_rate") else {}


def _rates():
    pairs = [(name, rate) for name, family in FAMILIES.items() for rate in RATES if rate in family.settings]
    first = [(*pair, i % 2 == 1) for i, pair in enumerate(pairs)]
    return fast_first([*first, *((name, rate, not checkpointing) for name, rate, checkpointing in first)], len(first))


def _changes():
    """All changes at once in each family and each change in one family; then the other pairs."""
    pairs = [(name, change) for name in FAMILIES for change in CHANGES]
    first = [
        (name, change)
        for name, change in pairs
        if change is CHANGES[-1] or CHANGES.index(change) % len(FAMILIES) == list(FAMILIES).index(name)
    ]
    return fast_first([*first, *(pair for pair in pairs if pair not in first)], len(first))


@pytest.mark.fast_cases(
    "vit-attn_drop_rate-False", "vit-drop_rate-True", "vit-pos_drop_rate-False", "vit-proj_drop_rate-True"
)
@pytest.mark.parametrize(("name", "rate", "checkpointing"), _rates())
def test_rates_act_in_training_alone(name, rate, checkpointing):
    settings = _add_positions(name, rate)
    plain, model = _build(name, **settings), _build(name, **settings, **{rate: 0.4})
    assert list(plain.state_dict()) == list(model.state_dict())
    model.load_state_dict(plain.state_dict())
    model.set_grad_checkpointing(checkpointing)
    inputs = _inputs(model)
    model.train()
    assert not torch.equal(model(*inputs), model(*inputs))
    model(*inputs).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    plain.load_state_dict(model.state_dict())  # BatchNorms have counted
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            assert torch.equal(model.eval()(*inputs), plain.eval()(*inputs))
    model.reset_classifier(3)
    if rate == "drop_rate":
        model.train()
        features = model.forward_features(*inputs)
        assert not torch.equal(model.forward_head(features), model.forward_head(features))


@pytest.mark.parametrize("name", FAMILIES)
def test_rates_of_zero_change_no_training(name):
    plain, model = _build(name), _build(name, **{rate: 0.0 for rate in RATES if rate in FAMILIES[name].settings})
    assert list(dict(plain.named_parameters())) == list(dict(model.named_parameters()))
    inputs = _inputs(model)
    assert torch.equal(plain.train()(*inputs), model.train()(*inputs))


@pytest.mark.fast_cases("hvt-swiglu", "vit-True+rmsnorm+swiglu+gelu+0.5")
@pytest.mark.parametrize(("name", "change"), _changes(), ids=lambda value: "+".join(map(str, value.values()))
                         if isinstance(value, dict) else value)  # fmt: skip
def test_layers_by_name_run_train_and_are_explained(name, change):
    plain, model = _build(name), _build(name, **change)
    inputs = _inputs(model, grow=5)
    model.train()(*inputs).square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
    model.eval()
    with torch.no_grad():
        logits = model(*inputs)
        with without_fast_paths():
            torch.testing.assert_close(model(*inputs), logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model(*inputs), logits, rtol=1e-4, atol=1e-4)
    if change != {"act_layer": "gelu"}:
        assert not torch.equal(plain.eval()(*inputs), logits)
    relevance = explain(model, inputs, "rollout").map
    assert relevance.isfinite().all()
    assert relevance.max() > 0
    again = _build(name, 7, **change).eval()
    vitrail.load_weights(again, model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(again(*inputs), logits)


@pytest.mark.fast_cases("swin-learned")
@pytest.mark.parametrize(("name", "kind"), _positions())
def test_positions_by_name(name, kind):
    model = _build(name, pos_embed=kind)
    names = [key for key in model.state_dict() if key.endswith(("pos_embed", "bias_table"))]
    assert any(key.endswith("pos_embed") for key in names) == ("learned" in kind)
    assert any(key.endswith("bias_table") for key in names) == ("relative" in kind)
    for grow in (0, 7):
        inputs = _inputs(model, grow)
        model.train()(*inputs).square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        with torch.no_grad():
            logits = model.eval()(*inputs)
            with without_fast_paths():
                torch.testing.assert_close(model(*inputs), logits, rtol=1e-4, atol=1e-4)
        assert explain(model, inputs, "rollout").map.isfinite().all()
    groups = [key for group in model.layer_groups() for key in group]
    assert sorted(groups) == sorted(dict(model.named_parameters()))
    assert {key for key in names if "pos_embed" in key} <= model.no_weight_decay()
    larger = _build(name, pos_embed=kind, img_size=48)
    vitrail.load_weights(larger, model.state_dict())


@pytest.mark.parametrize(("name", "kind"), [("swin", "none"), ("hvt", "none")])
def test_without_positions_attention_does_not_see_the_order(name, kind):
    """Patches of one window (Swin) or of the grid (HVT) in another order: the pooled result is the same."""
    single = {"swin": {"window_size": 8}, "hvt": {"spectral_chans": 0, "spectral_embed_dim": None}}[name]
    stages = {"depths": (2,), "num_heads": (2,), "fusion_heads": None}
    settings = {**single, **{k: v for k, v in stages.items() if k in FAMILIES[name].settings}}
    for positions, same in ((kind, True), ("sincos2d", False)):
        model = _build(name, **settings, pos_embed=positions).eval()
        (x,) = _inputs(model)
        patches = model.embed(x)[0]
        order = torch.randperm(patches.shape[1] * patches.shape[2])
        moved = patches.flatten(1, 2)[:, order].view(patches.shape)
        pooled = [model.forward_embedded(p)[0].mean((1, 2)) for p in (patches, moved)]
        assert torch.allclose(*pooled, atol=1e-5) == same


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"drop_rate": 1.0}, "drop_rate must be at least 0 and below 1, got 1.0"),
        ({"attn_drop_rate": -0.1}, "attn_drop_rate must be at least 0 and below 1"),
        ({"act_layer": "gleu"}, "act_layer must be one of .*gelu"),
        ({"act_layer": "silo"}, "act_layer must be one of .*; got 'silo'; did you mean 'silu'"),
        ({"norm_layer": "batchnorm"}, "norm_layer must be one of layernorm, rmsnorm, simplenorm; got 'batchnorm'"),
        ({"mlp_layer": "moe"}, "mlp_layer must be one of mlp, swiglu; got 'moe'"),
        ({"init_values": 0.0}, "init_values must be above 0, or null for no layer scale, got 0.0"),
        ({"pos_embed": "rotary"}, "pos_embed must be"),
    ],
)
@pytest.mark.fast_cases(
    "settings0-drop_rate must be at least 0 and below 1, got 1.0-hvt",
    "settings2-act_layer must be one of .*gelu-vit",
    "settings4-norm_layer must be one of layernorm, rmsnorm, simplenorm; got 'batchnorm'-hvt",
    "settings5-mlp_layer must be one of mlp, swiglu; got 'moe'-maxvit",
    "settings6-init_values must be above 0, or null for no layer scale, got 0.0-swin",
    "settings7-pos_embed must be-hvt",
)
def test_wrong_values_are_refused(name, settings, message):
    with pytest.raises(ConfigError, match=message):
        _build(name, **settings)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("swin", {"patch_drop_rate": 0.2}, "windows need the whole grid of patches"),
        ("maxvit", {"patch_drop_rate": 0.2}, "windows and convolutions need the whole map"),
        ("hvt", {"patch_drop_rate": 0.2}, "patch merging needs the whole grid"),
        ("swin", {"pos_drop_rate": 0.2}, "pos_embed 'relative' adds none"),
        ("maxvit", {"pos_drop_rate": 0.2}, "no positions are added"),
        ("hvt", {"pos_embed": "rope", "attention": 4}, "needs attention 'global'"),
        ("hvt", {"pos_embed": "rope", "num_heads": (8, 8)}, "multiple of 4"),
        ("hvt", {"pos_embed": "sincos2d", "embed_dim": 10, "num_heads": (2, 2)}, "multiple of 4"),
        *((name, {"global_pool": "token"}, "there is no class token") for name in FAMILIES if name != "vit"),
    ],
)
def test_what_a_family_cannot_do_is_refused_with_the_reason(name, settings, message):
    with pytest.raises(ConfigError, match=message):
        _build(name, **settings)


@pytest.mark.parametrize("act_layer", ["gelu", "silu"])
def test_the_activation_of_maxvit_reaches_its_convolutions(act_layer):
    model = _build("maxvit", act_layer=act_layer)
    kind = type(ACTIVATIONS[act_layer]())
    conv, block = model.stages[0].blocks[0].conv, model.stages[0].blocks[0].attn_block
    assert all(type(act) is kind for act in (model.stem.act1, conv.act1, conv.act2, block.mlp.act))
    assert isinstance(conv.norm1, nn.BatchNorm2d)
