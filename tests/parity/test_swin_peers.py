"""Swin at full size against timm and torchvision, on random weights."""

import pytest
import torch

import vitrail
from tests.golden_files import relative_error
from tests.peers import import_peer, places_of_dropout

pytestmark = pytest.mark.peers


VARIANTS = [
    "swin_tiny_patch4_window7_224", "swin_small_patch4_window7_224", "swin_base_patch4_window7_224",
    "swin_large_patch4_window7_224", "swin_base_patch4_window12_384", "swin_large_patch4_window12_384",
]  # fmt: skip


def _randomise(peer):
    for parameter in peer.parameters():
        if parameter.ndim == 1 or parameter.shape[0] in (169, 529):
            torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.5)
    return peer.eval()


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_are_timms(name):
    timm = import_peer("timm")
    with torch.device("meta"):
        ours, theirs = vitrail.create_model(name), timm.create_model(name)
    shapes = [{name: value.shape for name, value in model.named_parameters()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert [(i.channels, i.stride[0]) for i in ours.feature_info] == [
        (info["num_chs"], info["reduction"]) for info in theirs.feature_info
    ]


# Larger variants differ in names and shapes of parameters, which are compared for all.
@pytest.mark.parametrize("name", [*VARIANTS[:2], *(pytest.param(n, marks=pytest.mark.slow) for n in VARIANTS[2:])])
def test_every_variant_equals_timm(name):
    peer = _randomise(import_peer("timm").create_model(name))
    model = vitrail.create_model(name).eval()
    report = vitrail.load_weights(model, peer.state_dict())
    assert report.source == "timm"
    assert (report.renamed, report.resampled, report.dropped) == ({}, {}, {})
    x = torch.randn(1, *(3, *model.config.img_size))
    with torch.no_grad():
        assert relative_error(model.forward_features(x), peer.forward_features(x)) < 1e-4
        assert relative_error(model(x), peer(x)) < 1e-4


def test_windows_that_timm_shrinks():
    """Where a map is smaller than the window timm builds a smaller window; its weights still give the same."""
    settings = {
        "img_size": 32, "window_size": 4, "embed_dim": 24, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8),
        "num_classes": 7,
    }  # fmt: skip
    peer = _randomise(import_peer("timm").create_model("swin_tiny_patch4_window7_224", **settings))
    model = vitrail.create_model("swin", **settings).eval()
    report = vitrail.load_weights(model, peer.state_dict())
    assert len(report.resampled) == 4
    assert all("in the middle" in how for how in report.resampled.values())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert relative_error(model(x), peer(x)) < 1e-5


@pytest.mark.parametrize("size", [(224, 224), (200, 264), (64, 100), (32, 36)])
@pytest.mark.parametrize("window", [4, 7])
def test_any_size_equals_torchvision_where_padding_is_not_masked(window, size):
    import_peer("torchvision")
    from torchvision.models.swin_transformer import SwinTransformer

    settings = {"embed_dim": 24, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 4, 8], "num_classes": 7}
    peer = _randomise(SwinTransformer(patch_size=[4, 4], window_size=[window] * 2, **settings))
    model = vitrail.create_model("swin", window_size=window, mask_padding=False, **settings).eval()
    report = vitrail.load_weights(model, peer.state_dict())
    assert report.source == "torchvision"
    assert not report.resampled
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        assert relative_error(model(x), peer(x)) < 1e-5


def test_gradients_equal_timms():
    settings = {"img_size": 112, "embed_dim": 24, "depths": (2, 2, 2), "num_heads": (1, 2, 4), "num_classes": 7}
    peer = import_peer("timm").create_model("swin_tiny_patch4_window7_224", drop_path_rate=0.0, **settings)
    model = vitrail.create_model("swin_tiny_patch4_window7_224", **settings)
    vitrail.load_weights(model, peer.state_dict())
    x = torch.randn(2, 3, 112, 112)
    for network in (model, peer):
        network.train()
        network(x).square().sum().backward()
    theirs = dict(peer.named_parameters())
    for name, parameter in model.named_parameters():
        assert relative_error(parameter.grad, theirs[name].grad) < 1e-3, name


@pytest.mark.parametrize(
    ("size", "window"), [((256, 256), 7), ((160, 160), 7), ((96, 224), 7), ((352, 352), 12), ((64, 72), 7)]
)
def test_equals_timm_where_there_is_padding(size, window):
    settings = {
        "img_size": size, "window_size": window, "embed_dim": 24, "depths": (2, 2, 2), "num_heads": (1, 2, 4),
        "num_classes": 7,
    }  # fmt: skip
    peer = _randomise(import_peer("timm").create_model("swin_tiny_patch4_window7_224", **settings))
    x = torch.randn(2, 3, *size)
    for pad_after_shift, equal in ((True, True), (False, False)):
        model = vitrail.create_model("swin", mask_padding=False, pad_after_shift=pad_after_shift, **settings).eval()
        vitrail.load_weights(model, peer.state_dict())
        with torch.no_grad():
            error = relative_error(model.forward_features(x), peer.forward_features(x))
        assert (error < 1e-5) == equal


@pytest.mark.parametrize("norm_layer", ["layernorm", "rmsnorm"])
def test_settings_of_the_layers_equal_timms(norm_layer):
    """Rates act in training alone; norms by name, in every place where timm has one."""
    import_peer("timm")
    from timm.layers import get_norm_layer

    settings = {
        "img_size": 56, "embed_dim": 24, "depths": (2, 2), "num_heads": (1, 2), "num_classes": 7, "drop_rate": 0.2,
        "proj_drop_rate": 0.1, "attn_drop_rate": 0.3,
    }  # fmt: skip
    norm = {"layernorm": torch.nn.LayerNorm, "rmsnorm": get_norm_layer("rmsnorm")}[norm_layer]
    peer = import_peer("timm").create_model("swin_tiny_patch4_window7_224", norm_layer=norm, **settings)
    model = vitrail.create_model("swin", norm_layer=norm_layer, **settings)
    assert places_of_dropout(model) == places_of_dropout(peer)
    eps = {m.eps for m in peer.modules() if type(m).__name__.lower() == norm_layer}
    for module in (*model.modules(), *peer.modules()):
        if hasattr(module, "eps"):
            module.eps = min(eps)
    vitrail.load_weights(model.eval(), _randomise(peer).state_dict())
    x = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        assert relative_error(model(x), peer(x)) < 1e-5
