"""What timm's tools ask of a model: pooling, classifiers, intermediates, feature encoders, pruning."""

import copy

import pytest
import torch
from torch import nn

import vitrail
from tests.models.test_module import CASES, build, inputs_of
from tests.tiers import spread
from vitrail.errors import ConfigError, ShapeError
from vitrail.models import list_families

FORMS = {"NCHW": (0, 1, 2, 3), "NHWC": (0, 2, 3, 1)}


def pytest_generate_tests(metafunc):
    spread(metafunc, case=CASES)


@pytest.fixture
def model(case):
    return build(case).eval()


def _positions(features, model):
    """Tokens of the map, ``(B, N, C)``."""
    if model.channels_first:
        return features.flatten(2).transpose(1, 2)
    return features.reshape(features.shape[0], -1, features.shape[-1])[:, model.num_prefix :]


POOLS = {
    "avg": lambda x: x.mean(1),
    "max": lambda x: x.amax(1),
    "avgmax": lambda x: (x.mean(1) + x.amax(1)) / 2,
}


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.fast_cases("hvt-avgmax", "maxvit-avgmax", "swin-max", "vit-avg", "vit, patches dropped-avg")
def test_pooling_by_hand(case, pool):
    model = build(case, global_pool=pool).eval()
    inputs = inputs_of(model)
    with torch.no_grad():
        pooled = POOLS[pool](_positions(model.forward_features(*inputs), model))
        if hasattr(model, "fc_norm"):
            pooled = model.fc_norm(pooled)
        if hasattr(model, "head_norm"):
            pooled = model.head_norm(pooled)
        torch.testing.assert_close(model(*inputs), model.head(pooled))
        # The same after a reset of a model that pools otherwise, whose norm stays where it is.
        other = build(case).eval()
        other.reset_classifier(3, global_pool=pool)
        assert other.config.global_pool == pool
        assert other(*inputs).shape == (2, 3)


def test_without_pooling_every_token_is_classified(case):
    model = build(case, global_pool="").eval()
    inputs = inputs_of(model)
    with torch.no_grad():
        features, logits = model.forward_features(*inputs), model(*inputs)
        shape = list(features.shape)
        shape[1 if model.channels_first else -1] = model.num_classes
        assert list(logits.shape) == shape
        model.reset_classifier(0, "")
        assert model(*inputs).shape[1 if model.channels_first else -1] == model.num_features


def test_unknown_pools_are_refused(case):
    with pytest.raises(ConfigError, match="global_pool must be"):
        build(case, global_pool="mean")


@pytest.mark.fast_cases("vit, mean")
def test_pooled_models_are_saved(case, tmp_path):
    model = build(case, global_pool="avgmax")
    model.reset_classifier(3, "max")
    vitrail.save_pretrained(model, tmp_path)
    again, inputs = vitrail.from_pretrained(tmp_path), inputs_of(model)
    assert again.config.global_pool == "max"
    assert torch.equal(again(*inputs), model.eval()(*inputs))


@pytest.mark.slow_cases("maxvit")
def test_the_configuration_names_modules(model):
    cfg = model.default_cfg
    assert cfg == model.pretrained_cfg
    assert f"{cfg['classifier']}.weight" in model.state_dict()
    assert f"{cfg['first_conv']}.weight" in model.state_dict()
    assert cfg["input_size"][0] == model.streams[0].chans
    assert model.get_classifier().out_features == cfg["num_classes"] == 5
    assert model.head_hidden_size == model.get_classifier().in_features


