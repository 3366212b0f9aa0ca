"""Patch resampling and whole checkpoints against timm's own, at random sizes."""

import random

import pytest
import torch

import vitrail
from tests.peers import import_peer
from vitrail.models.recognise import recognise
from vitrail.weights import BandRule, resize_patches
from vitrail.weights.read import unwrap

pytestmark = pytest.mark.peers


@pytest.mark.parametrize("seed", range(10))
def test_patches_are_resampled_as_timm_does(seed):
    import_peer("timm")
    from timm.layers import resample_patch_embed

    rng = random.Random(seed)
    old, new = ([rng.randint(2, 16), rng.randint(2, 16)] for _ in range(2))
    kernel = torch.randn(rng.randint(1, 9), rng.randint(1, 5), *old)
    wanted = resample_patch_embed(kernel.double(), new, verbose=False)
    actual = resize_patches(kernel.double(), tuple(new))
    assert torch.allclose(actual, wanted, atol=1e-6 * wanted.abs().max().item(), rtol=1e-4)


@pytest.mark.parametrize("bands", [1, 3, 4, 5, 7, 12])
def test_repeat_is_timms_rule_for_bands(bands):
    import_peer("timm")
    from timm.models._manipulate import adapt_input_conv

    kernel = torch.randn(6, 3, 4, 4)
    rule = BandRule("mean" if bands == 1 else "repeat")
    assert torch.allclose(rule.apply(kernel, bands, "image")[0], adapt_input_conv(bands, kernel), atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_a_vit_for_another_size_answers_as_timms(seed):
    timm = import_peer("timm")
    from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

    rng = random.Random(seed)
    old, new = (rng.choice([4, 6, 8, 10]) for _ in range(2))
    sizes = [old * rng.randint(3, 5), new * rng.randint(3, 5)]
    common = {"embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 4}
    theirs = VisionTransformer(img_size=sizes[0], patch_size=old, **common)
    larger = VisionTransformer(img_size=sizes[1], patch_size=new, **common).eval()
    larger.load_state_dict(checkpoint_filter_fn(theirs.state_dict(), larger, interpolation="bicubic", antialias=True))
    model = vitrail.create_model("vit", img_size=sizes[1], patch_size=new, **common).eval()
    report = vitrail.load_weights(model, theirs.state_dict(), source="timm")
    assert ("patch_embed.proj.weight" in report.resampled) == (old != new)
    x = torch.randn(2, 3, sizes[1], sizes[1])
    with torch.no_grad():
        wanted = larger(x)
        assert torch.allclose(model(x), wanted, atol=1e-4 * wanted.abs().max().item())
    assert timm.__version__


@pytest.mark.parametrize(
    "name",
    ["vit_tiny_patch16_224", "vit_small_patch32_224", "swin_tiny_patch4_window7_224", "maxvit_tiny_tf_224"],
)
def test_timms_checkpoints_are_recognised(name):
    timm = import_peer("timm")
    state = timm.create_model(name, num_classes=11, in_chans=4).state_dict()
    facts = recognise(unwrap(state, name), name)
    assert (facts.source, facts.num_classes, facts.inputs[0].bands) == ("timm", 11, 4)
    assert [fit.name for fit in facts.fits] == [name]


@pytest.mark.parametrize(
    ("name", "family", "variant"),
    [("vit_b_32", "vit", "vit_base_patch32_224"), ("swin_t", "swin", "swin_tiny_patch4_window7_224")],
)
def test_torchvisions_checkpoints_are_recognised(name, family, variant):
    torchvision = import_peer("torchvision")
    state = getattr(torchvision.models, name)(num_classes=3).state_dict()
    facts = recognise(unwrap(state, name), name)
    assert (facts.source, facts.family, facts.num_classes) == ("torchvision", family, 3)
    assert [fit.name for fit in facts.fits] == [variant]


def test_hugging_faces_models_without_a_head_are_recognised():
    transformers = import_peer("transformers")
    small = {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "image_size": 32, "window_size": 4}
    swin = transformers.SwinModel(transformers.SwinConfig(**small)).state_dict()
    vit = transformers.ViTModel(
        transformers.ViTConfig(
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=96,
            image_size=32,
            patch_size=8,
        )
    ).state_dict()
    for state, family in ((swin, "swin"), (vit, "vit")):
        facts = recognise(unwrap(state, "x"), "x")
        assert (facts.family, facts.source, facts.num_classes) == (family, "huggingface", 0)
    settings = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 6}
    model = vitrail.create_model("vit", **settings)
    report = vitrail.load_weights(model, vit, new_head=True)
    assert set(report.new_head) == {"head.weight", "head.bias"}
