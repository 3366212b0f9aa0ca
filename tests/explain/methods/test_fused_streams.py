"""What fused tokens drew on, against the whole matrices of the second stream and the vectors that were added."""

import random

import pytest
import torch

import vitrail
from vitrail.errors import ConfigError
from vitrail.explain import attention_rollout, capture_attention, spectral_regions, stream_shares


def _model(rng, fusion):
    model = vitrail.create_model(
        "hvt", img_size=32, patch_size=4, embed_dim=8, depths=(1, 2), num_heads=(1, 2), num_classes=3,
        attention=rng.choice(["global", 3]), spectral_chans=3, spectral_embed_dim=12, fusion=fusion,
        spectral_patch_size=rng.choice([4, 5]),
    ).eval()  # fmt: skip
    for parameter in model.parameters():
        parameter.data.mul_(1.5).add_(torch.randn_like(parameter), alpha=0.1)
    return model, torch.randn(2, 3, 37, 30), torch.randn(2, 3, rng.randint(20, 40), rng.randint(20, 40))


@pytest.mark.fast_cases("concat-0")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fusion", ["cross_attention", "concat"])
def test_regions(fusion, seed):
    rng = random.Random(f"{fusion}{seed}")
    torch.manual_seed(seed)
    model, image, spectral = _model(rng, fusion)
    boxes = [(0, 0, 37, 30), (0, 0, 8, 8), (7, 8, 9, 16), (32, 24, 37, 30)]
    result = spectral_regions(model, image, spectral, boxes=boxes)
    with torch.no_grad(), capture_attention(model, "fusion*") as record:
        model(image, spectral)
    (step,) = record.steps
    weights = step.weights.mean(1)
    # Tokens of 8 x 8 pixels on a grid of 5 x 4.
    touched = [range(20), [0], [1, 5], [19]]
    for number, tokens in enumerate(touched):
        assert result.tokens[number].flatten().nonzero().flatten().tolist() == list(tokens)
        expected = weights[:, list(tokens)].mean(1)
        assert torch.allclose(result.direct[:, number].flatten(1), expected, atol=1e-6)
    whole = attention_rollout(model, image, spectral).others["spectral"]
    assert torch.allclose(result.traced[:, 0], whole.tokens, atol=1e-6)
    assert torch.allclose(result.map[:, 0], whole.map, atol=1e-6)
    assert torch.allclose(result.traced.sum((2, 3)), torch.ones(2, 4), atol=1e-5)
    # The whole is the mean of its tokens, each a region of its own.
    single = [(8 * r, 8 * c, min(8 * r + 8, 37), min(8 * c + 8, 30)) for r in range(5) for c in range(4)]
    parts = spectral_regions(model, image, spectral, boxes=single)
    assert torch.allclose(parts.traced.mean(1), whole.tokens, atol=1e-6)
    assert torch.allclose(spectral_regions(model, image, spectral).direct, result.direct[:, :1])


def test_shares_of_cross_attention():
    torch.manual_seed(0)
    model, image, spectral = _model(random.Random(1), "cross_attention")
    shares = stream_shares(model, image, spectral)
    with torch.no_grad():
        own, context = model.encode(image, spectral)
        added = model.fusion.attn(own, context + model.fusion.prompt)
        expected = added.norm(dim=-1) / (own.norm(dim=-1) + added.norm(dim=-1))
        assert torch.allclose(shares.spectral, expected, atol=1e-6)
        assert torch.allclose(shares.mean, expected.mean((1, 2)))
        model.fusion.attn.proj.weight.zero_()
        model.fusion.attn.proj.bias.zero_()
    assert torch.equal(stream_shares(model, image, spectral).mean, torch.zeros(2))
    assert all(not module._forward_hooks for module in model.modules())


def test_shares_of_concatenation():
    torch.manual_seed(0)
    model, image, spectral = _model(random.Random(2), "concat")
    shares = stream_shares(model, image, spectral)
    with torch.no_grad():
        zeros = torch.zeros(2, 5, 4, 16)
        bias = model.fusion.proj.bias
        own, context = model.encode(image, spectral)
        parts = model.fusion(own, torch.zeros_like(context)) - bias, model.fusion(zeros, context) - bias
        lengths = [part.norm(dim=-1) for part in parts]
    assert torch.allclose(shares.spectral, lengths[1] / (lengths[0] + lengths[1]), atol=1e-5)


def test_bad_input():
    model, image, spectral = _model(random.Random(3), "concat")
    with pytest.raises(ConfigError, match="37 x 30 pixels"):
        spectral_regions(model, image, spectral, boxes=[(0, 0, 38, 30)])
    with pytest.raises(ConfigError, match="inputs of both"):
        stream_shares(model, image)
    alone = vitrail.create_model("hvt", img_size=16, patch_size=4, embed_dim=8, depths=(1,), num_heads=(2,))
    with pytest.raises(ConfigError, match="has one stream"):
        spectral_regions(alone, torch.randn(1, 3, 16, 16))
