"""Learned positions, relative positions, and what bias and content decide, against scores computed from the queries."""

import random

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax

import vitrail
from tests.explain.dense import hierarchy_settings, places
from vitrail.errors import ConfigError
from vitrail.explain import bias_and_content, capture_attention, position_similarities, relative_biases
from vitrail.explain.structure.positions import position_kinds


@pytest.mark.slow_cases("swin-1", "swin-2")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("family", ["swin", "maxvit"])
def test_bias_and_content(family, seed):
    rng = random.Random(f"{family}{seed}")
    torch.manual_seed(seed)
    model = vitrail.create_model(family, **hierarchy_settings(family, rng)).eval()
    for name, parameter in model.named_parameters():
        parameter.data.mul_(1.5).add_(torch.randn_like(parameter), alpha=0.7 if "bias_table" in name else 0.1)
    x = torch.randn(2, 2, rng.randint(17, 30), rng.randint(17, 30))
    measured = {m.name: m for m in bias_and_content(model, x)}
    biases = {b.name: b for b in relative_biases(model)}
    name = rng.choice(list(biases))
    layer, seen = model.get_submodule(name), []
    with torch.no_grad(), capture_attention(model, name) as record:
        handle = layer.qkv.register_forward_hook(lambda module, args, output: seen.append(output))
        model(x)
        handle.remove()
    (step,) = record.steps
    groups, (H, W) = places(step.layout), step.layout.query_grid
    heads = layer.num_heads
    q, k, _ = seen[0].view(2, len(groups), -1, 3, heads, layer.qkv.in_features // heads).unbind(3)
    weights = step.weights.view(2, len(groups), *step.weights.shape[1:])
    wh, ww = step.layout.window
    table = biases[name].table.detach().numpy()
    middle = np.array(table.shape[1:]) // 2
    offsets = [(i, j) for i in range(wh) for j in range(ww)]
    bias = np.array([[table[:, middle[0] + a - c, middle[1] + b - d] for c, d in offsets] for a, b in offsets])
    for image in range(2):
        for head in range(heads):
            covariances, variances, by_bias, by_content = [], [], [], []
            for number, tokens in enumerate(groups):
                products = q[image, number, :, head] @ k[image, number, :, head].t() / q.shape[-1] ** 0.5
                for row, (a, b) in enumerate(tokens):
                    if a >= H or b >= W:
                        continue
                    allowed = (weights[image, number, head, row] > 0).numpy()
                    c, learned = products[row].double().numpy()[allowed], bias[row, allowed, head].astype(float)
                    scores = c + learned
                    assert np.allclose(softmax(scores), weights[image, number, head, row].numpy()[allowed], atol=1e-5)
                    covariances.append(np.mean((learned - learned.mean()) * (scores - scores.mean())))
                    variances.append(scores.var())
                    by_bias.append(rel_entr(softmax(scores), softmax(c)).sum())
                    by_content.append(rel_entr(softmax(scores), softmax(learned)).sum())
            m = measured[name]
            assert m.bias_share[image, head] == pytest.approx(sum(covariances) / sum(variances), abs=1e-4)
            assert m.bias_nats[image, head] == pytest.approx(np.mean(by_bias), abs=1e-4)
            assert m.content_nats[image, head] == pytest.approx(np.mean(by_content), abs=1e-4)


def test_all_bias_and_all_content():
    model = vitrail.create_model("swin", img_size=16, patch_size=2, window_size=4, embed_dim=8, depths=(2,),
                                 num_heads=(2,), num_classes=2).eval()  # fmt: skip
    x = torch.randn(1, 3, 16, 16)
    blocks = model.layers[0].blocks
    blocks[0].attn.qkv.weight.data[:8] = 0  # queries
    blocks[0].attn.qkv.bias.data[:8] = 0
    blocks[1].attn.relative_position_bias_table.data.fill_(3.0)  # the same for all keys
    first, second = bias_and_content(model, x)
    assert torch.allclose(first.bias_share, torch.ones(1, 2), atol=1e-4)
    assert torch.allclose(first.content_nats, torch.zeros(1, 2), atol=1e-5)
    assert torch.allclose(second.bias_share, torch.zeros(1, 2), atol=1e-4)
    assert torch.allclose(second.bias_nats, torch.zeros(1, 2), atol=1e-5)


def test_likeness_of_positions():
    model = vitrail.create_model("vit", img_size=(16, 24), patch_size=4, embed_dim=16, depth=1, num_heads=2)
    (found,) = position_similarities(model)
    assert (found.name, found.grid) == ("pos_embed", (4, 6))
    table = model.pos_embed.detach()[0, 1:]
    expected = torch.cosine_similarity(table[1 * 6 + 2], table[3 * 6 + 5], dim=0)
    assert torch.allclose(found.similarity[1, 2, 3, 5], expected)
    assert torch.allclose(found.similarity.flatten(0, 1).flatten(1).diagonal(), torch.ones(24))
    hvt = vitrail.create_model("hvt", img_size=16, patch_size=4, embed_dim=8, depths=(1,), num_heads=(2,),
                               spectral_chans=2, spectral_patch_size=8)  # fmt: skip
    assert [(p.name, p.grid) for p in position_similarities(hvt)] == [
        ("rgb.pos_embed", (4, 4)), ("spectral.pos_embed", (2, 2)),
    ]  # fmt: skip


TINY = {
    "vit": {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2},
    "swin": {"img_size": 16, "patch_size": 4, "window_size": 2, "embed_dim": 8, "depths": (1,), "num_heads": (2,)},
    "maxvit": {"img_size": 16, "stem_width": 8, "embed_dim": (8,), "depths": (1,), "dim_head": 4, "window_size": 2},
    "hvt": {"img_size": 16, "patch_size": 4, "embed_dim": 8, "depths": (1,), "num_heads": (2,)},
}


@pytest.mark.parametrize(
    ("name", "pos_embed", "kinds"),
    [
        *[("vit", kind, ["learned"]) for kind in ("learned", "learned1d")],
        *[("vit", kind, ["fixed"]) for kind in ("sincos2d", "sincos1d")],
        ("vit", "rope", ["rotary"]),
        ("vit", "none", []),
        ("swin", "relative", ["relative"]),
        ("swin", "learned+relative", ["learned", "relative"]),
        ("swin", "sincos2d", ["fixed"]),
        ("swin", "none", []),
        ("maxvit", "relative", ["relative"]),
        ("maxvit", "none", []),
        ("hvt", "sincos2d", ["fixed"]),
        ("hvt", "rope", ["rotary"]),
    ],
)
@pytest.mark.fast_cases(
    "vit-learned-kinds0",
    "vit-sincos1d-kinds3",
    "swin-relative-kinds6",
    "maxvit-relative-kinds10",
    "hvt-sincos2d-kinds12",
)
def test_every_kind_of_positions_is_named(name, pos_embed, kinds):
    model = vitrail.create_model(name, **TINY[name], pos_embed=pos_embed)
    assert position_kinds(model) == kinds
    tables = {"learned", "fixed"} & set(kinds)
    words = {"rotary": "pos_embed 'rope'", "relative": "relative_biases", "learned": "similarities",
             "fixed": "similarities"}  # fmt: skip
    for function, has in ((position_similarities, bool(tables)), (relative_biases, "relative" in kinds)):
        if has:
            assert function(model)
            continue
        with pytest.raises(ConfigError, match=r"no (absolute|relative) positions") as error:
            function(model)
        assert all(words[kind] in str(error.value) for kind in kinds)
        assert kinds or "no other kind" in str(error.value)


@pytest.mark.parametrize("prefix", [{}, {"num_class_tokens": 2, "reg_tokens": 1}, {"no_embed_class": True}])
def test_similarity_of_fixed_positions_is_that_of_their_sines(prefix):
    model = vitrail.create_model("vit", **TINY["vit"], pos_embed="sincos1d", **prefix)
    (found,) = position_similarities(model)
    # Vectors of sines and cosines have one length; their products are cosines of differences of places.
    frequencies = 10000.0 ** -(np.arange(0, 16, 2) / 16)
    apart = np.arange(16)[:, None] - np.arange(16)
    expected = np.cos(apart[..., None] * frequencies).mean(axis=-1)
    assert np.allclose(found.similarity.view(16, 16).numpy(), expected, atol=1e-5)


def test_what_a_family_does_not_have():
    vit = vitrail.create_model("vit", img_size=16, patch_size=4, embed_dim=16, depth=1, num_heads=2)
    swin = vitrail.create_model("swin", img_size=16, patch_size=4, window_size=2, embed_dim=8, depths=(1,),
                                num_heads=(2,))  # fmt: skip
    assert [bias.name for bias in relative_biases(swin)] == ["layers.0.blocks.0.attn"]
    with pytest.raises(ConfigError, match=r"ViT has no relative positions.*position_similarities"):
        relative_biases(vit)
    with pytest.raises(ConfigError, match="ViT has no relative positions"):
        bias_and_content(vit, torch.randn(1, 3, 16, 16))
    with pytest.raises(ConfigError, match=r"Swin adds no absolute positions.*relative_biases"):
        position_similarities(swin)
