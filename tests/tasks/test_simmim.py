"""SimMIM in every family: no masked pixel arrives, the loss is the published one, one stream tells of the other."""

import pytest
import torch

from tests.tasks.models import SETTINGS, batch_for, statistics, tiny
from tests.tiers import spread
from vitrail.errors import ConfigError
from vitrail.models import list_families
from vitrail.tasks.masking import upsample_mask
from vitrail.tasks.simmim import PixelHead, SimMIMTask


def pytest_generate_tests(metafunc):
    spread(metafunc, name=SETTINGS)


def made(name, seed=0, ratio=0.5, task=None, **settings):
    model = tiny(name, seed, **settings)
    ratios = ratio if isinstance(ratio, dict) else {s.name: ratio for s in model.streams}
    return SimMIMTask(model, statistics(model), mask_ratios=ratios, **(task or {})).train()


def test_every_family_is_tried():
    assert {name.split("_")[0] for name in SETTINGS} == set(list_families("image"))


def _inputs(task, size=None, seed=0):
    batch = batch_for(task.model, size=size, seed=seed)
    return dict(zip(batch, task.normalize(batch), strict=True))


@pytest.mark.parametrize("size", [None, (37, 45)], ids=["built", "odd"])
@pytest.mark.fast_cases("vit_pooled-built", "swin-built", "maxvit-odd", "hvt_two-odd")
def test_masked_pixels_do_not_reach_the_model(name, size):
    task = made(name)
    inputs = _inputs(task, size)
    masks = task.draw_masks(inputs)
    hidden = {n: upsample_mask(masks[n], task.sizes[n], tuple(x.shape[2:]))[:, None] for n, x in inputs.items()}
    with torch.no_grad():
        plain = task.reconstruct(inputs, masks)
        for value in (3.7, float("nan"), float("-inf")):
            changed = {n: torch.where(hidden[n], value, x) for n, x in inputs.items()}
            for stream, pixels in task.reconstruct(changed, masks).items():
                assert torch.equal(pixels, plain[stream]), (stream, value)
        for n, x in inputs.items():
            assert plain[n].shape == x.shape
            moved = task.reconstruct({**inputs, n: torch.where(hidden[n], x, x + 0.5)}, masks)
            assert not torch.allclose(moved[n], plain[n])


def test_a_masked_square_is_no_grey_square(name):
    """The mask token tells what is hidden from what is of the mean colour."""
    task = made(name).eval()
    inputs = {n: torch.zeros_like(x) for n, x in _inputs(task).items()}
    masks = task.draw_masks(inputs)
    fewer = {n: torch.zeros_like(mask) for n, mask in masks.items()}
    with torch.no_grad():
        a, b = task.reconstruct(inputs, masks), task.reconstruct(inputs, fewer)
    assert all(not torch.allclose(a[n], b[n], atol=1e-6) for n in a)


