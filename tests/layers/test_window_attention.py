"""Window attention against attention that is computed token by token."""

import random

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounter

from tests.tiers import fast_first, fast_paths_on
from vitrail.errors import ConfigError, ShapeError
from vitrail.layers.fast import attention, window_attention
from vitrail.layers.fast.window_attention import reorder, window_order
from vitrail.layers.tap import TokenLayout
from vitrail.layers.window_attention import ShiftedWindowAttention, WindowAttention, masked_bias
from vitrail.layers.windows import merge_windows, partition_windows, window_mask


def attention_by_hand(layer, x, mask_padding=True):
    """Each token attends to those whose places, shifted, lie in the same window of the endless plane."""
    B, H, W, C = x.shape
    (wh, ww), heads = layer.window, layer.num_heads
    shift = [s if length > w else 0 for s, w, length in zip(layer.shift, layer.window, (H, W), strict=True)]
    if not mask_padding:
        x = F.pad(x, (0, 0, 0, -W % ww, 0, -H % wh))
    height, width = x.shape[1:3]
    q, k, v = layer.qkv(x).view(B, height, width, 3, heads, C // heads).unbind(3)
    table = layer.relative_position_bias_table
    out = torch.zeros(B, H, W, C, dtype=x.dtype)
    for row in range(H):
        for column in range(W):
            keys = [
                (r, c)
                for r in range(height)
                for c in range(width)
                if (r - shift[0]) // wh == (row - shift[0]) // wh and (c - shift[1]) // ww == (column - shift[1]) // ww
            ]
            rows, columns = (torch.tensor(places) for places in zip(*keys, strict=True))
            index = (row - rows + wh - 1) * (2 * ww - 1) + (column - columns + ww - 1)
            scores = torch.einsum("bhd,bnhd->bhn", q[:, row, column], k[:, rows, columns])
            scores = scores / (C // heads) ** 0.5 + table[index].t()
            mixed = torch.einsum("bhn,bnhd->bhd", scores.softmax(-1), v[:, rows, columns])
            out[:, row, column] = layer.proj(mixed.reshape(B, C))
    return out


def _random_layer(seed, mask_padding):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    window = (rng.randint(1, 5), rng.randint(1, 5))
    shift = (rng.randrange(window[0]), rng.randrange(window[1])) if rng.random() < 0.7 else (0, 0)
    heads = rng.randint(1, 3)
    layer = WindowAttention(4 * heads, heads, window, shift, rng.random() < 0.5, mask_padding)
    torch.nn.init.normal_(layer.relative_position_bias_table)
    if layer.qkv.bias is not None:
        torch.nn.init.normal_(layer.qkv.bias)
    return layer.double(), (rng.randint(1, 11), rng.randint(1, 11))


@pytest.mark.parametrize("mask_padding", [True, False])
@pytest.mark.parametrize("seed", fast_first(range(15), 5))
@pytest.mark.fast_cases("1-False", "3-True", "4-True")
def test_by_hand(seed, mask_padding):
    layer, grid = _random_layer(seed, mask_padding)
    x = torch.randn(2, *grid, layer.dim, dtype=torch.float64, requires_grad=True)
    expected = attention_by_hand(layer, x, mask_padding)
    assert torch.allclose(layer(x), expected, atol=1e-12)
    # The same without gradients, where the bias is kept and attention is fused.
    with torch.no_grad():
        assert torch.allclose(layer(x), expected, atol=1e-12)
        assert torch.allclose(layer(x), expected, atol=1e-12)
    # And the gradients of all of it.
    weight = torch.randn_like(expected)
    parameters = [x, *layer.parameters()]
    wanted = torch.autograd.grad((expected * weight).sum(), parameters)
    for actual, gradient in zip(torch.autograd.grad((layer(x) * weight).sum(), parameters), wanted, strict=True):
        assert torch.allclose(actual, gradient, atol=1e-10)


@pytest.mark.fast_cases("shift1")
@pytest.mark.parametrize("shift", [(0, 0), (2, 2)])
def test_masking_padding_changes_nothing_where_there_is_none(shift):
    masked = WindowAttention(8, 2, 4, shift)
    plain = WindowAttention(8, 2, 4, shift, mask_padding=False)
    plain.load_state_dict(masked.state_dict())
    with torch.no_grad():
        x = torch.randn(2, 8, 12, 8)
        assert torch.equal(masked(x), plain(x))
        x = torch.randn(2, 7, 12, 8)
        assert not torch.allclose(masked(x), plain(x))


@pytest.mark.parametrize("shift", [(0, 0), (1, 2)])
@pytest.mark.parametrize("grid", [(8, 12), (7, 10), (3, 5), (1, 1)])
def test_reports_what_it_did(shift, grid):
    layer = WindowAttention(8, 2, (4, 5), shift).eval()
    x = torch.randn(2, *grid, 8)
    with torch.no_grad():
        plain = layer(x)
    seen = []
    layer.tap.consumer = lambda weights, layout: seen.append((weights, layout))
    watched = layer(x)
    assert torch.allclose(plain, watched, atol=1e-6)
    ((weights, layout),) = seen
    assert weights.requires_grad
    wh, ww = layout.window
    assert (layout.kind, layout.query_grid, layout.key_grid) == ("window", grid, grid)
    padded = (grid[0] + layout.padding[0], grid[1] + layout.padding[1])
    assert padded[0] % wh == padded[1] % ww == 0
    count = padded[0] // wh * (padded[1] // ww)
    assert weights.shape == (2 * count, 2, wh * ww, wh * ww)
    assert torch.allclose(weights.sum(-1), torch.ones(weights.shape[:-1]), atol=1e-5)
    # The layout is enough to find each weight's tokens: applied to the values, they give the output.
    v = layer.qkv(F.pad(x, (0, 0, 0, layout.padding[1], 0, layout.padding[0])))[..., 16:]
    places = torch.arange(padded[0] * padded[1]).view(padded).roll([-s for s in layout.shift], (0, 1))
    places = places.view(padded[0] // wh, wh, padded[1] // ww, ww).transpose(1, 2).reshape(count, -1)
    values = v.flatten(1, 2)[:, places].view(2 * count, -1, 2, 4).transpose(1, 2)
    mixed = (weights @ values).transpose(1, 2).reshape(2, count * wh * ww, 8)
    out = torch.zeros(2, padded[0] * padded[1], 8)
    out[:, places.flatten()] = layer.proj(mixed)
    assert torch.allclose(out.view(2, *padded, 8)[:, : grid[0], : grid[1]], watched, atol=1e-5)
    # Nothing of the padding reaches a real token.
    real = torch.zeros(padded, dtype=torch.bool)
    real[: grid[0], : grid[1]] = True
    real = real.flatten()[places].repeat(2, 1)
    assert not weights[(real[:, :, None] & ~real[:, None, :])[:, None].expand_as(weights)].any()


@pytest.mark.fast_cases("True-shift0-grid0")
@pytest.mark.parametrize(
    ("mask_padding", "shift", "grid"),
    [(True, (0, 0), (4, 4)), (False, (1, 1), (4, 6)), (True, (1, 1), (3, 5)), (False, (1, 1), (3, 5)),
     (False, (0, 0), (4, 4)), (True, (1, 1), (4, 6))],
)  # fmt: skip
def test_gradcheck(mask_padding, shift, grid):
    layer = WindowAttention(4, 2, 2, shift, mask_padding=mask_padding).double()
    x = torch.randn(1, *grid, 4, dtype=torch.float64, requires_grad=True)

    def call(x, table):
        return torch.func.functional_call(layer, {"relative_position_bias_table": table}, (x,))

    table = layer.relative_position_bias_table.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(call, (x, table))


def test_reordering_is_a_permutation_with_its_gradients():
    order, inverse = window_order((4, 6), (2, 3), (1, 2))
    x = torch.randn(2, 24, 1, dtype=torch.float64, requires_grad=True)
    assert torch.equal(reorder(reorder(x, order, inverse), inverse, order), x)

    def call(x):
        return reorder(x, order, inverse).square()

    assert torch.autograd.gradcheck(call, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, x)
    stack = torch.randn(5, 2, 24, 3)
    batched = torch.func.vmap(lambda x: reorder(x, order, inverse))(stack)
    assert torch.equal(batched, stack[:, :, order])


def test_a_row_of_padding_alone_gives_no_nan():
    # The last shifted window of this map holds a region of nothing but padding.
    layer = WindowAttention(4, 1, 4, (2, 2))
    x = torch.randn(1, 5, 5, 4, requires_grad=True)
    out = layer(x)
    out.sum().backward()
    assert torch.isfinite(out).all()
    assert torch.isfinite(x.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters())


def test_wrong_settings_and_maps_are_refused():
    with pytest.raises(ConfigError, match=r"shift must be inside the window of \(4, 4\), got \(4, 0\)"):
        WindowAttention(8, 2, 4, (4, 0))
    with pytest.raises(ConfigError, match="set mask_padding=False"):
        WindowAttention(8, 2, 4, pad_after_shift=True)
    with pytest.raises(ConfigError, match="num_heads must divide the width 8, got 3"):
        WindowAttention(8, 3, 4)
    with pytest.raises(ShapeError, match=r"\(B, H, W, 8\), got \(1, 4, 4, 6\)"):
        WindowAttention(8, 2, 4)(torch.zeros(1, 4, 4, 6))


@pytest.mark.parametrize("seed", fast_first(range(6), 1))
def test_a_map_that_is_padded_after_the_shift(seed):
    """timm's order: roll, fill up, attend within the rolled regions of the filled map, cut, roll back."""
    rng = random.Random(seed)
    window = (rng.randint(2, 5), rng.randint(2, 5))
    shift = (window[0] // 2, window[1] // 2)
    H, W = (w + rng.randint(1, 2 * w) for w in window)
    layer = WindowAttention(8, 2, window, shift, mask_padding=False, pad_after_shift=True)
    torch.nn.init.normal_(layer.relative_position_bias_table)
    x = torch.randn(2, H, W, 8)
    rolled = F.pad(x.roll((-shift[0], -shift[1]), (1, 2)), (0, 0, 0, -W % window[1], 0, -H % window[0]))
    # Unshifted attention on each part that the shift made, from the same windows.
    plain = WindowAttention(8, 2, window, mask_padding=False)
    plain.load_state_dict(layer.state_dict())
    mask = window_mask(tuple(rolled.shape[1:3]), window, shift, mask_padding=False)
    bias = masked_bias(plain.position_bias(window), mask, x.dtype).repeat(2, 1, 1, 1)
    mixed = plain.mix(partition_windows(rolled, window), TokenLayout("window"), bias)
    mixed = merge_windows(mixed, window, rolled.shape[1:3])[:, :H, :W].roll(shift, (1, 2))
    assert torch.allclose(layer(x), mixed, atol=1e-5)
    torch.compiler.reset()
    assert torch.allclose(torch.compile(layer, fullgraph=True, backend="eager")(x), mixed, atol=1e-5)
    other = WindowAttention(8, 2, window, shift, mask_padding=False)
    other.load_state_dict(layer.state_dict())
    if H % window[0] == W % window[1] == 0:
        assert torch.allclose(other(x), mixed, atol=1e-5)


@fast_paths_on
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("make", [WindowAttention, ShiftedWindowAttention])
def test_large_biases_are_not_repeated_for_each_image(make, images, monkeypatch):
    layer = make(8, 2, (3, 4), (1, 2))
    x = torch.randn(images, 7, 9, 8)
    with torch.no_grad():
        expected = layer(x)
        sizes = []
        fused = F.scaled_dot_product_attention
        monkeypatch.setattr(attention, "_LARGE_BIAS", 1)
        monkeypatch.setattr(
            F,
            "scaled_dot_product_attention",
            lambda q, k, v, attn_mask, dropout_p=0.0: sizes.append(attn_mask) or fused(q, k, v, attn_mask),
        )
        assert torch.allclose(layer(x), expected, atol=1e-6)
    assert [len(mask) for mask in sizes] == [9] * images
    assert len({mask.data_ptr() for mask in sizes}) == 1


@pytest.mark.fast_cases("ShiftedWindowAttention")
@fast_paths_on
@pytest.mark.parametrize("make", [WindowAttention, ShiftedWindowAttention])
def test_masks_are_made_once(make):
    layers = [make(8, 2, (3, 4), (1, 2)) for _ in range(3)]
    window_attention._cached_mask.cache_clear()
    rng = random.Random(0)
    sizes = list({(rng.randint(4, 30), rng.randint(5, 30)) for _ in range(60)})
    with torch.no_grad():
        for _ in range(2):
            for size in sizes:
                for layer in layers:
                    layer(torch.randn(1, *size, 8))
        assert window_attention._cached_mask.cache_info().misses == len(sizes)
        x = torch.randn(1, 7, 9, 8)
        fit = layers[0].fit_windows(x)
        bias = layers[0].attention_bias(fit, layers[0].attention_mask(x, fit), torch.float32)
        assert layers[0].attention_bias(fit, layers[0].attention_mask(x, fit), torch.float32) is bias
        assert bias.shape[0] == 9


@fast_paths_on
@pytest.mark.slow
@pytest.mark.parametrize("make", [WindowAttention, ShiftedWindowAttention])
@pytest.mark.parametrize("shift", [(0, 0), (1, 2)])
def test_one_graph_for_maps_of_all_sizes(make, shift):
    torch.compiler.reset()
    counter = CompileCounter()
    layer = make(64, 2, (4, 5), shift)
    compiled = torch.compile(layer, fullgraph=True, backend=counter, dynamic=True)
    rng = random.Random(0)

    def compare(least):
        for _ in range(12):
            x = torch.randn(2, rng.randint(least[0], 14), rng.randint(least[1], 14), 64)
            assert torch.allclose(compiled(x), layer(x), atol=1e-5)
        return counter.frame_count

    assert compare((5, 6)) == 1
    # One row or one column of windows: torch knows no size for both one and several.
    assert compare((2, 2)) <= 4
