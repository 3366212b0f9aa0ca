"""Relative positions against their definition, and that a kept bias never outlives its table."""

import copy
import io
import sys

import numpy as np
import pytest
import torch
from torch import nn

from tests.tiers import fast_paths_on
from vitrail.errors import ConfigError
from vitrail.layers.fast import relative_position, window_attention
from vitrail.layers.positions import resample_relative_table
from vitrail.layers.relative_position import RelativePositionBias, expand_table, relative_position_index
from vitrail.layers.window_attention import WindowAttention
from vitrail.layers.windows import window_mask


def test_index_of_window_7():
    index = relative_position_index((7, 7))
    assert index.shape == (49, 49)
    assert index[0, :7].tolist() == [84, 83, 82, 81, 80, 79, 78]
    assert (index.diagonal() == 84).all()
    assert index.unique().tolist() == list(range(169))


@pytest.mark.parametrize(
    ("window", "table_window"), [((3, 5), None), ((2, 3), (4, 5)), ((1, 4), (7, 4)), ((2, 3, 2), (4, 3, 5))]
)
def test_index_against_the_definition(window, table_window):
    index = relative_position_index(window, table_window=table_window)
    sizes = np.array(table_window or window)
    tokens = [np.array(token) for token in np.ndindex(*window)]
    for row, query in zip(index, tokens, strict=True):
        assert row.tolist() == [np.ravel_multi_index(query - key + sizes - 1, 2 * sizes - 1) for key in tokens]


def test_bias_is_the_table_at_the_index():
    layer = RelativePositionBias((3, 2), num_heads=4)
    assert list(layer.state_dict()) == ["relative_position_bias_table"]
    table = layer.relative_position_bias_table
    assert table.shape == (5 * 3, 4)
    bias = layer()
    assert bias.shape == (1, 4, 6, 6)
    index = relative_position_index((3, 2))
    for head in range(4):
        assert torch.equal(bias[0, head], table[:, head][index])


def test_a_smaller_window_takes_the_same_offsets():
    table = torch.randn(7 * 9, 2)
    full = expand_table(table, (4, 5)).view(2, 4, 5, 4, 5)
    small = expand_table(table, (3, 2), (4, 5)).view(2, 3, 2, 3, 2)
    assert torch.equal(small, full[:, :3, :2, :3, :2])


def test_gradient_counts_how_often_an_offset_occurs():
    layer = RelativePositionBias(3, num_heads=1)
    layer().sum().backward()
    expected = relative_position_index((3, 3)).flatten().bincount().float()
    assert torch.equal(layer.relative_position_bias_table.grad[:, 0], expected)


@fast_paths_on
def test_bias_is_kept_only_without_gradient():
    layer = RelativePositionBias(3, num_heads=2)
    assert layer().requires_grad
    assert layer() is not layer()
    with torch.no_grad():
        kept = layer()
        assert not kept.requires_grad
        assert layer() is kept
    assert layer().requires_grad
    layer.requires_grad_(False)
    assert layer() is kept


def _by_optimiser(layer):
    optimiser = torch.optim.SGD(layer.parameters(), lr=1.0)
    layer().square().sum().backward()
    optimiser.step()


def _by_data(layer):
    layer.relative_position_bias_table.data.mul_(3.0)


def _by_state_dict(layer):
    layer.load_state_dict({"relative_position_bias_table": torch.randn(25, 2)})


def _by_init(layer):
    nn.init.normal_(layer.relative_position_bias_table)


def _by_replacement(layer):
    layer.relative_position_bias_table = nn.Parameter(torch.randn(25, 2))


@pytest.mark.parametrize("change", [_by_optimiser, _by_data, _by_state_dict, _by_init, _by_replacement])
def test_bias_follows_every_change_of_its_table(change):
    layer = RelativePositionBias(3, num_heads=2)
    with torch.no_grad():
        before = layer().clone()
    change(layer)
    with torch.no_grad():
        after = layer()
    assert not torch.equal(before, after)
    assert torch.equal(after, expand_table(layer.relative_position_bias_table.detach(), (3, 3)))


