"""Maps over images: ranks, shares and scales against brute force; what is drawn where."""

import numpy as np
import pytest
import torch
from matplotlib.contour import QuadContourSet

from vitrail.figures.display import as_pictures, gray
from vitrail.figures.heatmaps import (
    EVEN,
    RANK,
    Cell,
    concentration,
    draw_cells,
    explained_cells,
    in_even_spreads,
    in_ranks,
    overlay,
    part_cells,
)


@pytest.mark.parametrize("seed", [0, 1])
def test_ranks_count_what_is_smaller(seed):
    rng = np.random.default_rng(seed)
    heat = rng.integers(-4, 5, (6, 7)).astype(np.float32)  # with ties
    expected = [
        [np.sign(v) * (np.abs(heat) < abs(v)).sum() / (heat.size - 1) if v else 0.0 for v in row] for row in heat
    ]
    assert np.allclose(in_ranks(heat), expected)
    assert in_ranks(np.full((1, 1), -2.0)) == -1
    # Where a method finds nothing there is nothing to see, however much of the image that is.
    assert in_ranks(np.maximum(heat, 0))[heat <= 0].max() == 0


def test_concentration():
    heat = np.zeros((10, 10))
    assert concentration(heat) == 0.1
    assert concentration(heat + 3) == pytest.approx(0.1)
    heat[0] = -5  # one tenth
    assert concentration(heat) == 1
    heat[1] = 5
    assert concentration(heat) == 0.5


def test_even_spreads():
    heats = np.random.default_rng(0).normal(size=(3, 5, 4))
    heats[1] = 0
    relative = in_even_spreads(heats)
    assert np.allclose(np.abs(relative).mean((1, 2)), [1, 0, 1])
    assert np.allclose(relative[2] / heats[2], relative[2, 0, 0] / heats[2, 0, 0])


def _norms(figure):
    return [image.norm for axis in figure.axes for image in axis.images if image.get_alpha() is not None]


@pytest.mark.slow
def test_all_that_is_compared_has_one_scale():
    rng = np.random.default_rng(0)
    picture = rng.random((12, 16, 3))
    cells = [
        [Cell(picture), Cell(picture, rng.random((12, 16))), Cell(picture, 5 * rng.random((12, 16)))],
        [Cell(picture), Cell(picture, rng.normal(size=(12, 16)), signed=True), None],
    ]
    plain1, plain2, signed = _norms(draw_cells(cells, ["a", "b"], EVEN, "title"))
    assert (plain1.vmin, plain1.vmax) == (plain2.vmin, plain2.vmax) == (0, pytest.approx(5, abs=0.3))
    assert signed.vmin == -signed.vmax
    (alone,) = _norms(draw_cells([[Cell(picture, np.full((12, 16), 1.02))]], [""], EVEN))
    assert alone.vmax == 2  # nearly even looks even
    (ranked,) = _norms(draw_cells([[Cell(picture, in_ranks(rng.random((12, 16))))]], [""], RANK))
    assert (ranked.vmin, ranked.vmax) == (0, 1)


def test_the_line_goes_around_the_largest_tenth():
    heat = np.zeros((40, 40))
    heat[4:14, 20:36] = np.random.default_rng(0).random((10, 16)) + 1  # a tenth, at the top right
    axis = draw_cells([[Cell(np.zeros((40, 40)), heat)]], [""], EVEN).axes[0]
    (line,) = [c for c in axis.collections if isinstance(c, QuadContourSet)]
    x, y = np.concatenate([path.vertices for path in line.get_paths()]).T
    assert (x.min(), x.max(), y.min(), y.max()) == pytest.approx((19.5, 35.5, 3.5, 13.5), abs=1.5)
    assert axis.get_xlim() == (-0.5, 39.5)
    signed = draw_cells([[Cell(np.zeros((40, 40)), -heat, signed=True)]], [""], EVEN).axes[0]
    (line,) = [c for c in signed.collections if isinstance(c, QuadContourSet)]
    assert line.linestyles == "dashed"
    flat = draw_cells([[Cell(np.zeros((40, 40)), heat * 0)]], [""], EVEN).axes[0]
    assert [text.get_text() for text in flat.texts] == ["the same everywhere"]


