"""Figures of a model's anatomy: each part lies at its tokens."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import vitrail
from vitrail.analyze.anatomy import token_groups
from vitrail.explain.structure.token_groups import group_tokens
from vitrail.figures.anatomy.canvas import View, hatch_cells, inside, outline, show_rolled, where
from vitrail.figures.anatomy.hierarchy import choose_levels, query_tokens
from vitrail.figures.anatomy.tokens import PatchGrid, cut, draw_patches, pull_apart
from vitrail.figures.anatomy.windows import four_groups, mask_types
from vitrail.layers.tap import TokenLayout


@pytest.mark.parametrize("size", [(8, 12), (7, 10)])
@pytest.mark.parametrize(("stride", "padding"), [((4, 4), (0, 0)), ((2, 3), (0, 0)), ((3, 2), (1, 2))])
def test_patches_are_the_pixels_that_the_layer_sees(size, stride, padding):
    torch.manual_seed(0)
    layer = vitrail.layers.PatchEmbed(1, 16, 4, stride=stride, padding=padding)
    torch.nn.init.eye_(layer.proj.weight.data.view(16, 16))
    torch.nn.init.zeros_(layer.proj.bias)
    image = torch.rand(1, 1, *size)
    tokens = layer(image)[0]
    grid = tuple(tokens.shape[:2])
    pieces = cut(image[0, 0].numpy(), PatchGrid(0, (4, 4), stride, padding, grid))
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
    group = token_groups(group_tokens("x", layout, (1, 1)))
    types, counts, numbers = mask_types(group)
    # Windows inside, on the right edge, on the bottom edge, in the corner.
    assert counts.tolist() == [6, 3, 2, 1]
    assert (numbers.reshape(3, 4)[:2, :3] == 0).all()
    assert numbers.reshape(3, 4)[2, 3] == 3
    assert np.array_equal(types[numbers], group.blocked)
    assert [round(float(1 - t.mean()), 2) for t in types] == [1.0, 0.5, 0.5, 0.25]


def test_four_groups_to_colour():
    for kind, expected in (("window", [5, 6, 9, 10]), ("grid", [0, 1, 4, 5])):
        layout = TokenLayout(kind, query_grid=(8, 8), key_grid=(8, 8), window=(2, 2))
        assert four_groups(token_groups(group_tokens("x", layout, (1, 1)))) == expected
    layout = TokenLayout("grid", query_grid=(4, 4), key_grid=(4, 4), window=(4, 4))
    assert four_groups(token_groups(group_tokens("x", layout, (1, 1)))) == [0]


def test_what_is_chosen_where_there_is_too_much():
    levels = list("abcdefghijkl")
    assert choose_levels(levels) == ["a", "d", "g", "i", "l"]
    assert choose_levels(levels[:3]) == ["a", "b", "c"]
    assert query_tokens((8, 8)) == [18, 21, 42, 45]
    assert query_tokens((1, 1)) == [0]


def test_where_layers_are():
    assert where("layers.2.blocks.0.attn") == "stage 3, block 1"
    assert where("stages.0.blocks.1.attn_grid.attn") == "stage 1, block 2, grid attention"
    assert where("rgb.stages.1.downsample") == "stage 2"
    assert where("blocks.11.attn") == "block 12"
    assert where("stem") == "stem"
    assert inside(np.array([[0, 0], [0, 1], [0, 2], [1, 2], [2, 2]])) == (0.5, 2.5)


@pytest.mark.parametrize("registers", [2, 9])
def test_a_long_row_of_tokens_is_abridged(registers):
    prefix = ("class", *(f"register {i + 1}" for i in range(registers)))
    grid = PatchGrid(0, (4, 4), (4, 4), (0, 0), (6, 6), prefix)
    figure = draw_patches([grid], [View(np.zeros((24, 24)), "image")], "")
    row = next(axis for axis in figure.axes if "tokens, read line by line" in axis.get_title())
    texts = [text.get_text() for text in row.texts]
    assert f"{36 + len(prefix)} tokens" in row.get_title()
    assert texts.count("…") == (1 if registers == 2 else 2)  # among the patches, and among nine registers
    assert f"register\n{registers}" in texts
    assert "patch 36" in texts
