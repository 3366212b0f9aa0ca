"""Features of point clouds: means over the points that they have."""

import pytest
import torch

import vitrail
from vitrail.explain.structure.features import layer_features, layers_of
from vitrail.explain.structure.similarity import all_features
from vitrail.models import list_families


@pytest.mark.parametrize("per_point", [False, True])
@pytest.mark.parametrize("family", ["vnt", "vn_transformer", "pointnet"])
def test_padding_changes_no_feature(family, per_point):
    settings = {**list_families()[family].test_config, "per_point": per_point}
    if family == "vn_transformer":
        settings["num_latents"] = 0
    model = vitrail.create_model(family, **settings).eval()
    clouds = torch.randn(3, 24, 3)
    padded = torch.cat([clouds, torch.full((3, 4, 3), float("nan"))], dim=1)
    layers = layers_of(model)
    found, again = (all_features(model, (x,)) for x in (clouds, padded))
    assert list(found) == layers
    with torch.no_grad():
        levels = model.forward_intermediates((clouds,), intermediates_only=True)
    for layer, level in zip(layers[:-1], levels, strict=True):
        assert torch.allclose(found[layer], level.mean(dim=2), atol=1e-5)
    for layer in layers:
        assert found[layer].shape[0] == 3
        assert torch.allclose(again[layer], found[layer], atol=1e-4 * float(found[layer].abs().max()))
        assert torch.allclose(layer_features(model, (padded,), layer), again[layer])
