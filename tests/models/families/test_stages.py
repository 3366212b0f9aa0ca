"""Stages of the hierarchical families, alone and beside the features."""

import pytest
import torch

from vitrail.models import create_model, list_families


def _tiny(name, **settings):
    torch.manual_seed(0)
    return create_model(name, **{**list_families()[name].test_config, **settings}).eval()


def _run_by_hand(model, first):
    """Outputs of all stages, each called alone on a plain tensor."""
    levels = []
    for stage in model.stage_list:
        first = stage(first.contiguous())
        levels.append(first)
    return levels


@pytest.mark.slow_cases("False-size0-maxvit", "True-size1-maxvit")
@pytest.mark.parametrize("name", ["swin", "maxvit"])
@pytest.mark.parametrize("size", [(32, 32), (37, 53)])
@pytest.mark.parametrize("grad", [False, True])
def test_stages_and_blocks_run_alone(name, size, grad):
    model, x = _tiny(name), torch.randn(2, 3, *size)
    to_map = (lambda y: y) if model.channels_first else (lambda y: y.permute(0, 3, 1, 2))
    with torch.set_grad_enabled(grad):
        levels = _run_by_hand(model, getattr(model, model.stem_name)(x))
        expected = model.forward_intermediates(x, intermediates_only=True)[-len(levels) :]
        for alone, whole in zip(levels, expected, strict=True):
            torch.testing.assert_close(to_map(alone), whole, rtol=1e-4, atol=1e-5)
        before = levels[-2]
        for block in [model.stage_list[-1].downsample, *model.stage_list[-1].blocks]:
            before = block(before.contiguous())
        torch.testing.assert_close(before, levels[-1], rtol=1e-4, atol=1e-5)
    assert levels[-1].requires_grad == grad


@pytest.mark.fast_cases("sizes0-settings0", "sizes1-settings1")
@pytest.mark.parametrize(
    "settings", [{}, {"attention": 3}, {"fusion": "concat", "depths": (1, 1, 1), "num_heads": (1, 2, 2)}]
)
@pytest.mark.parametrize("sizes", [((32, 32), (32, 32)), ((37, 50), (20, 29))])
def test_hvt_gives_the_grids_of_each_stage_and_stream(settings, sizes):
    model = _tiny("hvt", **settings)
    image, spectral = torch.randn(2, 3, *sizes[0]), torch.randn(2, 4, *sizes[1])
    features, stages = model.forward_features(image, spectral, return_stages=True)
    torch.testing.assert_close(features, model.forward_features(image, spectral))
    assert len(stages) == len(model.config.depths)
    for encoder, stream, x in ((model.rgb, "image", image), (model.spectral, "spectral", spectral)):
        for stage, tokens, dim, stride in zip(stages, encoder.levels(x), encoder.dims, encoder.strides, strict=True):
            assert list(stage) == ["image", "spectral"]
            grid = tuple(-(-length // s) for length, s in zip(x.shape[2:], stride, strict=True))
            assert stage[stream].shape == (2, dim, *grid)
            torch.testing.assert_close(stage[stream].permute(0, 2, 3, 1), tokens)
    stages[0]["spectral"].square().sum().backward()
    assert model.spectral.stages[0].blocks[0].mlp.fc1.weight.grad is not None


def test_hvt_leaves_out_a_stream_without_input():
    alone = _tiny("hvt", spectral_chans=0, spectral_embed_dim=None, fusion_heads=None)
    missing = _tiny("hvt", missing_spectral="learned")
    x = torch.randn(2, 3, 32, 32)
    for model in (alone, missing):
        features, stages = model.forward_features(x, return_stages=True)
        torch.testing.assert_close(features, model.forward_features(x))
        assert [list(stage) for stage in stages] == [["image"], ["image"]]