@pytest.mark.slow_cases("maxvit as torchvision")
@torch.no_grad()
def test_intermediates_have_timms_forms(model):
    inputs = inputs_of(model)
    features, maps = model.forward_intermediates(*inputs)
    torch.testing.assert_close(features, model.forward_features(*inputs))
    assert [x.shape[1] for x in maps] == [info["num_chs"] for info in model.feature_info]
    nhwc = model.forward_intermediates(*inputs, output_fmt="NHWC", intermediates_only=True)
    nlc = model.forward_intermediates(*inputs, output_fmt="NLC", intermediates_only=True)
    for first, second, third in zip(maps, nhwc, nlc, strict=True):
        assert torch.equal(first.permute(0, 2, 3, 1), second)
        assert torch.equal(second.flatten(1, 2), third)
    first = model.forward_intermediates(*inputs, indices=[0], stop_early=True, intermediates_only=True)
    assert torch.equal(first[0], maps[0])
    normed = model.forward_intermediates(*inputs, norm=True, intermediates_only=True)
    assert [x.shape for x in normed] == [x.shape for x in maps]
    with pytest.raises(ConfigError, match="output_fmt must be"):
        model.forward_intermediates(*inputs, output_fmt="NCL")


@torch.no_grad()
@pytest.mark.parametrize("options", [{"stop_early": True}, {"intermediates_only": True}], ids=str)
@pytest.mark.fast_cases(
    "maxvit-{'stop_early': True}",
    "swin-{'intermediates_only': True}",
    "vit with fuser-{'stop_early': True}",
    "hvt, streams side by side-{'intermediates_only': True}",
)
def test_early_stops_run_no_later_block(model, options):
    inputs = inputs_of(model)
    for info in model.feature_info[1:]:
        model.get_submodule(info.name).register_forward_hook(_fail)
    features, maps = _pair(model.forward_intermediates(inputs, indices=[0], **options))
    assert len(maps) == 1
    assert features is None or features.shape[0] == 2


def _pair(result):
    return result if isinstance(result, tuple) else (None, result)


def _fail(*_):
    raise AssertionError("a later layer ran")


@torch.no_grad()
def test_indices_may_follow_the_images(model):
    inputs = inputs_of(model)
    expected = model.forward_intermediates(*inputs, indices=[0])
    if type(model).__name__ == "HVT":
        inputs = [*inputs, None][:2]  # the second input comes before the indices
    for given in (model.forward_intermediates(*inputs, [0]), model.forward_intermediates(inputs, indices=[0])):
        assert torch.equal(given[0], expected[0])
        assert torch.equal(given[1][0], expected[1][0])


@torch.no_grad()
def test_prefix_tokens_only_where_there_are_some(model):
    for level in model.forward_intermediates(inputs_of(model), return_prefix_tokens=True, intermediates_only=True):
        assert isinstance(level, tuple) == bool(model.num_prefix)
        assert not model.num_prefix or level[1].shape[1] == model.num_prefix


@torch.no_grad()
def test_prefix_tokens_and_norms_of_vit():
    model = build("vit").eval()
    x = inputs_of(model)[0]
    features, pairs = model.forward_intermediates(x, return_prefix_tokens=True, norm=True, output_fmt="NLC")
    tokens, prefix = pairs[-1]
    torch.testing.assert_close(torch.cat([prefix, tokens], 1), features)


def test_levels_are_timms_dictionaries(model):
    for info in copy.deepcopy(model.feature_info):
        assert (info["module"], info["num_chs"], info["reduction"]) == (info.name, info.channels, info.stride[0])
        assert info.setdefault("index", 3) == 3


@pytest.mark.slow_cases("swin, attention pooling")
@torch.no_grad()
def test_feature_encoders(case):
    name, changes = CASES[case]
    settings = {**list_families()[name].test_config, **changes}
    encoder = vitrail.create_model(name, features_only=True, **settings).eval()
    inputs = inputs_of(encoder.model)
    maps = encoder(*inputs)
    assert [x.shape[1] for x in maps] == encoder.feature_info.channels()
    assert len(encoder.feature_info.reduction()) == len(encoder.feature_info.module_name()) == len(maps)
    last = vitrail.create_model(name, features_only=True, out_indices=(-1,), **settings).eval()
    assert [x.shape[1] for x in last(*inputs)] == last.feature_info.channels() == encoder.feature_info.channels()[-1:]
    with pytest.raises(ConfigError, match="features_only=True"):
        vitrail.create_model(name, out_indices=(0,), **settings)


