"""Masks, squares and targets against loops."""

import pytest
import torch

from vitrail.errors import ConfigError
from vitrail.tasks import masking


@pytest.mark.parametrize(
    ("size", "stride", "wanted"),
    [
        ((224, 224), (4, 4), 32), ((224, 224), (16, 16), 32), ((224, 224), (2, 2), 32), ((256, 256), (16, 16), 32),
        ((384, 384), (4, 4), 64), ((64, 64), (8, 8), 8), ((64, 96), (4, 4), 8), ((8, 8), (4, 4), 4),
    ],
)  # fmt: skip
def test_squares_fit_the_image_and_the_stride(size, stride, wanted):
    assert masking.choose_mask_size(size, stride) == (wanted, wanted)


def test_a_size_that_the_stride_does_not_divide_is_refused():
    assert masking.choose_mask_size((32, 32), (4, 4), 12) == (12, 12)
    with pytest.raises(ConfigError, match="multiple of the model's first stride 4 x 4, got 10"):
        masking.choose_mask_size((32, 32), (4, 4), 10)


@pytest.mark.parametrize("seed", range(3))
def test_masks_hide_the_same_number_anywhere(seed):
    torch.manual_seed(seed)
    masks = masking.random_masks(4000, (3, 5), 0.6)
    assert masks.flatten(1).sum(1).unique().tolist() == [9]
    assert torch.allclose(masks.float().mean(0), torch.full((3, 5), 0.6), atol=0.04)
    torch.manual_seed(seed)
    assert torch.equal(masking.random_masks(4000, (3, 5), 0.6), masks)
    assert not masking.random_masks(2, (3, 5), 0.0).any()
    assert masking.random_masks(2, (3, 5), 1.0).all()
    with pytest.raises(ConfigError, match=r"0.9 of 4 patches leaves none visible"):
        masking.random_masks(2, (2, 2), 0.9)


@pytest.mark.parametrize(("height", "width", "size"), [(8, 8, (4, 4)), (7, 10, (4, 3)), (5, 5, (5, 5))])
def test_cutting_joins_again_and_is_a_loop(height, width, size):
    x = torch.randn(2, 3, height, width)
    squares = masking.patchify(x, size)
    assert torch.equal(masking.unpatchify(squares, size, (height, width)), x)
    for i in range(squares.shape[1]):
        for j in range(squares.shape[2]):
            piece = x[:, :, i * size[0] : (i + 1) * size[0], j * size[1] : (j + 1) * size[1]]
            padded = torch.zeros(2, 3, *size)
            padded[:, :, : piece.shape[2], : piece.shape[3]] = piece
            assert torch.equal(squares[:, i, j], padded.flatten(1))


def test_normalised_squares_are_a_loop():
    x = torch.randn(2, 3, 7, 10) * 5 + 2
    x[0, :, :4, :4] = 1.5  # a square without deviation
    result = masking.normalize_patches(x, (4, 4))
    for b in range(2):
        for top in (0, 4):
            for left in (0, 4, 8):
                piece = x[b, :, top : top + 4, left : left + 4]
                wanted = (piece - piece.mean()) / (piece.var() + 1e-6).sqrt()
                assert torch.allclose(result[b, :, top : top + 4, left : left + 4], wanted, atol=1e-4)


def test_masked_mean_is_a_loop_and_ignores_the_rest():
    errors, pixels = torch.rand(2, 3, 4, 5), torch.rand(2, 4, 5) > 0.5
    wanted = [errors[b, c, i, j] for b in range(2) for c in range(3) for i in range(4) for j in range(5)
              if pixels[b, i, j]]  # fmt: skip
    assert torch.allclose(masking.masked_mean(errors, pixels), torch.stack(wanted).mean())
    errors[~pixels[:, None].expand_as(errors)] = torch.inf
    assert torch.allclose(masking.masked_mean(errors, pixels), torch.stack(wanted).mean())
    assert torch.equal(masking.masked_mean(errors, None), errors.mean())