def test_bias_follows_the_type_and_back():
    layer = RelativePositionBias(3, num_heads=2)
    with torch.no_grad():
        single = layer()
        assert layer.double()().dtype == torch.float64
        assert layer.bfloat16()().dtype == torch.bfloat16
        assert layer.float()().dtype == torch.float32
        assert torch.equal(layer(), single.bfloat16().float())


def test_inference_mode_leaves_nothing_that_training_cannot_use():
    layer = RelativePositionBias(3, num_heads=2)
    with torch.inference_mode():
        layer()
    layer.requires_grad_(False)
    x = torch.randn(1, 2, 9, 9, requires_grad=True)
    (x * layer()).sum().backward()
    assert torch.equal(x.grad, layer())


def test_functional_calls_see_the_tables_they_give():
    layer = RelativePositionBias(3, num_heads=2)
    tables = torch.randn(4, 25, 2)

    def call(table):
        return torch.func.functional_call(layer, {"relative_position_bias_table": table}, ()).square().sum()

    with torch.no_grad():
        layer()
        batched = torch.func.vmap(call)(tables)
        gradient = torch.func.grad(call)(tables[0])
    index = relative_position_index((3, 3))
    assert torch.allclose(batched, torch.stack([t[index].square().sum() for t in tables]))
    assert torch.allclose(gradient, 2 * tables[0] * index.flatten().bincount()[:, None])


def test_another_thread_in_between_changes_no_bias():
    layer = WindowAttention(8, 2, 4, (1, 1)).requires_grad_(False)
    cases = []
    for size in ((6, 7), (2, 3), (9, 4), (4, 4)):
        fit = layer.fit_windows(torch.zeros(1, *size, 8))
        mask = window_mask(fit.size, fit.window, fit.shift, mask_padding=True)
        bias = expand_table(layer.relative_position_bias_table, fit.window, (4, 4))
        cases += [(fit, mask, bias.masked_fill(mask[:, None], -torch.inf)), (fit, None, bias)]

    def get(case):
        return layer.attention_bias(case[0], case[1], torch.float32)

    def interrupt(frame, event, argument):
        # What another thread may do between any two lines; nothing is traced in here.
        if frame.f_code.co_filename in (relative_position.__file__, window_attention.__file__) and event == "line":
            get(others[0])
        return interrupt

    others, before = list(cases), sys.gettrace()
    for case in cases:
        for _ in cases:
            others.append(others.pop(0))
            sys.settrace(interrupt)
            try:
                found = [get(case), get(case)]
            finally:
                sys.settrace(before)
            assert all(torch.equal(bias, case[2]) for bias in found)


def test_copies_and_pickles_start_empty():
    layer = RelativePositionBias(3, num_heads=2)
    with torch.no_grad():
        layer()
    other = copy.deepcopy(layer)
    with torch.no_grad():
        other.relative_position_bias_table.zero_()
        assert not other().any()
        assert layer().any()
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    assert len(buffer.getvalue()) < 10_000


def test_resampling_keeps_what_bicubic_keeps():
    constant = torch.full((13 * 13, 3), 2.5)
    assert torch.allclose(resample_relative_table(constant, (7, 7), (12, 12)), torch.full((23 * 23, 3), 2.5))
    table = torch.randn(13 * 13, 3)
    assert resample_relative_table(table, (7, 7), (7, 7)) is table
    grown = resample_relative_table(table, (7, 7), (12, 10))
    assert grown.shape == (23 * 19, 3)
    # Heads are resampled each on its own, and the offset zero stays in the middle.
    alone = resample_relative_table(table[:, 1:2], (7, 7), (12, 10))
    assert torch.allclose(grown[:, 1:2], alone, atol=1e-6)
    assert torch.allclose(grown.view(23, 19, 3)[11, 9], table.view(13, 13, 3)[6, 6], atol=1e-6)


def test_wrong_settings_are_refused():
    with pytest.raises(ConfigError, match="window_size"):
        RelativePositionBias(0, num_heads=2)
    with pytest.raises(ConfigError, match="num_heads must be at least 1, got 0"):
        RelativePositionBias(3, num_heads=0)
