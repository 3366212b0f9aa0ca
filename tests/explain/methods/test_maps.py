"""Maps lie where their tokens lie: where patches overlap, where zeros pad the image, and after a stem."""

import pytest
import torch
from scipy.ndimage import map_coordinates

import vitrail
from vitrail.explain import attention_maps, explain, token_maps
from vitrail.explain.capture.record import first_tiles

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 3}
PATCHES = [
    {"patch_stride": 4},
    {"patch_stride": (2, 6), "patch_padding": (1, 3)},
    {"patch_stride": 4, "patch_padding": 4},
    {"patch_padding": 2},
    {"stem": "resnet", "stem_width": 8},
    {"stem": "resnet", "stem_width": 8, "patch_size": 12, "patch_stride": 4, "patch_padding": 4},
]
SIZES = [(32, 32), (37, 51)]


def _build(**settings):
    torch.manual_seed(0)
    model = vitrail.create_model("vit", **{**SMALL, **settings}).eval()
    for parameter in model.parameters():
        parameter.data.mul_(1.5).add_(torch.randn_like(parameter), alpha=0.1)
    return model


def _read_pixels(model, size, row, column):
    """First and last pixel of each axis that a token depends on; those of the stem alone are not counted."""
    x = torch.randn(1, 3, *size, requires_grad=True)
    if model.config.stem:
        # Each position of the stem's map stands for four pixels.
        small = torch.randn(1, 8, *(-(-side // 4) for side in size), requires_grad=True)
        model.patch_embed(small)[0, row, column].sum().backward()
        read = small.grad.abs().sum(dim=(0, 1)).repeat_interleave(4, 0).repeat_interleave(4, 1)
    else:
        model.embed(x)[0][0, row, column].sum().backward()
        read = x.grad.abs().sum(dim=(0, 1))
    return [(axis.nonzero().min().item(), axis.nonzero().max().item()) for axis in (read.sum(1), read.sum(0))]


@pytest.mark.parametrize("settings", PATCHES, ids=str)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.fast_cases(
    "size0-{'patch_stride': (2, 6), 'patch_padding': (1, 3)}", "size1-{'stem': 'resnet', 'stem_width': 8}"
)
def test_tiles_are_central_in_what_their_tokens_read(settings, size):
    model = _build(**settings)
    (height, width), (top, left) = first_tiles(model, "image")
    for row, column in ((1, 1), (2, 1)):
        (first, last), (begin, end) = _read_pixels(model, size, row, column)
        assert first + last == 2 * (top + row * height) + height - 1
        assert begin + end == 2 * (left + column * width) + width - 1


@pytest.mark.parametrize("settings", PATCHES, ids=str)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", ["rollout", "attribution", "gradcam", "attention", "tokens"])
@pytest.mark.fast_cases(
    "rollout-size0-{'patch_stride': (2, 6), 'patch_padding': (1, 3)}",
    "attribution-size1-{'stem': 'resnet', 'stem_width': 8}",
    "gradcam-size0-{'patch_stride': (2, 6), 'patch_padding': (1, 3)}",
    "attention-size0-{'patch_stride': 4}",
    "tokens-size0-{'patch_stride': (2, 6), 'patch_padding': (1, 3)}",
)
def test_maps_interpolate_between_the_centres_of_patches(settings, size, method):
    learner = {"token_learner": {"num_tokens": 4, "layer": 0, "fuse": True}} if method == "tokens" else {}
    model, x = _build(**settings, **learner), torch.randn(2, 3, *size)
    found = explain(model, x, method=method)
    patch, padding = (model.config.patch_size, model.config.patch_padding)
    padding = padding if isinstance(padding, tuple) else (padding, padding)
    places = [
        (torch.arange(length) + 0.5 - size / 2 + pad) / step
        for length, size, pad, step in zip(size, patch, padding, model.patch_stride, strict=True)
    ]
    grid = torch.stack(torch.meshgrid(*places, indexing="ij")).numpy()
    for map_, tokens in zip(found.map, found.tokens, strict=True):
        expected = map_coordinates(tokens.double().numpy(), grid, order=1, mode="nearest")
        assert torch.allclose(map_.double(), torch.from_numpy(expected), atol=1e-5 * tokens.abs().max().item())


@pytest.mark.parametrize("settings", PATCHES, ids=str)
def test_a_query_is_the_token_whose_patch_is_centred_there(settings):
    model, x = _build(**settings), torch.randn(1, 3, 32, 32)
    centres = [model.patch_stride[axis] for axis in (0, 1)]
    tiles = first_tiles(model, "image")
    at = tuple(first + step + step // 2 for first, step in zip(tiles.offset, centres, strict=True))
    _, _, h, w = attention_maps(model, x, layer=0, query="mean").maps.shape
    with torch.no_grad(), vitrail.explain.capture_attention(model, "blocks.0.attn") as record:
        model(x)
    weights = record.steps[0].weights[0, :, 1:, 1:]
    assert torch.allclose(attention_maps(model, x, layer=0, query=at).maps[0].flatten(1), weights[:, w + 1])
    corner = attention_maps(model, x, layer=0, query=(31, 31)).maps[0].flatten(1)
    assert torch.allclose(corner, weights[:, h * w - 1])


def test_selection_maps_without_levels_lie_at_the_stride():
    model = _build(patch_stride=4, token_learner={"num_tokens": 4, "layer": 0})
    assert not model.feature_info
    x = torch.randn(1, 3, 32, 32)
    assert token_maps(model, x).shape == (1, 4, 7, 7)
    assert first_tiles(model, "image") == ((4, 4), (2, 2))
    assert explain(model, x, method="tokens").map.shape == (1, 32, 32)
