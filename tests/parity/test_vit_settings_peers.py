"""ViT's settings against timm's, with random weights: logits of the same state dict."""

import pytest
import torch

import vitrail
from tests.peers import import_peer

pytestmark = pytest.mark.peers

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 5}
# What both libraries call alike.
SHARED = {
    "register tokens": {"reg_tokens": 3},
    "registers without class token": {"reg_tokens": 2, "class_token": False, "global_pool": "avg"},
    "no positions of prefix tokens": {"reg_tokens": 2, "no_embed_class": True},
    "maximum": {"global_pool": "max"},
    "mean and maximum": {"global_pool": "avgmax"},
    "attention pooling": {"global_pool": "map"},
    "attention pooling without class token": {"global_pool": "map", "class_token": False},
    "all tokens": {"global_pool": ""},
    "layer scale": {"init_values": 0.1},
    "normalised queries and keys": {"qk_norm": True},
    "RMSNorm": {"norm_layer": "rmsnorm", "qk_norm": True, "global_pool": "avg"},
    "SimpleNorm": {"norm_layer": "simplenorm"},
    "no positions": {"pos_embed": "none"},
    "dropout in evaluation": {"drop_rate": 0.5, "proj_drop_rate": 0.5, "attn_drop_rate": 0.5, "patch_drop_rate": 0.5},
    **{name: {"act_layer": name} for name in ("gelu_tanh", "quick_gelu", "silu", "relu", "mish", "tanh")},
}


@torch.no_grad()
def _randomise(model):
    for parameter in model.parameters():
        parameter.normal_(std=0.2)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("name", SHARED)
def test_logits_equal_timms(name):
    timm = import_peer("timm")
    settings = {**SMALL, **SHARED[name]}
    theirs = _randomise(timm.models.VisionTransformer(**settings))
    ours = vitrail.create_model("vit", **settings).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("packed", [True, False])
def test_gated_mlps_load_from_both_layouts_of_timm(packed):
    timm = import_peer("timm")
    kind = timm.layers.SwiGLUPacked if packed else timm.layers.SwiGLU
    ratio = 4.0 if packed else 2.0
    theirs = _randomise(
        timm.models.VisionTransformer(**{**SMALL, "mlp_ratio": ratio}, mlp_layer=kind, act_layer=torch.nn.SiLU)
    )
    ours = vitrail.create_model("vit", **SMALL, mlp_layer="swiglu", mlp_ratio=2.0).eval()
    vitrail.load_weights(ours, theirs.state_dict())
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("size", [(32, 32), (40, 56)])
def test_positions_of_other_sizes_are_resampled_as_timms(size):
    timm = import_peer("timm")
    settings = {**SMALL, "reg_tokens": 2}
    theirs = _randomise(timm.models.VisionTransformer(**settings, dynamic_img_size=True, dynamic_img_pad=True))
    ours = vitrail.create_model("vit", **settings).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, *size)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("grid", [(4, 4), (3, 5)])
def test_rotary_positions_are_those_of_timms_dinov3(grid):
    import_peer("timm")
    from timm.layers import apply_rot_embed_cat
    from timm.layers.pos_embed_sincos import RotaryEmbeddingDinoV3

    from vitrail.layers.positions import rotary_positions, rotate

    x = torch.randn(2, 3, grid[0] * grid[1], 16)
    embedding = RotaryEmbeddingDinoV3(16).get_embed(list(grid))
    expected = apply_rot_embed_cat(x, embedding, half=True)
    torch.testing.assert_close(rotate(x, rotary_positions(grid, 16, x)), expected, rtol=1e-5, atol=1e-5)


def test_patch_dropout_keeps_as_many_patches_as_timms():
    timm = import_peer("timm")
    from vitrail.layers.patches import PatchDropout

    for count, rate in ((16, 0.3), (9, 0.95), (49, 0.5)):
        tokens = torch.randn(2, 1 + count, 4)
        expected = timm.layers.PatchDropout(rate)(tokens)
        found, _ = PatchDropout(rate, 1)(tokens)
        assert found.shape == expected.shape
        assert torch.equal(found[:, :1], tokens[:, :1])
