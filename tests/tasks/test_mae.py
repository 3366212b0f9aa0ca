"""MAE: the encoder sees only what is visible, the loss is the published one."""

import pytest
import torch

from tests.tasks.models import batch_for, statistics, tiny
from vitrail.errors import ConfigError
from vitrail.tasks.mae import MAETask
from vitrail.tasks.masking import patchify, random_masks, unpatchify, upsample_mask

VITS = ["vit", "vit_pooled"]


def made(name="vit", seed=0, **settings):
    model = tiny(name, seed)
    return MAETask(model, statistics(model), mask_ratio=0.5, decoder_depth=1, **settings).train()


@pytest.mark.parametrize("name", VITS)
@pytest.mark.parametrize("value", [0.0, 7.5, float("inf"), float("nan")])
@pytest.mark.fast_cases("0.0-vit", "nan-vit_pooled")
def test_masked_pixels_do_not_reach_the_encoder(name, value):
    task = made(name)
    x = torch.randn(3, 3, 37, 30)  # no multiple of the patch
    mask = random_masks(3, (5, 4), 0.5)
    plain = task.reconstruct(x, mask)
    hidden = upsample_mask(mask, (8, 8), (37, 30))[:, None].expand_as(x)
    changed = torch.where(hidden, value, x)
    assert torch.equal(task.reconstruct(changed, mask), plain)
    visible = torch.where(~hidden, x + 0.1, x)
    assert not torch.allclose(task.reconstruct(visible, mask), plain)
    # No gradient of a masked pixel either.
    leaf = x.clone().requires_grad_()
    task.reconstruct(leaf, mask).square().sum().backward()
    assert (leaf.grad[hidden] == 0).all()
    assert (leaf.grad[~hidden] != 0).any()


@pytest.mark.parametrize("name", VITS)
def test_the_encoder_runs_on_visible_tokens_alone(name):
    task, seen = made(name), []
    task.model.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    task(batch_for(task.model))
    assert seen == [(3, 8 + task.model.num_prefix, 24)]


@pytest.mark.parametrize("name", VITS)
def test_all_tokens_visible_is_the_model_itself(name):
    model = tiny(name).eval()
    x = torch.randn(2, 3, 32, 32)
    (patches,) = model.embed(x)
    tokens = model.forward_visible(patches, torch.arange(16).expand(2, -1))
    assert torch.allclose(tokens, model.forward_features(x), atol=1e-5)
    # In another order they are the same tokens in that order.
    order = torch.randperm(16).expand(2, -1)
    again = model.forward_visible(patches, order)
    P = model.num_prefix
    assert torch.allclose(again[:, P:], tokens[:, P:][:, order[0]], atol=1e-5)


@pytest.mark.parametrize("loss_on", ["masked", "all"])
@pytest.mark.parametrize("normalize_target", [True, False])
def test_the_loss_is_the_authors(loss_on, normalize_target, monkeypatch):
    task = made(loss_on=loss_on, normalize_target=normalize_target)
    batch = batch_for(task.model)
    prediction = torch.randn(3, 3, 32, 32)
    masks = []

    def reconstruct(x, mask):
        masks.append(mask)
        return prediction

    monkeypatch.setattr(task, "reconstruct", reconstruct)
    loss = task(batch)["loss"]
    x = (batch["image"] - 0.4) / 0.3
    # As in the authors' code: the mean over a patch's pixels, then over the masked patches.
    target, predicted = patchify(x, (8, 8)), patchify(prediction, (8, 8))
    if normalize_target:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6) ** 0.5
    by_patch = (predicted - target).square().mean(-1)
    weight = masks[0].float() if loss_on == "masked" else torch.ones(3, 4, 4)
    assert loss.item() == pytest.approx(((by_patch * weight).sum() / weight.sum()).item(), rel=1e-5)


def test_the_loss_counts_masked_pixels_alone(monkeypatch):
    task = made(normalize_target=False)

    def reconstruct(x, mask):
        return torch.where(upsample_mask(mask, (8, 8), (32, 32))[:, None], x, torch.inf)

    monkeypatch.setattr(task, "reconstruct", reconstruct)
    assert task(batch_for(task.model))["loss"] == 0


def test_the_decoder_puts_tokens_where_they_belong():
    """A decoder that only looks at each token's own place is told which patch it is by what it gets there."""
    task = made()
    decoder = task.decoder
    decoder.blocks = torch.nn.ModuleList()
    keep = torch.tensor([[1, 6, 7]])
    visible = torch.randn(1, 1 + 3, 24)
    first = decoder(visible, keep, (4, 4)).flatten(1, 2)
    visible[:, 2] += 1  # the token of patch 6
    changed = (decoder(visible, keep, (4, 4)).flatten(1, 2) != first).any(-1)[0]
    assert changed.nonzero().flatten().tolist() == [6]


def test_it_learns_and_every_parameter_moves():
    torch.manual_seed(0)
    task = made(normalize_target=False, decoder_dim=32)
    squares = torch.rand(4, 1, 1, 3).repeat_interleave(16, 1).view(4, 4, 4, 3).repeat_interleave(64, -1)
    batch = {"image": unpatchify(squares, (8, 8), (32, 32))}  # plain colours: what is visible tells the rest
    groups = task.parameter_groups(0.05, 3e-3)
    chosen = [p for group in groups for p in group["params"]]
    assert len(chosen) == len({id(p) for p in chosen}) == len(list(task.parameters()))
    optimizer = torch.optim.AdamW(groups, lr=3e-3)
    losses = []
    for _ in range(40):
        loss = task(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.4 * sum(losses[:5])
    idle = [n for n, p in task.named_parameters() if p.grad is None]
    assert not idle


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("swin", {}, "runs on visible patches alone.*whole grids.*use task.name simmim"),
        (
            "vit",
            {"token_learner": {"num_tokens": 3}},
            "TokenLearner needs all patches; leave token_learner out; or use task.name simclr",
        ),
        ("vit", {"img_size": 16, "patch_size": 16}, "leaves none visible"),
    ],
)
def test_what_cannot_be_pretrained_is_refused(name, settings, message):
    model = tiny(name, **settings)
    with pytest.raises(ConfigError, match=message):
        MAETask(model, statistics(model))
