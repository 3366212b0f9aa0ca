"""The pictures of a model's anatomy: which there are, and that what they put where is right."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import vitrail
from vitrail.errors import RunError
from vitrail.explain.structure.anatomy import PatchGrid, dissect
from vitrail.explain.structure.token_groups import group_tokens
from vitrail.figures.anatomy import View, draw_anatomy
from vitrail.figures.anatomy.canvas import hatch_cells, inside, outline, show_rolled, where
from vitrail.figures.anatomy.draw import plan_pictures
from vitrail.figures.anatomy.hierarchy import asking_tokens, choose_levels, token_colors
from vitrail.figures.anatomy.tokens import choose_layers, cut, pull_apart
from vitrail.figures.anatomy.windows import four_groups, mask_types
from vitrail.layers.tap import TokenLayout
from vitrail.models.registry import list_families


def _plan(name, **settings):
    torch.manual_seed(0)
    model = vitrail.create_model(name, **{**list_families()[name].test_config, **settings}).eval()
    inputs = [torch.randn(1, s.chans, *s.size) for s in model.streams]
    views = [View(np.zeros(s.size), s.name) for s in model.streams]
    return model, inputs, views, plan_pictures(model, dissect(model, inputs), views, "told")


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


@pytest.mark.parametrize("size", [(8, 12), (7, 10)])
def test_patches_are_the_pixels_that_the_layer_sees(size):
    torch.manual_seed(0)
    layer = vitrail.layers.PatchEmbed(1, 16, 4)
    torch.nn.init.eye_(layer.proj.weight.data.view(16, 16))
    torch.nn.init.zeros_(layer.proj.bias)
    image = torch.rand(1, 1, *size)
    tokens = layer(image)[0]
    grid = tuple(tokens.shape[:2])
    pieces = cut(image[0, 0].numpy(), PatchGrid("x", 0, (4, 4), grid, 0))
    assert np.allclose(pieces.reshape(*grid, 16), tokens.detach().numpy())
    apart = pull_apart(pieces)
    step = apart.shape[0] // grid[0]
    # In each cell white, the patch (each pixel twice), white.
    assert np.allclose(apart[step + 1 : 2 * step - 1 : 2, 1 : step - 1 : 2], pieces[1, 0])
    assert (apart[[0, step - 1, step]] == 1).all()


def test_the_rolled_image_lies_where_the_tokens_lie():
    pixels = np.random.default_rng(0).random((10, 13))
    layout = TokenLayout("window", query_grid=(5, 7), key_grid=(5, 7), window=(3, 4), shift=(1, 2), padding=(1, 1))
    group = group_tokens("x", layout, (2, 2))
    axis = Figure().subplots()
    show_rolled(axis, View(pixels, "x"), (2, 2), group.padded, layout.shift)
    shown = np.asarray(axis.images[0].get_array())
    padded = np.full((12, 16), 0.78)
    padded[:10, :13] = pixels
    # Window by window, each member's own pixels.
    for window, members in enumerate(group.members.view(4, 3, 4).tolist()):
        top, left = window // 2 * 3, window % 2 * 4
        for r, row in enumerate(members):
            for c, place in enumerate(row):
                there = shown[2 * (top + r) : 2 * (top + r) + 2, 2 * (left + c) : 2 * (left + c) + 2]
                if place >= 0:
                    y, x = divmod(place, 7)
                    assert np.array_equal(there, padded[2 * y : 2 * y + 2, 2 * x : 2 * x + 2])
                else:
                    assert (there == 0.78).all()


def test_outlines_and_hatches():
    axis = Figure().subplots()
    outline(axis, np.array([[0, 0, 1], [2, 2, 1]]))
    segments = {tuple(map(tuple, np.asarray(s, dtype=int))) for s in axis.collections[0].get_segments()}
    within = {s for s in segments if not ({p[0] for p in s} in ({0}, {3}) or {p[1] for p in s} in ({0}, {2}))}
    assert within == {((2, 0), (2, 1)), ((2, 1), (2, 2)), ((0, 1), (1, 1)), ((1, 1), (2, 1))}
    assert len(segments) == 4 + 10
    cells = np.array([[0, 1, 1, 0], [0, 1, 1, 0], [1, 0, 0, 1]], dtype=bool)
    hatch_cells(axis, cells, (10, 20))
    drawn = {(p.get_y(), p.get_x(), p.get_height(), p.get_width()) for p in axis.patches}
    assert drawn == {(10, 21, 2, 2), (12, 20, 1, 1), (12, 23, 1, 1)}


def test_mask_types_of_a_shifted_layer():
    layout = TokenLayout("window", query_grid=(12, 16), key_grid=(12, 16), window=(4, 4), shift=(2, 2))
    group = group_tokens("x", layout, (1, 1))
    types, counts, numbers = mask_types(group)
    # Windows inside, on the right edge, on the bottom edge, in the corner.
    assert counts.tolist() == [6, 3, 2, 1]
    assert numbers.view(3, 4)[:2, :3].eq(0).all()
    assert numbers.view(3, 4)[2, 3] == 3
    assert torch.equal(types[numbers], group.mask)
    assert [round(1 - t.float().mean().item(), 2) for t in types] == [1.0, 0.5, 0.5, 0.25]


def test_four_groups_to_colour():
    for kind, expected in (("window", [5, 6, 9, 10]), ("grid", [0, 1, 4, 5])):
        layout = TokenLayout(kind, query_grid=(8, 8), key_grid=(8, 8), window=(2, 2))
        assert four_groups(group_tokens("x", layout, (1, 1))) == expected
    layout = TokenLayout("grid", query_grid=(4, 4), key_grid=(4, 4), window=(4, 4))
    assert four_groups(group_tokens("x", layout, (1, 1))) == [0]


def test_token_colors_are_means():
    model, inputs, _, _ = _plan("swin", img_size=30)
    merge = dissect(model, inputs).merges[0]
    pixels = np.random.default_rng(0).random((30, 30, 3))
    colors = token_colors(View(pixels, "x"), merge)
    assert colors.shape == (8, 8, 3)
    assert np.allclose(colors[1, 2], pixels[4:8, 8:12].mean((0, 1)), atol=1e-6)


def test_what_is_chosen_where_there_is_too_much():
    levels = list("abcdefghijkl")
    assert choose_levels(levels) == ["a", "d", "g", "i", "l"]
    assert choose_levels(levels[:3]) == ["a", "b", "c"]
    assert asking_tokens((8, 8)) == [18, 21, 42, 45]
    assert asking_tokens((1, 1)) == [0]
    model, inputs, *_ = _plan("vit", depth=9)
    asked = dissect(model, inputs).attention
    assert [a.name for a in choose_layers(asked)] == [
        "blocks.0.attn",
        "blocks.3.attn",
        "blocks.5.attn",
        "blocks.8.attn",
    ]
    model, inputs, *_ = _plan("swin", window_size=4)
    names = [a.name for a in choose_layers(dissect(model, inputs).attention)]
    assert names == ["layers.0.blocks.0.attn", "layers.0.blocks.1.attn", "layers.1.blocks.0.attn"]


def test_where_layers_are():
    assert where("layers.2.blocks.0.attn") == "stage 3, block 1"
    assert where("stages.0.blocks.1.attn_grid.attn") == "stage 1, block 2, grid attention"
    assert where("rgb.stages.1.downsample") == "stage 2"
    assert where("blocks.11.attn") == "block 12"
    assert where("stem") == "stem"
    assert inside(np.array([[0, 0], [0, 1], [0, 2], [1, 2], [2, 2]])) == (0.5, 2.5)