def test_nothing_masked_is_the_model_itself(name):
    model = tiny(name).eval()
    batch = batch_for(model)
    inputs = list(batch.values())
    with torch.no_grad():
        features = model.forward_features(*inputs)
        last = model.forward_embedded(*model.embed(*inputs))
    first = last[0].permute(0, 3, 1, 2) if name == "maxvit" else last[0]
    if features.ndim == 3:
        first = first.flatten(1, 2)
    P = model.num_prefix
    assert torch.allclose(first, features[:, P:] if P else features, atol=1e-6)
    for tokens, embedded, end, stream in zip(last, model.embed(*inputs), model.ends, model.streams, strict=True):
        assert end.stream == stream.name
        assert embedded.shape[1:] == (*(s // t for s, t in zip(stream.size, end.first_stride, strict=True)),
                                      end.first_dim)  # fmt: skip
        assert tokens.shape[1:] == (*(s // t for s, t in zip(stream.size, end.last_stride, strict=True)),
                                    end.last_dim)  # fmt: skip


@pytest.mark.parametrize("loss_on", ["masked", "all"])
@pytest.mark.parametrize("name", ["swin", "hvt_two"])
def test_the_loss_is_the_authors(name, loss_on, monkeypatch):
    task = made(name, task={"loss_on": loss_on})
    batch = batch_for(task.model)
    inputs = dict(zip(batch, task.normalize(batch), strict=True))
    predicted = {n: torch.randn_like(x) for n, x in inputs.items()}
    kept = []

    def reconstruct(given, masks):
        kept.append(masks)
        return predicted

    monkeypatch.setattr(task, "reconstruct", reconstruct)
    result = task(batch)
    wanted = []
    for n, x in inputs.items():
        # As in the authors' code: |x - y| * mask, summed, over the masked pixels and the bands.
        mask = upsample_mask(kept[0][n], task.sizes[n], tuple(x.shape[2:]))[:, None].float()
        if loss_on == "all":
            mask = torch.ones_like(mask)
        wanted.append(((x - predicted[n]).abs() * mask).sum() / mask.sum() / x.shape[1])
    assert result["loss"].item() == pytest.approx(sum(wanted).item() / len(wanted), rel=1e-5)
    if len(wanted) > 1:
        assert result["loss_spectral"].item() == pytest.approx(wanted[1].item(), rel=1e-5)


def test_every_part_that_sees_pixels_learns(name):
    task = made(name)
    task(batch_for(task.model))["loss"].backward()
    # What only serves the classifier: norms and layers of the head, fc_norm after a mean.
    idle = {n.removeprefix("model.") for n, p in task.named_parameters() if p.grad is None}
    assert all(n.startswith(("head", "fc_norm", "head_norm")) for n in idle), idle
    groups = task.parameter_groups(0.05, 1e-3, 0.8)
    chosen = [p for group in groups for p in group["params"]]
    assert len(chosen) == len({id(p) for p in chosen}) == len(list(task.parameters()))


@pytest.mark.parametrize("name", ["hvt_two", "hvt_concat"])
@pytest.mark.parametrize("hidden", ["image", "spectral"])
def test_one_stream_is_reconstructed_from_the_other(name, hidden):
    shown = {"image": "spectral", "spectral": "image"}[hidden]
    task = made(name, ratio={hidden: 1.0, shown: 0.0})
    assert list(task.heads) == list(task.mask_tokens) == [hidden]
    inputs = _inputs(task)
    masks = task.draw_masks(inputs)
    assert list(masks) == [hidden]
    assert masks[hidden].all()
    with torch.no_grad():
        plain = task.reconstruct(inputs, masks)
        assert list(plain) == [hidden]
        other = task.reconstruct({**inputs, hidden: torch.randn_like(inputs[hidden])}, masks)
        assert torch.equal(other[hidden], plain[hidden])
        moved = task.reconstruct({**inputs, shown: inputs[shown] + torch.randn_like(inputs[shown])}, masks)
        assert not torch.allclose(moved[hidden], plain[hidden])


@pytest.mark.fast_cases("image")
@pytest.mark.parametrize("hidden", ["image", "spectral"])
def test_it_learns_what_one_stream_says_of_the_other(hidden):
    """Each image has one level, which both streams show."""
    shown = {"image": "spectral", "spectral": "image"}[hidden]
    task = made("hvt_two", ratio={hidden: 1.0, shown: 0.0})
    level = torch.rand(16, 1, 1, 1, generator=torch.Generator().manual_seed(1))
    batch = {"image": level.expand(-1, 3, 32, 32), "spectral": (1 - level).expand(-1, 4, 32, 32)}
    optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        loss = task(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(("stride", "doublings"), [((16, 16), 0), ((32, 32), 0), ((64, 64), 1), ((128, 128), 2)])
def test_the_head_gives_each_token_its_own_square(stride, doublings):
    head = PixelHead(12, stride, 2)
    assert len(head.doublings) == doublings
    tokens = torch.randn(1, 2, 3, 12)
    size = (2 * stride[0], 3 * stride[1])
    with torch.no_grad():
        plain = head(tokens, size)
        assert plain.shape == (1, 2, *size)
        tokens[:, 1, 2] = torch.randn(12)
        changed = (head(tokens, size) != plain).any(1)[0]
    assert changed[stride[0] :, 2 * stride[1] :].float().mean() > 0.9
    assert changed.sum() == changed[stride[0] :, 2 * stride[1] :].sum()


@pytest.mark.parametrize(
    ("name", "ratio", "settings", "message"),
    [
        ("vit", 0.5, {"token_learner": {"num_tokens": 3}}, "form no grid"),
        ("swin", 0.0, {}, "must leave visible and masked patches"),
        ("swin", 1.0, {}, "must leave visible and masked patches"),
        ("hvt_two", {"image": 0.5}, {}, "a mask ratio for each of the streams image, spectral"),
        ("hvt_two", 1.0, {}, "1 of image, 1 of spectral"),
        ("swin", 0.5, {"task": {"mask_size": 6}}, "multiple of the model's first stride 4 x 4, got 6"),
    ],
)
def test_what_cannot_be_pretrained_is_refused(name, ratio, settings, message):
    with pytest.raises(ConfigError, match=message):
        made(name, ratio=ratio, **settings)