def test_a_row_a_stream_and_a_gap_where_a_method_says_nothing():
    pictures = {"image": np.zeros((8, 8, 3)), "spectral": np.zeros((4, 4))}
    maps = {
        "rollout": {"image": np.random.rand(8, 8), "spectral": np.random.rand(4, 4)},
        "probe_signed": {"image": np.random.randn(8, 8)},
    }
    rows, labels = explained_cells(pictures, maps, {"": "leaf", "rollout": "rollout of 1"}, {"probe_signed"})
    assert labels == ["image", "spectral"]
    assert [cell.title.split("\n")[0] for cell in rows[0]] == ["leaf", "rollout of 1", "probe_signed"]
    assert rows[0][2].signed
    assert not rows[0][1].signed
    assert rows[1][2] is None
    assert rows[1][1].heat.shape == (4, 4)


def test_many_methods_go_on_below():
    pictures = {"image": np.zeros((8, 8)), "spectral": np.zeros((8, 8))}
    maps = {"rollout": dict.fromkeys(pictures, np.random.rand(8, 8))}
    rows, labels = explained_cells(pictures, {**maps, **dict.fromkeys("abcdefgh", maps["rollout"])}, {})
    assert labels == ["image", "spectral"] * 2
    assert [len(row) for row in rows] == [7, 7, 4, 4]
    assert [row[0] is None for row in rows] == [False, False, True, True]
    assert [cell.title.split("\n")[0] for cell in rows[2][1:]] == ["f", "g", "h"]


def test_overlay():
    picture, heat = np.random.rand(10, 12, 3), np.random.rand(10, 12)
    pixels = overlay([picture, gray(picture)], [heat, None], signed=False, least=35)
    assert pixels.shape == (40, 48 + 8 + 48, 3)
    assert pixels.dtype == np.uint8
    right = pixels[:, -48:]
    assert (right[..., 0] == right[..., 2]).all()  # the second stays gray
    same = overlay([picture], [np.full((10, 12), 0.3)], signed=False, least=1)
    assert same.shape == (10, 12, 3)
    middle = overlay([np.ones((2, 2))], [np.zeros((2, 2))], signed=True, least=1)
    assert (middle > 240).all()  # no evidence is white


def test_pictures():
    many = torch.rand(2, 5, 3, 4) * torch.tensor([1.0, 0.1])[:, None, None, None]
    shown = as_pictures(many)
    assert shown.shape == (2, 3, 4)
    assert shown.min((1, 2)).tolist() == [0, 0]
    assert np.allclose(shown.max((1, 2)), 1)
    assert as_pictures(many, alike=True)[1].max() < 0.3
    three = torch.rand(1, 3, 3, 4)
    assert np.allclose(as_pictures(three), three.permute(0, 2, 3, 1))
    assert gray(np.ones((2, 2, 3))) == pytest.approx(np.ones((2, 2)))


@pytest.mark.parametrize(
    "bands", [("blue", "green", "red", "nir"), ("nir", "RED", "Green", "blue"), ("blue", "green", "red")]
)
def test_named_colours_are_shown_in_true_colour(bands):
    names = [name.lower() for name in bands]
    images = torch.rand(2, len(bands), 20, 20)
    images[:, names.index("red")] += 0.6
    images = images * 0.05  # dark, as reflectances are
    shown = as_pictures(images, bands, stretch=True)
    assert shown.shape == (2, 20, 20, 3)
    assert (shown[..., 0] > shown[..., 1:].max(-1)).mean() > 0.6
    expected = images[:, [names.index(name) for name in ("red", "green", "blue")]].permute(0, 2, 3, 1).numpy()
    for one, own in zip(shown, expected, strict=True):
        low, high = np.quantile(own, [0.01, 0.99], method="nearest")
        assert np.allclose(one, np.clip((own - low) / (high - low), 0, 1), atol=0.02)
    images[0, :, :2] = float("nan")
    assert np.isfinite(as_pictures(images, bands)).all()


@pytest.mark.parametrize(
    ("size", "patch"), [((21, 18), (4, 4)), ((24, 16), (4, 8)), ((29, 31), (5, 3)), ((9, 9), (9, 3))]
)
def test_parts_lie_where_their_tokens_are(size, patch):
    grid = [-(-side // pixels) for side, pixels in zip(size, patch, strict=True)]
    parts = np.random.default_rng(0).random((2, *grid))
    ((first, second),), _ = part_cells(np.zeros(size), parts)
    relative = in_even_spreads(parts)
    for cell, part in zip((first, second), relative, strict=True):
        assert cell.heat.shape == size
        for row in range(size[0]):
            for column in range(size[1]):
                assert cell.heat[row, column] == part[row // patch[0], column // patch[1]]
