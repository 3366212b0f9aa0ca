"""What the pictures show, against the layers' own results and against definitions written out."""

import random

import pytest
import torch

import vitrail
from tests.tiers import fast_first
from vitrail.errors import ConfigError
from vitrail.explain.capture.record import CapturedMixing, capture_attention
from vitrail.explain.structure.anatomy import dissect, keep_few_queries
from vitrail.explain.structure.features import principal_colors
from vitrail.explain.structure.merging import trace_merge
from vitrail.explain.structure.positions import relative_bias
from vitrail.explain.structure.token_groups import central_token, group_tokens, token_attention
from vitrail.layers.hierarchy import MapAttention
from vitrail.layers.partition_attention import PartitionAttention
from vitrail.layers.patch_merging import PatchMerging
from vitrail.layers.tap import TokenLayout
from vitrail.layers.window_attention import WindowAttention
from vitrail.models.registry import list_families


def _layer(kind, rng):
    """A layer that works in groups, of random size, with large weights so that every influence shows."""
    window = (rng.randint(1, 5), rng.randint(1, 5))
    if kind == "swin":
        shift = (window[0] // 2, window[1] // 2) if rng.random() < 0.7 else (0, 0)
        layer = WindowAttention(4, 2, window, shift, mask_padding=rng.random() < 0.7)
    elif kind == "hvt":
        layer = MapAttention(4, 2, window=window, shifted=rng.random() < 0.7)
    else:
        layer = PartitionAttention(4, 2, window, kind)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    return layer.eval().double()


def _groups(layer, grid):
    with torch.no_grad(), capture_attention(layer) as record:
        out = layer(torch.randn(1, *grid, 4, dtype=torch.float64))
    (step,) = record.steps
    assert out.shape[1:3] == grid
    return step, group_tokens("layer", step.layout, (1, 1), getattr(layer, "mask_padding", True))


@pytest.mark.parametrize("seed", fast_first(range(12), 4))
@pytest.mark.parametrize("kind", ["swin", "hvt", "window", "grid"])
@pytest.mark.fast_cases("swin-1", "hvt-1", "hvt-2", "window-3", "grid-0")
def test_groups_are_who_influences_whom(kind, seed):
    """Who shares a group and a region in the picture is who reaches whom through the real layer."""
    rng = random.Random(f"{kind}{seed}")
    torch.manual_seed(seed)
    layer = _layer(kind, rng)
    grid = (rng.randint(2, 9), rng.randint(2, 9))
    step, groups = None, None
    if kind == "hvt" and layer.window[0] >= grid[0] and layer.window[1] >= grid[1]:
        layer.window = (1, 2)
    step, groups = _groups(layer, grid)
    n = grid[0] * grid[1]
    # Each token stands once in the groups, whatever was padded.
    assert sorted(groups.members[groups.members >= 0].tolist()) == list(range(n))
    x = torch.randn(1, *grid, 4, dtype=torch.float64, requires_grad=True)
    out = layer(x)
    reaches = torch.zeros(n, n, dtype=torch.bool)
    for query in range(n):
        (gradient,) = torch.autograd.grad(out.flatten(0, 2)[query].sum(), x, retain_graph=True)
        reaches[query] = gradient.flatten(0, 2).abs().sum(-1) > 0
    drawn = torch.zeros(n, n, dtype=torch.bool)
    for members, blocked in zip(groups.members, groups.mask, strict=True):
        real = (members >= 0).nonzero().flatten()
        drawn[members[real][:, None], members[real]] = ~blocked[real[:, None], real]
    assert torch.equal(reaches, drawn)
    # The mask that is drawn is where the captured attention is exactly zero.
    weights = step.weights.mean(1)
    real = groups.members >= 0
    assert torch.equal((weights == 0)[real], groups.mask.expand_as(weights)[real])


@pytest.mark.parametrize("seed", fast_first(range(8), 3))
def test_regions_by_the_authors_slices(seed):
    """Regions as the authors of Swin number them, with slices (arXiv:2103.14030, their code, swin_transformer.py)."""
    rng = random.Random(seed)
    window = (rng.randint(2, 6), rng.randint(2, 6))
    grid = (window[0] * rng.randint(2, 4), window[1] * rng.randint(2, 4))
    shift = (window[0] // 2, window[1] // 2)
    layout = TokenLayout("window", query_grid=grid, key_grid=grid, window=window, shift=shift)
    groups = group_tokens("x", layout, (4, 4))
    mask = torch.zeros(grid, dtype=torch.long)
    count = 0
    for rows in (slice(0, -window[0]), slice(-window[0], -shift[0]), slice(-shift[0], None)):
        for columns in (slice(0, -window[1]), slice(-window[1], -shift[1]), slice(-shift[1], None)):
            mask[rows, columns] = count
            count += 1
    (H, W), (wh, ww) = grid, window
    cut = mask.view(H // wh, wh, W // ww, ww).permute(0, 2, 1, 3).reshape(-1, wh * ww)
    assert torch.equal(groups.mask, cut[:, :, None] != cut[:, None, :])
    # The regions come back to the places that they were rolled from.
    there = groups.on_grid(groups.labels)
    assert torch.equal(there, groups.regions.roll(shift, (0, 1)))
    assert there[0, 0] == 3
    assert there[shift[0], shift[1]] == 0
    assert there[0, shift[1]] == 2
    assert there[shift[0], 0] == 1


def test_group_map_of_windows_and_grids():
    layout = TokenLayout("window", query_grid=(4, 6), key_grid=(4, 6), window=(2, 3))
    assert group_tokens("x", layout, (1, 1)).group_map().tolist() == [[0, 0, 0, 1, 1, 1]] * 2 + [[2, 2, 2, 3, 3, 3]] * 2
    layout = TokenLayout("grid", query_grid=(4, 6), key_grid=(4, 6), window=(2, 3))
    # Two rows and three columns spread over 4 x 6: every second row and every second column share a group.
    assert group_tokens("x", layout, (1, 1)).group_map().tolist() == [[0, 1] * 3, [2, 3] * 3] * 2


@pytest.mark.parametrize(("side", "reached"), [(14, True), (28, True), (49, True), (56, False)])
def test_block_and_grid_reach_everything_up_to_49_tokens(side, reached):
    """What docs/architectures/maxvit.md says of windows and grids of 7 x 7."""
    window, grid = (
        group_tokens("x", TokenLayout(kind, query_grid=(side, side), key_grid=(side, side), window=(7, 7)), (4, 4))
        for kind in ("window", "grid")
    )
    windows, grids = window.group_map().flatten(), grid.group_map().flatten()
    heard = [set(windows[grids == number].tolist()) for number in range(len(grid.members))]
    assert all(h == set(range(len(window.members))) for h in heard) == reached


@pytest.mark.parametrize("seed", fast_first(range(6), 2))
def test_attention_of_one_token(seed):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    kind = rng.choice(["swin", "window", "grid"])
    layer = _layer(kind, rng)
    layer.mask_padding = True
    grid = (rng.randint(2, 8), rng.randint(2, 8))
    step, groups = _groups(layer, grid)
    place = rng.randrange(grid[0] * grid[1])
    maps = token_attention(step, groups, place)
    assert maps.shape == (2, *grid)
    assert torch.allclose(maps.sum((1, 2)), torch.ones(2, dtype=torch.float64))
    same = groups.group_map() == groups.group_map().flatten()[place]
    assert maps[:, ~same].abs().sum() == 0
    # The weights are those that mix the values: applied to them by hand they give the layer's output.
    x = torch.randn(1, *grid, 4, dtype=torch.float64)
    with torch.no_grad(), capture_attention(layer) as record:
        out = layer(x)[0].flatten(0, 1)[place]
    maps = token_attention(CapturedMixing("x", record.steps[0].weights, step.layout), groups, place).flatten(1)
    values = layer.qkv(x).view(grid[0] * grid[1], 3, 2, 2)[:, 2]
    mixed = torch.stack([maps[head] @ values[:, head] for head in range(2)]).flatten()
    assert torch.allclose(layer.proj(mixed), out)


def test_relative_position_of_swin_tiny():
    index = relative_bias("x", WindowAttention(6, 3, 7)).index
    assert index.shape == (49, 49)
    assert index.diagonal().tolist() == [84] * 49
    assert index[0, :7].tolist() == [84, 83, 82, 81, 80, 79, 78]
    assert (int(index.min()), int(index.max())) == (0, 168)
    assert relative_bias("x", PatchMerging(4)) is None


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["swin", "grid"])
def test_relative_tables_by_definition(kind, seed):
    rng = random.Random(f"{kind}{seed}")
    layer = _layer(kind, rng)
    drawn = relative_bias("x", layer)
    (wh, ww), n = drawn.window, drawn.window[0] * drawn.window[1]
    for _ in range(20):
        i, j, head = rng.randrange(n), rng.randrange(n), rng.randrange(2)
        dy, dx = i // ww - j // ww, i % ww - j % ww
        assert drawn.index[i, j] == (dy + wh - 1) * (2 * ww - 1) + dx + ww - 1
        # The picture's axes are the offsets: row dy + wh - 1, column dx + ww - 1.
        assert drawn.bias[head, i, j] == drawn.table[head, dy + wh - 1, dx + ww - 1]


@pytest.mark.parametrize("grid", [(4, 6), (5, 4), (3, 7), (1, 1)])
def test_merging_takes_its_parents_in_order(grid):
    H, W = grid
    layout = TokenLayout("merge", query_grid=((H + 1) // 2, (W + 1) // 2), key_grid=grid, window=(2, 2))
    merge = trace_merge("x", layout, (4, 4))
    assert merge.parents.shape == ((H + 1) // 2, (W + 1) // 2, 4)
    for row in range((H + 1) // 2):
        for column in range((W + 1) // 2):
            for slot, (dy, dx) in enumerate(((0, 0), (1, 0), (0, 1), (1, 1))):
                y, x = 2 * row + dy, 2 * column + dx
                assert merge.parents[row, column, slot] == (y * W + x if y < H and x < W else -1)
    # A real merging's output changes with exactly those tokens.
    layer = PatchMerging(2).eval()
    x = torch.randn(1, H, W, 2, requires_grad=True)
    out = layer(x)
    (gradient,) = torch.autograd.grad(out[0, -1, -1, 0], x)
    touched = set((gradient[0].abs().sum(-1).flatten() > 0).nonzero().flatten().tolist())
    assert touched <= set(merge.parents[-1, -1].tolist())


def _dissect(name, extra=(0, 0), **settings):
    model = vitrail.create_model(name, **{**list_families()[name].test_config, **settings}).eval()
    inputs = [torch.randn(1, s.chans, s.size[0] + extra[0], s.size[1] + extra[1]) for s in model.streams]
    return model, inputs, dissect(model, inputs)


@pytest.mark.parametrize("name", ["vit", "swin", "maxvit", "hvt"])
@pytest.mark.parametrize("extra", [(0, 0), (3, 11)])
@pytest.mark.fast_cases("extra0-vit", "extra0-swin", "extra1-swin", "extra1-maxvit", "extra1-hvt")
def test_every_family(name, extra):
    model, inputs, anatomy = _dissect(name, extra)
    with torch.no_grad():
        maps = model.forward_intermediates(*inputs, intermediates_only=True)
    assert all(torch.equal(level.map, m[0]) for level, m in zip(anatomy.levels, maps, strict=True))
    for patch in anatomy.patches:
        size = inputs[patch.stream].shape[2:]
        assert patch.grid == tuple(-(-s // p) for s, p in zip(size, patch.patch, strict=True))
    for asked in anatomy.attention:
        total = asked.maps.sum((1, 2))
        # The class token keeps a share for itself; any other token's attention is all on the grid.
        assert (total < 1).all() if asked.query is None else torch.allclose(total, torch.ones_like(total), atol=1e-5)
    for group in anatomy.groups:
        level = next(x for x in anatomy.levels if group.name.startswith(x.name + "."))
        assert group.grid == tuple(level.map.shape[1:])
        assert group.stride == level.stride
    for merge in anatomy.merges:
        level = next(x for x in anatomy.levels if merge.name.startswith(x.name + "."))
        assert tuple(2 * s for s in merge.stride) == level.stride
        assert tuple(-(-side // 2) for side in merge.grid) == tuple(level.map.shape[1:])
    assert (anatomy.fusion is not None) == (name == "hvt")
    assert [bool(x) for x in (anatomy.groups, anatomy.relative)] == [name in ("swin", "maxvit")] * 2
    # Nothing stays behind on the model.
    assert all(not module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, ("class",)),
        ({"num_class_tokens": 2, "reg_tokens": 1}, ("class 1", "class 2", "register")),
        ({"class_token": False, "global_pool": "avg"}, ()),
        ({"class_token": False, "global_pool": "avg", "reg_tokens": 2}, ("register 1", "register 2")),
    ],
)
def test_kept_rows_are_those_of_the_whole_matrix(settings, names):
    model, inputs, anatomy = _dissect("vit", **settings)
    with torch.no_grad(), capture_attention(model) as record:
        model.forward_features(*inputs)
    P, classes = len(names), sum(name.startswith("class") for name in names)
    assert anatomy.patches[0].prefix == names
    for step, asked in zip(record.steps, anatomy.attention, strict=True):
        rows = range(classes) if classes else [P + central_token((4, 4))]
        expected = sum(step.weights[0, :, row, P:] for row in rows) / len(rows)
        assert torch.allclose(asked.maps, expected.reshape(-1, 4, 4), atol=1e-6)
        assert asked.query == (None if classes else central_token((4, 4)))
    assert [asked.token for asked in anatomy.prefix] == [*names] * (P > 1)
    for row, asked in enumerate(anatomy.prefix):
        assert torch.equal(asked.maps, record.steps[-1].weights[0, :, row, P:].reshape(-1, 4, 4))


def test_other_kinds_of_mixing_are_kept_whole():
    pool = torch.rand(1, 3, 16)
    assert keep_few_queries(CapturedMixing("token_learners.0", pool, TokenLayout("pool", key_grid=(4, 4)))) is pool


@pytest.mark.parametrize("fuse", [False, True])
def test_learned_tokens(fuse):
    model, inputs, anatomy = _dissect("vit", token_learner={"num_tokens": 3, "layer": 1, "fuse": fuse})
    from vitrail.explain import token_maps

    (learned,) = anatomy.learned
    assert torch.allclose(learned.maps, token_maps(model, inputs[0])[0])
    assert (learned.spread is not None) == fuse
    if fuse:
        with torch.no_grad(), capture_attention(model, "token_fusers.*") as record:
            model.forward_features(*inputs)
        weights = (record["token_fusers.0"].weights @ record["token_fusers.0.mix"].weights)[0]
        assert learned.spread[2, 1, 3] == weights[1 * 4 + 3, 2]
    # Attention among learned tokens has no places to draw.
    assert [a.name for a in anatomy.attention] == ["blocks.0.attn"]


@pytest.mark.parametrize("fusion", ["cross_attention", "concat"])
def test_fusion(fusion):
    model, inputs, anatomy = _dissect("hvt", fusion=fusion)
    with torch.no_grad():
        image, spectral = model.encode(*inputs)
        fused = model.forward_features(*inputs)
    assert torch.allclose(anatomy.fusion.image, image[0], atol=1e-5)
    assert torch.allclose(anatomy.fusion.spectral, spectral[0], atol=1e-5)
    assert torch.allclose(anatomy.fusion.fused.flatten(0, 1), fused[0], atol=1e-5)
    assert (anatomy.fusion.weights is None) == (fusion == "concat")
    if anatomy.fusion.weights is not None:
        assert torch.allclose(anatomy.fusion.weights.sum(-1), torch.ones(2, 16), atol=1e-5)


def test_one_image_at_a_time():
    model = vitrail.create_model("vit", **list_families()["vit"].test_config)
    with pytest.raises(ConfigError, match="one image at a time"):
        dissect(model, [torch.zeros(2, 3, 32, 32)])


def test_principal_colors():
    torch.manual_seed(0)
    # Three directions of falling variance, in ten channels: each colour follows one of them.
    signals = torch.randn(3, 20, 15) * torch.tensor([9.0, 3.0, 1.0]).view(3, 1, 1)
    basis = torch.linalg.qr(torch.randn(10, 3))[0]
    colors = principal_colors(torch.einsum("cs,shw->chw", basis, signals))
    assert colors.shape == (20, 15, 3)
    assert (colors.min(), colors.max()) == (0, 1)
    for band in range(3):
        inside = (colors[..., band] > 0) & (colors[..., band] < 1)
        pair = torch.stack([colors[..., band][inside], signals[band][inside]])
        assert torch.corrcoef(pair)[0, 1].abs() > 0.9
    assert torch.equal(principal_colors(torch.ones(4, 2, 2)), torch.full((2, 2, 3), 0.5))
    assert principal_colors(torch.randn(2, 1, 1)).shape == (1, 1, 3)
