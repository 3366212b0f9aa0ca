"""MAE of clips: tubes, the encoder sees visible tubelets alone, the loss is VideoMAE's."""

import pytest
import torch

from tests.tasks.models import batch_for, statistics, tiny
from vitrail.data.sources.moving_digits import MovingDigitsSource
from vitrail.errors import ConfigError
from vitrail.tasks.mae import MAETask, default_mask_ratio
from vitrail.tasks.masking import (
    normalize_tubelets,
    patchify,
    random_masks,
    tube_masks,
    unpatchify,
    upsample_mask,
)

# Six frames of 24 x 24 in tubelets of 2 x 8 x 8, with and without class token.
MODELS = {"class_token": {}, "mean": {"class_token": False, "global_pool": "avg"}}


def _made(settings=None, **options):
    model = tiny("vivit", **(settings or {}))
    return MAETask(model, statistics(model), **{"mask_ratio": 0.6, "decoder_depth": 1, **options}).train()


def _tubelets(x, size):
    """Cut clips into tubelets by loops: (time, row, column) -> (B, C, pt, ph, pw)."""
    t, h, w = size
    return {
        (i, j, k): x[:, :, i * t : (i + 1) * t, j * h : (j + 1) * h, k * w : (k + 1) * w]
        for i in range(-(-x.shape[2] // t))
        for j in range(-(-x.shape[3] // h))
        for k in range(-(-x.shape[4] // w))
    }


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("grid", "ratio", "masked"), [((8, 14, 14), 0.9, 177), ((3, 3, 5), 0.6, 9), ((1, 2, 3), 0.5, 3)]
)
@pytest.mark.fast_cases("grid0-0.9-177-2", "grid2-0.5-3-2")
def test_tubes_mask_the_same_place_at_all_times(seed, grid, ratio, masked):
    torch.manual_seed(seed)
    masks = tube_masks(50, grid, ratio)
    assert masks.shape == (50, *grid)
    assert torch.equal(masks, masks[:, :1].expand(-1, grid[0], -1, -1))
    assert masks[:, 0].flatten(1).sum(1).unique().tolist() == [masked]
    torch.manual_seed(seed)
    assert torch.equal(masks[:, 0], random_masks(50, grid[1:], ratio))


@pytest.mark.parametrize(("lengths", "size"), [((4, 8, 8), (2, 4, 4)), ((5, 7, 10), (2, 4, 3)), ((2, 5, 5), (3, 5, 2))])
def test_cutting_joins_again_and_is_a_loop(lengths, size):
    x = torch.randn(2, 3, *lengths)
    tubelets = patchify(x, size)
    assert torch.equal(unpatchify(tubelets, size, lengths), x)
    for index, piece in _tubelets(x, size).items():
        padded = torch.zeros(2, 3, *size)
        padded[:, :, : piece.shape[2], : piece.shape[3], : piece.shape[4]] = piece
        assert torch.equal(tubelets[(slice(None), *index)], padded.flatten(1))
    mask = torch.rand(2, *tubelets.shape[1:4]) > 0.5
    upsampled = upsample_mask(mask, size, lengths)
    for index, piece in _tubelets(upsampled[:, None], size).items():
        assert torch.equal(piece, mask[(slice(None), *index)].view(2, 1, 1, 1, 1).expand_as(piece))


@pytest.mark.parametrize("lengths", [(4, 8, 8), (5, 7, 10)])
def test_bands_of_tubelets_are_normalised_one_by_one(lengths):
    x = torch.randn(2, 3, *lengths) * 5 + 2
    found = _tubelets(normalize_tubelets(x, (2, 4, 4)), (2, 4, 4))
    for index, piece in _tubelets(x, (2, 4, 4)).items():
        flat = piece.flatten(2)
        wanted = (flat - flat.mean(2, keepdim=True)) / (flat.var(2, keepdim=True).sqrt() + 1e-6)
        assert torch.allclose(found[index].flatten(2), wanted, atol=1e-4)


@pytest.mark.parametrize("settings", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("value", [7.5, float("nan")])
def test_masked_pixels_do_not_reach_the_encoder(settings, value):
    task = _made(settings)
    x = torch.randn(2, 3, 5, 24, 22)  # no multiple of the tubelet
    mask = tube_masks(2, (3, 3, 3), 0.6)
    plain = task.reconstruct(x, mask)
    assert plain.shape == x.shape
    hidden = upsample_mask(mask, (2, 8, 8), (5, 24, 22))[:, None].expand_as(x)
    assert torch.equal(task.reconstruct(torch.where(hidden, value, x), mask), plain)
    assert not torch.allclose(task.reconstruct(torch.where(~hidden, x + 0.1, x), mask), plain)


@pytest.mark.parametrize("settings", MODELS.values(), ids=MODELS)
def test_the_encoder_runs_on_visible_tubelets_alone(settings):
    task, seen = _made(settings), []
    task.model.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    task(batch_for(task.model))
    # Three of nine places, at three times.
    assert seen == [(3, 9 + task.model.num_prefix, 24)]


@pytest.mark.parametrize("loss_on", ["masked", "all"])
@pytest.mark.parametrize("normalize_target", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.fast_cases("0-True-masked", "0-False-all")
def test_the_loss_is_a_loop_over_masked_tubelets(loss_on, normalize_target, seed, monkeypatch):
    task = _made(loss_on=loss_on, normalize_target=normalize_target)
    torch.manual_seed(seed)
    prediction, masks = torch.randn(3, 3, 6, 24, 24), []
    monkeypatch.setattr(task, "reconstruct", lambda x, mask: masks.append(mask) or prediction)
    batch = batch_for(task.model, seed=seed)
    loss = task(batch)["loss"]
    clips, predicted = (_tubelets(x, (2, 8, 8)) for x in ((batch["video"] - 0.4) / 0.3, prediction))
    errors = []
    for index, tubelet in clips.items():
        for clip in range(3):
            if loss_on == "masked" and not masks[0][(clip, *index)]:
                continue
            for band in range(3):
                target = tubelet[clip, band]
                if normalize_target:
                    target = (target - target.mean()) / (target.var().sqrt() + 1e-6)
                errors.append((predicted[index][clip, band] - target).square().mean())
    assert loss.item() == pytest.approx(torch.stack(errors).mean().item(), rel=1e-5)


def test_the_share_of_clips_is_larger():
    clips, images = tiny("vivit", num_frames=4, img_size=48, tubelet_size=(2, 8, 8)), tiny("vit")
    assert MAETask(clips, statistics(clips), decoder_depth=1).mask_ratio == default_mask_ratio(clips.modality) == 0.9
    assert default_mask_ratio(images.modality) == 0.75


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attention": "factorised_encoder"}, "choose 'joint'; or use task.name simclr"),
        ({"num_frames": 6, "img_size": 16}, r"mask_ratio 0.9 of 4 patches leaves none visible"),
    ],
)
def test_what_cannot_be_pretrained_is_refused(settings, message):
    model = tiny("vivit", **settings)
    with pytest.raises(ConfigError, match=message):
        MAETask(model, statistics(model))


@pytest.mark.slow
def test_it_learns_moving_digits():
    torch.manual_seed(0)
    settings = {"num_frames": 8, "tubelet_size": (2, 6, 6), "in_chans": 1, **MODELS["mean"]}
    task = _made(settings, mask_ratio=0.75, normalize_target=False, decoder_dim=32)
    source = MovingDigitsSource((8, 24, 24))
    optimizer = torch.optim.AdamW(task.parameter_groups(0.05, 3e-3), lr=3e-3)
    losses = []
    for step in range(60):
        loss = task({"video": source.read(range(16 * step, 16 * step + 16))["video"]})["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    assert not [name for name, p in task.named_parameters() if p.grad is None]
