"""MaxViT at full size against timm and torchvision, on random weights."""

import pytest
import torch

import vitrail
from tests.golden_files import relative_error
from tests.peers import import_peer, places_of_dropout

pytestmark = pytest.mark.peers

SIZES = (224, 384, 512)
WIDTHS = ("tiny", "small", "base", "large", "xlarge")
# Wider variants differ in names and shapes of parameters, which are compared for all.
FAST = {"maxvit_tiny_tf_224", "maxvit_small_tf_224"}
VARIANTS = [f"maxvit_{width}_tf_{size}" for width in WIDTHS for size in SIZES]
TINY = {"img_size": 64, "embed_dim": (16, 32), "depths": (1, 2), "stem_width": 8, "num_classes": 7}


def _randomise(peer):
    for name, tensor in peer.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0)
        elif name.endswith(("running_mean", "bias", "bias_table")):
            tensor.normal_(std=0.3)
    return peer


def _tiny_peer(**settings):
    timm = import_peer("timm")
    return timm.create_model(
        "maxvit_tiny_tf_224", **{**TINY, "block_type": ("M", "M"), "head_hidden_size": 32, **settings}
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_are_timms(name):
    timm = import_peer("timm")
    with torch.device("meta"):
        ours, theirs = vitrail.create_model(name), timm.create_model(name)
    shapes = {key: value.numel() for key, value in theirs.state_dict().items()}
    assert {key: value.numel() for key, value in ours.state_dict().items()} == shapes
    assert [(i.channels, i.stride[0]) for i in ours.feature_info] == [
        (info["num_chs"], info["reduction"]) for info in theirs.feature_info
    ]


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in VARIANTS])
def test_every_variant_equals_timm(name):
    peer = _randomise(import_peer("timm").create_model(name)).eval()
    model = vitrail.create_model(name).eval()
    report = vitrail.load_weights(model, peer.state_dict())
    assert report.source == "timm"
    assert (report.renamed, report.resampled, report.dropped) == ({}, {}, {})
    x = torch.randn(1, 3, *model.config.img_size)
    with torch.no_grad():
        ours, theirs = model.forward_features(x).double(), peer.forward_features(x).double()
        model, peer, x = model.double(), peer.double(), x.double()
        expected = peer.forward_features(x)
        assert relative_error(model.forward_features(x), expected) < 1e-9
        # Random weights in many layers magnify rounding, theirs like ours.
        assert relative_error(ours, expected) < 1e-5 + 3 * relative_error(theirs, expected)
        assert relative_error(model.forward_head(expected), peer.forward_head(expected)) < 1e-9


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (61, 94), (128, 33)])
def test_sizes_that_timm_takes_unpadded(size):
    """Windows fit and the odd maps at the strides differ from run to run: 'same' padding at any size."""
    peer = _randomise(_tiny_peer(transformer_window_size=(1, 2), transformer_dim_head=8)).eval()
    model = vitrail.create_model("maxvit", **TINY, window_size=(1, 2), dim_head=8).eval()
    vitrail.load_weights(model, peer.state_dict())
    x = torch.randn(2, 3, *size)
    if -(-size[1] // 8) % 2 or -(-size[1] // 4) % 2:
        x = x[..., : size[1] // 16 * 16]
    with torch.no_grad():
        assert relative_error(model(x), peer(x)) < 1e-5


def test_head_without_a_hidden_layer_equals_timms():
    peer = _randomise(_tiny_peer(head_hidden_size=0, transformer_window_size=(4, 4), transformer_dim_head=8)).eval()
    model = vitrail.create_model("maxvit", **{**TINY, "head_hidden_size": 0, "window_size": 4, "dim_head": 8})
    vitrail.load_weights(model.eval(), peer.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert relative_error(model.forward_features(x), peer.forward_features(x)) < 1e-5
        assert relative_error(model(x), peer(x)) < 1e-5


def test_gradients_and_statistics_equal_timms():
    peer = _randomise(_tiny_peer(transformer_window_size=(4, 4), transformer_dim_head=8)).train()
    model = vitrail.create_model("maxvit", **TINY, window_size=4, dim_head=8).train()
    vitrail.load_weights(model, peer.state_dict())
    x = torch.randn(3, 3, 64, 64)
    target = torch.tensor([1, 0, 3])
    for m in (peer, model):
        torch.nn.functional.cross_entropy(m(x), target).backward()
    theirs = dict(peer.named_parameters())
    for name, parameter in model.named_parameters():
        expected = theirs[name].grad
        if name.endswith("bias_table"):
            expected = expected.flip(1, 2).flatten(1).t()
        # The biases in front of a BatchNorm have no gradient but rounding.
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-3, atol=1e-5)
    buffers = dict(peer.named_buffers())
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(buffer, buffers[name], rtol=1e-4, atol=1e-5)


def test_torchvisions_variant():
    import_peer("torchvision")
    from torchvision.models import maxvit_t

    peer = _randomise(maxvit_t()).eval()
    model = vitrail.create_model("maxvit", flavour="torchvision").eval()
    report = vitrail.load_weights(model, peer.state_dict())
    assert report.source == "torchvision"
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in peer.parameters()) == 30_919_624
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert relative_error(model(x), peer(x)) < 1e-4


@pytest.mark.parametrize(
    ("own", "theirs"),
    [
        ({"init_values": 0.3}, {"transformer_init_values": 0.3}),
        ({"act_layer": "silu"}, {"conv_act_layer": "silu", "transformer_act_layer": "silu"}),
        ({"drop_rate": 0.2, "attn_drop_rate": 0.3, "proj_drop_rate": 0.1},
         {"drop_rate": 0.2, "transformer_attn_drop": 0.3, "transformer_proj_drop": 0.1}),
        ({"pos_embed": "none"}, {"transformer_rel_pos_type": ""}),
    ],
    ids=["layer_scale", "activation", "rates", "no_positions"],
)  # fmt: skip
def test_settings_of_the_layers_equal_timms(own, theirs):
    peer = _randomise(_tiny_peer(transformer_window_size=(4, 4), transformer_dim_head=8, **theirs)).eval()
    model = vitrail.create_model("maxvit", **TINY, window_size=4, dim_head=8, **own)
    vitrail.load_weights(model.eval(), peer.state_dict())
    rates = [sorted(places_of_dropout(net).values()) for net in (model, peer)]
    assert rates[0] == rates[1]
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert relative_error(model(x), peer(x)) < 1e-5
