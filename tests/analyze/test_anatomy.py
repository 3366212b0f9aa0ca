"""Figures of a model's anatomy: which there are, and where their content comes from."""

import numpy as np
import pytest
import torch

import vitrail
from vitrail.analyze.anatomy import draw_anatomy, merging_of, plan_figures, query_attention
from vitrail.errors import RunError
from vitrail.explain.structure.anatomy import dissect
from vitrail.figures.anatomy.canvas import View
from vitrail.figures.anatomy.hierarchy import token_colors
from vitrail.figures.anatomy.tokens import choose_layers
from vitrail.models.registry import list_families


def _plan(name, **settings):
    torch.manual_seed(0)
    model = vitrail.create_model(name, **{**list_families()[name].test_config, **settings}).eval()
    inputs = [torch.randn(1, s.chans, *s.size) for s in model.streams]
    views = [View(np.zeros(s.size), s.name) for s in model.streams]
    return model, inputs, views, plan_figures(model, dissect(model, inputs), views, "told")


@pytest.mark.parametrize(
    ("name", "settings", "pictures"),
    [
        ("vit", {}, {"patches", "attention", "pyramid"}),
        ("vit", {"token_learner": {"layer": 0}}, {"patches", "token_maps"}),
        ("maxvit", {}, {"partitions", "relative_position", "attention", "pyramid"}),
        ("swin", {"window_size": 8}, {"patches", "windows", "relative_position", "merging", "attention", "pyramid"}),
        ("hvt", {"attention": 3}, {"patches", "windows", "attention_mask", "merging", "attention", "pyramid", "streams",
                                   "fusion"}),
        ("hvt", {"fusion": "concat"}, {"patches", "merging", "attention", "pyramid", "streams", "fusion"}),
        ("hvt", {"spectral_chans": 0, "spectral_embed_dim": None}, {"patches", "merging", "attention", "pyramid"}),
    ],
)  # fmt: skip
def test_which_pictures_there_are(name, settings, pictures):
    *_, (planned, omitted) = _plan(name, **settings)
    assert set(planned) == pictures
    masked = "attention_mask" in pictures
    assert ("attention_mask" in omitted) == (not masked and bool(pictures & {"windows", "partitions"}))


@pytest.mark.parametrize("name", ["windows", "fusion"])
def test_windowed_and_concatenated_streams_are_drawn(name):
    settings = {"windows": {"attention": 3}, "fusion": {"fusion": "concat"}}[name]
    *_, (planned, _) = _plan("hvt", **settings)
    figure = planned[name]()
    titles = [axis.get_title() for axis in figure.axes]
    assert any("windows of 3 × 3" in t for t in titles) or any("spectral tokens" in t for t in titles)


def test_levels_of_both_streams_are_kept_apart():
    *_, (planned, _) = _plan("hvt")
    figure = planned["streams"]()
    titles = [axis.get_title() for axis in figure.axes if axis.axison]
    assert [t.split(chr(10))[0] for t in titles] == [
        "image", "stage 1: 8 × 8 × 16", "stage 2: 4 × 4 × 32", "spectral", "stage 1: 8 × 8 × 8", "stage 2: 4 × 4 × 16",
    ]  # fmt: skip


def test_a_folder_that_cannot_be_written(tmp_path):
    model, inputs, views, _ = _plan("vit", depth=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        draw_anatomy(model, inputs, views, tmp_path / "file" / "figures", "told")


def test_token_colors_are_means():
    model, inputs, _, _ = _plan("swin", img_size=30)
    merge = merging_of(dissect(model, inputs).merges[0])
    pixels = np.random.default_rng(0).random((30, 30, 3))
    colors = token_colors(View(pixels, "x"), merge)
    assert colors.shape == (8, 8, 3)
    assert np.allclose(colors[1, 2], pixels[4:8, 8:12].mean((0, 1)), atol=1e-6)


def _layers(model, inputs):
    return [query_attention(model, layer) for layer in dissect(model, inputs).attention]


def test_chosen_layers():
    model, inputs, *_ = _plan("vit", depth=9)
    layers = _layers(model, inputs)
    assert [a.name for a in choose_layers(layers)] == [
        "blocks.0.attn",
        "blocks.3.attn",
        "blocks.5.attn",
        "blocks.8.attn",
    ]
    model, inputs, *_ = _plan("swin", window_size=4)
    names = [a.name for a in choose_layers(_layers(model, inputs))]
    assert names == ["layers.0.blocks.0.attn", "layers.0.blocks.1.attn", "layers.1.blocks.0.attn"]
