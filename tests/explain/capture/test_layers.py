"""Layers to capture: by patterns of names, by indices of blocks, or several of either."""

import pytest
import torch

import vitrail
from vitrail.errors import ConfigError
from vitrail.explain import capture_attention
from vitrail.models import list_families


@pytest.fixture(scope="module")
def model():
    return vitrail.create_model("vit", **{**list_families()["vit"].test_config, "depth": 3}).eval()


@pytest.mark.parametrize(
    ("layers", "blocks"),
    [
        ("blocks.1.attn", [1]),
        (1, [1]),
        (-1, [2]),
        ([2, 0], [0, 2]),
        (("blocks.0.*", "blocks.0.attn", -1), [0, 2]),
        ("*", [0, 1, 2]),
    ],
)
def test_layers_by_name_and_index(model, layers, blocks):
    stream = model.streams[0]
    with torch.no_grad(), capture_attention(model, layers=layers) as record:
        model(torch.randn(1, stream.chans, *stream.size))
    assert [step.name for step in record.steps] == [f"blocks.{index}.attn" for index in blocks]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (3, "layer must be from -3 to 2, got 3"),
        ([0, "block.1.attn"], "no layer with attention matches 'block.1.attn'; did you mean"),
        ([], "layers is empty"),
        ([1.5], "patterns of names or indices of blocks, got 1.5"),
    ],
)
def test_layers_that_do_not_exist(model, layers, message):
    with pytest.raises(ConfigError, match=message), capture_attention(model, layers=layers):
        pass