@torch.no_grad()
def test_symbolic_graphs_of_feature_encoders(case):
    name, changes = CASES[case]
    encoder = vitrail.create_model(name, features_only=True, **{**list_families()[name].test_config, **changes}).eval()
    graph, inputs = torch.fx.symbolic_trace(encoder), inputs_of(encoder.model, 3)
    torch.testing.assert_close(graph(*inputs), encoder(*inputs))


def test_an_encoder_of_one_stream_refuses_a_second_input():
    encoder = vitrail.create_model("swin", features_only=True, **list_families()["swin"].test_config)
    with pytest.raises(ShapeError, match="the model has one stream"):
        encoder(torch.randn(1, 3, 32, 32), torch.randn(1, 3, 32, 32))


def test_a_feature_pyramid_decodes_every_family(case):
    name, changes = CASES[case]
    encoder = vitrail.create_model(name, features_only=True, **{**list_families()[name].test_config, **changes})
    laterals = nn.ModuleList(nn.Conv2d(channels, 8, 1) for channels in encoder.feature_info.channels())
    inputs = inputs_of(encoder.model)
    maps = [lateral(x) for lateral, x in zip(laterals, encoder(*inputs), strict=True)]
    size = maps[0].shape[2:]
    out = sum(nn.functional.interpolate(x, size, mode="bilinear") for x in maps)
    out.sum().backward()
    assert out.shape == (2, 8, *size)


@torch.no_grad()
def test_pruned_models_give_the_same_levels(model):
    inputs = inputs_of(model)
    if len(model.streams) == 2:
        with pytest.raises(ConfigError, match="cannot be pruned"):
            model.prune_intermediate_layers([0])
        return
    keep = 1 if type(model).__name__ == "MaxViT" else 0
    expected = model.forward_intermediates(*inputs, indices=[keep], intermediates_only=True)
    count = sum(p.numel() for p in model.parameters())
    assert model.prune_intermediate_layers([keep]) == [keep]
    assert sum(p.numel() for p in model.parameters()) < count
    features, maps = model.forward_intermediates(*inputs, indices=[keep])
    assert torch.equal(maps[0], expected[0])
    assert model(*inputs).shape == features.shape
    assert model.num_classes == 0


def test_checkpointing_as_hugging_face_asks(model):
    model.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    enabled = [m for m in model.modules() if getattr(m, "grad_checkpointing", False)]
    assert enabled
    model(*inputs_of(model)).sum().backward()
    model.gradient_checkpointing_disable()
    assert not any(m.grad_checkpointing for m in enabled)
    model.activation_checkpointing_enable(activation_checkpointing_kwargs=None, every_n_layers=1, offload=False)
    assert all(m.grad_checkpointing for m in enabled)
    model.activation_checkpointing_disable()
    with pytest.raises(ConfigError, match="use every_n_layers=1"):
        model.gradient_checkpointing_enable(every_n_layers=2)


@pytest.mark.fast_cases("maxvit", "vit")
@pytest.mark.parametrize("name", sorted(list_families("image")))
def test_reloaded_by_hugging_faces_mixin(name, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    kind = type(vitrail.create_model(name, **list_families()[name].test_config))
    mixed = type(f"My{kind.__name__}", (kind, hub.PyTorchModelHubMixin), {})
    config = list_families()[name].config(**list_families()[name].test_config)
    model = mixed(config)
    model.save_pretrained(tmp_path)
    again = mixed.from_pretrained(tmp_path)
    assert again.config == config
    inputs = inputs_of(model)
    assert torch.equal(again.eval()(*inputs), model.eval()(*inputs))


def test_layers_by_name_as_timm_groups_them(model):
    layer_of, groups = model.group_matcher(coarse=False), model.layer_groups()
    assert [[name for name, _ in model.named_parameters() if layer_of(name) == i] for i in range(len(groups))] == groups
    assert layer_of(model.classifier) == len(groups) - 1
    assert layer_of("not a part") == 0
