"""Principal components of projection filters, against scikit-learn's PCA, for any number of bands."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

import vitrail
from vitrail.errors import ConfigError
from vitrail.explain import projection_filters

VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2, "num_classes": 2}


@pytest.mark.parametrize("bands", [1, 3, 7])
def test_components_are_those_of_pca(bands):
    torch.manual_seed(bands)
    model = vitrail.create_model("vit", in_chans=bands, **VIT)
    (found,) = projection_filters(model, count=6)
    assert (found.name, found.stream, found.components.shape) == ("patch_embed.proj.weight", "image", (6, bands, 4, 4))
    expected = PCA(6, svd_solver="full").fit(model.patch_embed.proj.weight.detach().flatten(1).double().numpy())
    assert np.allclose(found.shares.numpy(), expected.explained_variance_ratio_, atol=1e-5)
    ours = found.components.flatten(1).double().numpy()
    assert np.allclose(np.abs((ours * expected.components_).sum(1)), 1, atol=1e-5)  # equal up to the sign
    assert (ours[np.arange(6), np.abs(ours).argmax(1)] > 0).all()


def test_a_planted_pattern_is_found():
    model = vitrail.create_model("vit", in_chans=2, **VIT)
    pattern = torch.randn(2, 4, 4)
    weights = torch.randn(24, 1, 1, 1)
    model.patch_embed.proj.weight.data = weights * pattern + 5.0  # the mean filter is not a component
    (found,) = projection_filters(model)
    cosine = torch.cosine_similarity(found.components[0].flatten(), pattern.flatten(), dim=0)
    assert abs(float(cosine)) == pytest.approx(1, abs=1e-4)
    assert float(found.shares[0]) == pytest.approx(1, abs=1e-4)


def test_streams_stems_and_refusals():
    hvt = vitrail.create_model("hvt", img_size=16, patch_size=4, embed_dim=8, depths=(1,), num_heads=(2,),
                               spectral_chans=5, spectral_embed_dim=8, num_classes=2)  # fmt: skip
    assert [(f.stream, f.components.shape[1]) for f in projection_filters(hvt)] == [("image", 3), ("spectral", 5)]
    maxvit = vitrail.create_model("maxvit", img_size=32, stem_width=8, embed_dim=(8,), depths=(1,), dim_head=8,
                                  window_size=2, num_classes=2)  # fmt: skip
    (found,) = projection_filters(maxvit)
    assert found.name == "stem.conv1.weight"
    assert len(found.components) == 8  # no more than filters
    with pytest.raises(ConfigError, match="at least 1"):
        projection_filters(maxvit, count=0)
