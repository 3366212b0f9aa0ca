"""Token merging against an implementation that loops over images, tokens and pairs."""

import itertools
import pickle

import pytest
import torch

import vitrail
from vitrail.errors import ConfigError
from vitrail.explain import attention_rollout, capture_attention, explain, list_methods

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 5}
CASES = {
    "class token": {},
    "mean": {"class_token": False, "global_pool": "avg"},
    "registers": {"reg_tokens": 2},
    "registers, mean": {"reg_tokens": 1, "global_pool": "avg", "qk_norm": True},
    "distilled": {"dist_token": True, "init_values": 0.5},
    "odd grid": {"patch_stride": 6, "img_size": 26, "pos_embed": "sincos2d"},
}


def build(seed=0, **settings):
    torch.manual_seed(seed)
    model = vitrail.create_model("vit", **SMALL | settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)  # so that tokens differ, and their order has no ties
    return model


def by_pairs(model, image, merges):
    """Features of one image ``(P + patches, C)``, and the rollout's matrix of all layers, by the equations alone."""
    P = model.num_prefix
    x = model.tokenize(*model.embed(image[None]))[0][0]
    count, dim, heads = len(x) - P, x.shape[1], model.config.num_heads
    groups = [[i] for i in range(P + count)]  # the first tokens in each token, prefix tokens included
    mixing = torch.eye(len(x), dtype=torch.float64)
    for block, r in zip(model.blocks, merges, strict=True):
        sizes = torch.tensor([float(len(group)) for group in groups])
        q, k, v = block.attn.qkv(block.norm1(x)).reshape(len(x), 3, heads, dim // heads).unbind(1)
        q, k = block.attn.q_norm(q), block.attn.k_norm(k)
        means, outs = [], []
        for head in range(heads):
            weights = (q[:, head] @ k[:, head].T / (dim // heads) ** 0.5 + sizes.log()).softmax(dim=-1)
            means.append(weights)
            outs.append(weights @ v[:, head])
        x = x + block.ls1(block.attn.proj(torch.cat(outs, dim=1)))
        mixing = (torch.stack(means).mean(dim=0).double() + torch.eye(len(x)).double()) / 2 @ mixing
        keys = k.mean(dim=1)
        first = [i for i in range(P, len(x)) if i % 2 == 0]
        second = [i for i in range(P, len(x)) if i % 2 == 1]
        edges = []
        for i in first:
            found = [(float(torch.cosine_similarity(keys[i], keys[j], dim=0)), i, j) for j in second]
            edges.append(max(found))
        edges = sorted(edges, reverse=True)[: min(r, (len(x) - P) // 2)]
        joined = {i: j for _, i, j in edges}
        # Without a pair tokens keep their order.
        rest = [i for i in first if i not in joined] + second if joined else range(P, len(x))
        order = [*range(P), *rest]
        members = [[i, *(a for a, b in joined.items() if b == i)] for i in order]
        share = torch.zeros(len(order), len(x))
        for row, own in enumerate(members):
            for i in own:
                share[row, i] = sizes[i] / sum(sizes[j] for j in own)
        x, mixing = share @ x, share.double() @ mixing
        groups = [list(itertools.chain(*(groups[i] for i in own))) for own in members]
        x = x + block.ls2(block.mlp(block.norm2(x)))
    source = [next(row for row, own in enumerate(groups) if i in own) for i in range(P + count)]
    return model.norm(x[source]), mixing[source]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("r", "images"), [(1, 2), (3, 3), (5, 1), (100, 2), ([0, 4, 2], 2)])
@pytest.mark.fast_cases("5-1-registers, mean", "5-1-distilled", "r4-2-odd grid")
def test_merging_equals_loops_over_pairs(case, r, images):
    model = build(seed=images, **CASES[case])
    merged = vitrail.merge_tokens(model, r)
    x = torch.randn(images, *model.streams[0].shape)
    with torch.no_grad():
        features = merged.forward_features(x)
        merges = [r] * 3 if isinstance(r, int) else r
        wanted = torch.stack([by_pairs(model, image, merges)[0] for image in x])
        assert torch.allclose(features, wanted, atol=1e-5)
        assert torch.allclose(merged(x), model.forward_head(wanted), atol=1e-5)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.fast_cases("registers, mean", "distilled", "odd grid")
def test_rollout_spreads_a_merged_token_over_its_patches(case):
    model = build(**CASES[case])
    merged, x = vitrail.merge_tokens(model, 3), torch.randn(2, *model.streams[0].shape)
    P = model.num_prefix
    with torch.no_grad():
        found = attention_rollout(merged, x).tokens.flatten(1)
        for row, image in zip(found, x, strict=True):
            mixing = by_pairs(model, image, [3] * 3)[1]
            start = mixing[P:] if model.global_pool == "avg" else mixing[: model.num_class_tokens]
            wanted = start.mean(dim=0)[P:]
            assert torch.allclose(row.double(), wanted / wanted.sum(), atol=1e-6)


def test_every_report_is_a_mean_of_the_tokens_before():
    merged = vitrail.merge_tokens(build(), 3)
    with torch.no_grad(), capture_attention(merged) as record:
        merged(torch.randn(2, 3, 32, 32))
    sizes = [step.weights.shape[1:] for step in record if step.layout.kind == "match"]
    assert sizes == [(13, 16), (10, 13), (7, 10), (16, 7)]
    for step in record:
        assert torch.allclose(step.weights.sum(dim=-1), torch.ones(()))


def test_methods_explain_a_merged_model_or_say_why_not():
    merged, x = vitrail.merge_tokens(build(), 3), torch.randn(2, 3, 32, 32)
    refused = {"gradcam", "gradcam++", "layercam", "eigencam", "tokens", "neighborhood_occlusion", "part_rollout"}
    assert set(list_methods()) - set(list_methods(merged)) == refused
    for method in set(list_methods(merged)) - {"integrated_gradients", "smoothgrad"}:
        found = explain(merged, x, method)
        assert found.map.shape == (2, 32, 32)
        assert found.map.isfinite().all()
    with pytest.raises(ConfigError, match="blocks merge tokens"):
        explain(merged, x, "gradcam")
    with pytest.raises(ConfigError, match="merged tokens, which have no positions"):
        explain(merged, x, "attention", layer=2)
    late = vitrail.merge_tokens(build(), [0, 0, 3])
    assert explain(late, x, "gradcam").map.shape == (2, 32, 32)
    assert len(late.forward_intermediates(x, intermediates_only=True)) == 2


@pytest.mark.parametrize("method", ["gradient_rollout", "attribution"])
def test_gradient_methods_without_merging_are_unchanged(method):
    model, x = build(), torch.randn(2, 3, 32, 32)
    # One pair in the last block, of which the class token's relevance has no part any more.
    late = vitrail.merge_tokens(model, [0, 0, 1])
    wanted, found = (explain(one, x, method, target=[1, 2]).tokens for one in (model, late))
    assert torch.allclose(found, wanted, atol=1e-4)


def test_zero_is_the_plain_model():
    model, x = build(), torch.randn(2, 3, 32, 32)
    merged = vitrail.merge_tokens(model, 4)
    assert merged.config.token_merging == 4
    assert model.config.token_merging == 0
    assert not torch.equal(merged(x), model(x))
    for one, r in ((model, 0), (merged, 0), (model, [0, 0, 0])):
        plain = vitrail.merge_tokens(one, r)
        assert torch.equal(plain(x), model(x))
        assert [type(module) for module in plain.modules()] == [type(module) for module in model.modules()]


def test_weights_are_shared_and_keep_their_names():
    model = build()
    merged = vitrail.merge_tokens(model, 4)
    own, state = model.state_dict(keep_vars=True), merged.state_dict(keep_vars=True)
    assert list(own) == list(state)
    assert all(state[name] is value for name, value in own.items())


def test_gradients_reach_every_parameter():
    merged, x = vitrail.merge_tokens(build(global_pool="avg", class_token=False), 3).train(), torch.randn(2, 3, 32, 32)
    merged(x).square().sum().backward()
    wanted = {name: value.grad.clone() for name, value in merged.named_parameters()}
    assert all(value.abs().sum() > 0 for value in wanted.values())
    merged.zero_grad()
    merged.set_grad_checkpointing()
    merged(x).square().sum().backward()
    for name, value in merged.named_parameters():
        assert torch.allclose(value.grad, wanted[name], atol=1e-6), name


def test_a_saved_model_still_merges(tmp_path):
    x = torch.randn(2, 3, 32, 32)
    merged = vitrail.merge_tokens(build(), [1, 0, 2])
    vitrail.save_pretrained(merged, tmp_path / "model")
    for again in (vitrail.from_pretrained(tmp_path / "model").eval(), pickle.loads(pickle.dumps(merged))):
        assert again.config.token_merging == (1, 0, 2)
        assert torch.equal(again(x), merged(x))


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"depth": 1}, {"reg_tokens": 2, "global_pool": "avg", "depth": 2}, {}])
def test_programs_have_a_free_batch(settings):
    merged = vitrail.merge_tokens(build(**settings), 3)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(merged, (torch.randn(2, 3, 32, 32),), dynamic_shapes=({0: batch},)).module()
    for count in (1, 5):
        x = torch.randn(count, 3, 32, 32)
        assert torch.allclose(program(x), merged(x), atol=1e-5)


@pytest.mark.slow_cases("maxvit-None-2-windows and convolutions need the whole map")
@pytest.mark.parametrize(
    ("family", "settings", "r", "message"),
    [
        ("vit", {}, -1, r"token_merging must be a whole number of at least 0, or one per block, got \[-1\]"),
        ("vit", {}, [1, 2], "token_merging has 2 numbers for 3 blocks"),
        ("vit", {}, True, "token_merging must be a whole number"),
        ("vit", {"pos_embed": "rope", "num_heads": 6}, 2, "cannot average the rotations"),
        ("vit", {"token_learner": {"num_tokens": 2, "layer": 1}}, 2, "token_learner replaces the patches"),
        ("swin", None, 2, "windows need the whole grid"),
        ("maxvit", None, 2, "windows and convolutions need the whole map"),
        ("hvt", None, 2, "fusion of streams need the whole grid"),
        ("vivit", None, 2, "needs whole slices"),
    ],
)
def test_models_that_cannot_merge_say_why(family, settings, r, message):
    from vitrail.models.registry import find_family  # the smallest settings of each family

    settings = find_family(family)[0].test_config if settings is None else SMALL | settings
    model = vitrail.create_model(family, **settings)
    with pytest.raises(ConfigError, match=message):
        vitrail.merge_tokens(model, r)


def test_a_mixer_without_keys_is_refused():
    model = build()
    model.blocks[1].attn = torch.nn.Identity()
    with pytest.raises(ConfigError, match="Identity in place of attention gives no keys to match"):
        vitrail.merge_tokens(model, 2)
