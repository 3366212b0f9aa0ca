"""Normalisation of streams by name, or of the only one as a tensor."""

import pytest
import torch

from vitrail.data.normalization import NormalizeStreams
from vitrail.errors import ShapeError

IMAGE = ((0.5, 0.25), (0.5, 1.0))


def test_a_tensor_is_the_only_stream():
    normalize = NormalizeStreams({"image": IMAGE})
    x = torch.rand(3, 2, 4, 4)
    (alone,), (named,) = normalize(x), normalize({"image": x, "target": torch.zeros(3)})
    assert torch.equal(alone, named)
    assert torch.allclose(alone[:, 0], 2 * x[:, 0] - 1)


@pytest.mark.parametrize("given", [torch.rand(1, 2, 4, 4), [torch.rand(1, 2, 4, 4)]])
def test_several_streams_need_names(given):
    normalize = NormalizeStreams({"image": IMAGE, "spectral": IMAGE})
    with pytest.raises(ShapeError, match=r"pass \{'image': x, 'spectral': x\}"):
        normalize(given)
