"""Explaining models with mixers of one's own, and models inside of wrappers."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import vitrail
from vitrail.errors import ConfigError
from vitrail.explain import attention_maps, capture_attention, explain
from vitrail.explain.methods.layer_attention import attention_distances
from vitrail.layers import AttentionTap, TokenLayout
from vitrail.models import list_families

DOCS = Path(__file__).parents[2] / "docs" / "extend.md"


def _build(family, **settings):
    torch.manual_seed(0)
    return vitrail.create_model(family, **{**list_families()[family].test_config, **settings}).eval()


def _inputs(model):
    return [torch.rand(2, stream.chans, *stream.size) for stream in model.streams]


class Zero(nn.Module):
    def forward(self, x, *_):
        return x * 0


def _replace(model, path):
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, Zero())


def test_every_block_has_its_mixers():
    assert _build("vit").mixers() == ["blocks.0.attn", "blocks.1.attn"]
    assert len(_build("swin").mixers()) == 4
    assert _build("maxvit").mixers()[:2] == ["stages.0.blocks.0.attn_block", "stages.0.blocks.0.attn_grid"]
    assert [name.split(".")[0] for name in _build("hvt").mixers()] == ["rgb"] * 2 + ["spectral"] * 2


@pytest.mark.fast_cases("vit-attribution", "vit-gradient_rollout", "vit-rollout")
@pytest.mark.parametrize("method", ["rollout", "attribution", "gradient_rollout"])
@pytest.mark.parametrize("family", sorted(list_families("image")))
def test_a_block_that_does_not_report_is_named(family, method):
    from vitrail.explain import list_methods

    if method not in list_methods(_build(family)):
        pytest.skip("not a method of this model")
    for number in (0, -1):
        model = _build(family)
        path = model.mixers()[number]
        _replace(model, path)
        with pytest.raises(ConfigError, match=re.escape(f"{path} (Zero) does not report how it mixes tokens")):
            explain(model, _inputs(model), method)


def test_a_whole_block_is_named():
    model = _build("vit")
    model.blocks[1] = Zero()
    with pytest.raises(ConfigError, match=r"blocks\.1 \(Zero\) does not report"):
        explain(model, _inputs(model), "rollout")


@pytest.mark.fast_cases("vit")
@pytest.mark.parametrize("family", sorted(list_families("image")))
def test_numbers_of_layers_stay(family):
    model = _build(family)
    inputs = _inputs(model)
    expected = [attention_maps(model, *inputs, layer=number).layer for number in range(len(model.mixers()))]
    assert expected == [m if m.endswith(".attn") else f"{m}.attn" for m in model.mixers()]
    _replace(model, model.mixers()[1])
    for number, name in enumerate(expected):
        if number == 1:
            with pytest.raises(ConfigError, match="does not report"):
                attention_maps(model, *inputs, layer=number)
        else:
            assert attention_maps(model, *inputs, layer=number).layer == name
    with pytest.raises(ConfigError, match="does not report"):
        attention_distances(model, *inputs)


def test_the_mixer_of_the_docs_is_explained():
    page = DOCS.read_text(encoding="utf-8")
    names = {}
    for part in (page, page.split("## A mixer of your own")[1]):
        exec(re.search(r"```python\n(.*?)```", part, re.DOTALL)[1], names)
    assert names["maps"].shape == (2, 32, 32)
    model, images = names["model"], torch.rand(2, 3, 32, 32)
    assert attention_maps(model, images, layer=2).layer == "blocks.2.attn"
    assert explain(model, images, "gradient_rollout").map.shape == (2, 32, 32)
    # Rollout by hand over the model's own weights.
    with torch.no_grad(), capture_attention(model) as record:
        model(images)
    row = torch.eye(17)[0].expand(2, 1, 17)
    for step in reversed(list(record)):
        row = row @ (torch.eye(17) + step.weights.mean(1)) / 2
    grid = row[:, 0, 1:] / row[:, 0, 1:].sum(-1, keepdim=True)
    torch.testing.assert_close(explain(model, images, "rollout").tokens.flatten(1), grid)


class Training(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model


LightningModule = type("LightningModule", (Training,), {})


class _Lit(LightningModule):
    def __init__(self, model):
        super().__init__(model)
        self.loss = nn.CrossEntropyLoss()


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "compiled in parallel": lambda model: nn.DataParallel(torch.compile(model, backend="eager")),
    "own": Training,
    "Lightning": _Lit,
    "own in parallel": lambda model: nn.DataParallel(Training(model)),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize("method", ["rollout", "gradcam"])
@pytest.mark.fast_cases("rollout-own in parallel", "gradcam-DataParallel")
def test_a_wrapped_model_is_explained_as_the_model_inside(wrap, method):
    model = _build("vit")
    images = _inputs(model)
    found = explain(wrap(model), images, method)
    assert torch.equal(found.map, explain(model, images, method).map)


def test_distributed_models_are_explained(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(_build("vit"))
        assert explain(model, _inputs(model.module), "rollout").map.shape == (2, 32, 32)
    finally:
        torch.distributed.destroy_process_group()


def test_a_module_beside_the_model_is_not_left_out():
    with pytest.raises(ConfigError, match=r"holds other modules beside a model of vitrail.*; give \[1\]$"):
        explain(nn.Sequential(nn.BatchNorm2d(3), _build("vit")), torch.rand(1, 3, 32, 32))
    with pytest.raises(ConfigError, match="only models of vitrail"):
        explain(nn.Linear(2, 2), torch.rand(1, 3, 32, 32))
    with pytest.raises(ConfigError, match=r"several models of vitrail.*give \[0\] or \[1\]$"):
        explain(nn.Sequential(_build("vit"), _build("swin")), torch.rand(1, 3, 32, 32))


def test_results_are_the_collections_that_they_look_like():
    model = _build("vit")
    images = torch.rand(1, 3, 32, 32)
    found = explain(model, images, "rollout")
    assert "image" in found
    assert "spectral" not in found
    assert found.get("spectral") is None
    assert dict(found) == {"image": found["image"]}
    assert found == found
    with pytest.raises(ConfigError, match=r"^no map of the stream 'spectral'"):
        found["spectral"]
    with capture_attention(model) as record:
        model(images)
    assert len(record) == len(list(record)) == 2
    assert record[0] is record["blocks.0.attn"] is next(iter(record))
    assert record[-1].name == "blocks.1.attn"
    assert record[:1] == [record[0]]
    assert "blocks.0.attn" in record
    assert "head" not in record
    with pytest.raises(IndexError):
        record[2]
    with pytest.raises(KeyError, match="no layer 'head' was captured"):
        record["head"]


class ReportsAnything(nn.Module):
    """A mixer that reports the weights it is given."""

    def __init__(self, weights):
        super().__init__()
        self.weights, self.tap = weights, AttentionTap()

    def forward(self, x, grid=None, num_prefix=0):
        layout = TokenLayout("global", query_grid=grid, key_grid=grid, num_prefix=num_prefix)
        self.tap.report(self.weights.expand(len(x), *self.weights.shape[1:]), layout)
        return x


_SMALL = {"img_size": 24, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3}
_TOKENS = 10  # a class token and a grid of 3 x 3


@pytest.mark.parametrize(
    ("weights", "fault"),
    [
        (torch.randn(1, 2, _TOKENS, _TOKENS).softmax(-2), "have rows that sum to"),
        (torch.ones(1, 1, _TOKENS, _TOKENS), "sum to 10 to 10"),
        (torch.randn(1, 1, _TOKENS, _TOKENS) * 0.1 + 1 / _TOKENS, "negative values"),
        (torch.full((1, 1, _TOKENS, _TOKENS), torch.nan), "not a number"),
        (torch.randn(1, 1, _TOKENS - 1, _TOKENS - 1).softmax(-1), "9 queries and 9 keys where the layout has"),
        (torch.randn(1, _TOKENS, _TOKENS).softmax(-1), "have the shape"),
    ],
)
def test_reported_weights_that_are_no_mean_are_refused(weights, fault):
    torch.manual_seed(7)
    model = vitrail.create_model("vit", **_SMALL).eval()
    model.blocks[1].attn = ReportsAnything(weights)
    x = torch.rand(2, 3, 24, 24)
    model(x)  # without a capture nothing is checked
    with pytest.raises(ConfigError, match=f"(?s)blocks.1.attn.*{fault}"), capture_attention(model):
        model(x)


def test_a_record_prints_as_a_list_of_layers():
    model = vitrail.create_model("vit", **_SMALL).eval()
    with capture_attention(model) as record:
        model(torch.rand(2, 3, 24, 24))
    assert repr(record).splitlines() == [
        "AttentionRecord of 2 layers",
        "  blocks.0.attn: (2, 2, 10, 10), global",
        "  blocks.1.attn: (2, 2, 10, 10), global",
    ]


class UniformMixer(nn.Module):
    """Mean over tokens; ``report`` hands over the weights in one of several ways."""

    def __init__(self, report):
        super().__init__()
        self.report, self.tap = report, AttentionTap()

    def forward(self, x, grid=None, num_prefix=0):
        weights = torch.full((len(x), 1, x.shape[1], x.shape[1]), 1 / x.shape[1])
        layout = TokenLayout("global", query_grid=grid, key_grid=grid, num_prefix=num_prefix)
        if self.report == "copy":
            self.tap.report(weights.clone(), layout)
        else:
            for _ in range(2 if self.report == "twice" else 1):
                self.tap.report(weights, layout)
        return weights[:, 0] @ x


@pytest.mark.parametrize("method", ["gradient_rollout", "attribution", "rollout"])
def test_a_report_is_the_tensor_that_mixes_and_comes_once(method):
    torch.manual_seed(11)
    model = vitrail.create_model("vit", **_SMALL).eval()
    x = torch.rand(2, 3, 24, 24)
    model.blocks[1].attn = UniformMixer("once")
    assert explain(model, x, method).map.isfinite().all()
    model.blocks[1].attn = UniformMixer("twice")
    with pytest.raises(ConfigError, match=r"blocks\.1\.attn reports its mixing weights 2 times"):
        explain(model, x, method)
    model.blocks[1].attn = UniformMixer("copy")
    if method != "rollout":
        with pytest.raises(ConfigError, match=r"do not depend on the mixing weights that blocks\.1\.attn reports"):
            explain(model, x, method)
