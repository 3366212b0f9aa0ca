"""NT-Xent against loops and closed forms; the gradient through several processes."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from tests.tasks.models import SETTINGS, batch_for, statistics, tiny
from vitrail.data.augment.contrastive import build_views
from vitrail.tasks.simclr import SimCLRTask, nt_xent


def loops(first, second, temperature):
    """Equation 1 of arXiv:2002.05709, a term at a time."""
    z = [v / v.norm() for pair in zip(first, second, strict=True) for v in pair]  # 2k and 2k + 1 belong together
    losses = []
    for i in range(len(z)):
        j = i + 1 if i % 2 == 0 else i - 1
        others = sum(math.exp(float(z[i] @ z[k]) / temperature) for k in range(len(z)) if k != i)
        losses.append(-math.log(math.exp(float(z[i] @ z[j]) / temperature) / others))
    return sum(losses) / len(losses)


@pytest.mark.parametrize(("number", "width", "temperature"), [(1, 3, 0.5), (2, 4, 0.1), (5, 3, 0.2), (7, 16, 1.0)])
def test_nt_xent_is_the_published_formula(number, width, temperature):
    first, second = torch.randn(2, number, width, dtype=torch.float64)
    loss, accuracy = nt_xent(first, second, temperature)
    assert loss.item() == pytest.approx(loops(first, second, temperature), abs=1e-5)
    assert 0 <= accuracy <= 1


@pytest.mark.parametrize(("number", "t"), [(2, 0.5), (4, 0.1), (6, 1.0)])
def test_nt_xent_of_closed_cases(number, t):
    same = torch.ones(number, 8)
    # All alike: each of the 2 N - 1 others is as likely.
    assert nt_xent(same, same, t)[0].item() == pytest.approx(math.log(2 * number - 1), abs=1e-5)
    # Images orthogonal, views equal: e^(1/t) against 2 N - 2 ones.
    axes = torch.eye(8)[:number] * 3.0
    loss, accuracy = nt_xent(axes, axes, t)
    assert loss.item() == pytest.approx(math.log(1 + (2 * number - 2) * math.exp(-1 / t)), abs=1e-5)
    assert accuracy == 1
    # Views opposite, images orthogonal.
    loss, _ = nt_xent(axes, -axes, t)
    assert loss.item() == pytest.approx(math.log(1 + (2 * number - 2) * math.exp(1 / t)), abs=1e-5)


def _layer_and_vectors():
    layer = nn.Linear(5, 4, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.arange(20).view(4, 5) / 7 - 1)
    return layer, torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def _process(rank, world, place, answers):
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=world)
    layer, vectors = _layer_and_vectors()
    share = 6 // world
    own = vectors[:, rank * share : (rank + 1) * share]
    shared = nn.parallel.DistributedDataParallel(layer)  # whose gradients are averaged as long as it exists
    first, second = shared(own.flatten(0, 1)).chunk(2)
    loss, accuracy = nt_xent(first, second, 0.3)
    loss.backward()
    both = torch.stack([loss.detach(), accuracy.to(loss)])
    dist.all_reduce(both)
    if rank == 0:
        answers.put(((both / world).tolist(), layer.weight.grad.tolist()))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_have_the_loss_and_gradient_of_one(tmp_path, world):
    answers = mp.get_context("spawn").SimpleQueue()
    mp.spawn(_process, args=(world, str(tmp_path / "meet"), answers), nprocs=world)
    values, gradient = answers.get()
    layer, vectors = _layer_and_vectors()
    first, second = layer(vectors.flatten(0, 1)).chunk(2)
    loss, accuracy = nt_xent(first, second, 0.3)
    loss.backward()
    assert values == pytest.approx([loss.item(), accuracy.item()], abs=1e-6)
    assert torch.allclose(torch.tensor(gradient, dtype=torch.float64), layer.weight.grad, atol=1e-6)


@pytest.mark.fast_cases("hvt", "vit", "vit_fuser", "vit_pooled")
@pytest.mark.parametrize("name", SETTINGS)
def test_every_family_learns_from_views(name):
    model = tiny(name)
    image = model.streams[0]
    task = SimCLRTask(model, statistics(model), build_views(image.size, image.chans), projection_dim=6).train()
    batch = batch_for(model, 4)
    result = task(batch)
    result["loss"].backward()
    assert 0 < result["loss"] < 20
    for key, parameter in task.named_parameters():
        assert parameter.grad is not None, key
    # Nothing that the optimiser should move is left out, nothing is in two groups.
    groups = task.parameter_groups(0.05, 1e-3)
    chosen = [id(p) for group in groups for p in group["params"]]
    assert len(chosen) == len(set(chosen)) == len(list(task.parameters()))
    assert all(p.ndim > 1 for group in groups if group["weight_decay"] for p in group["params"])


def test_views_differ_and_move_streams_together():
    views = build_views((24, 24), 3)
    image = torch.rand(8, 3, 24, 24)
    streams = {"image": image, "spectral": image.mean(1, keepdim=True).expand(-1, 2, -1, -1).clone()}
    first, second = views(streams), views(streams)
    assert not torch.allclose(first["image"], second["image"], atol=0.05)
    for view in (first, second):
        assert {k: v.shape for k, v in view.items()} == {k: v.shape for k, v in streams.items()}
        assert torch.allclose(view["spectral"][:, 0], view["spectral"][:, 1], atol=1e-6)
    # Without changes of colour and blur, what was equal stays equal: the geometry is the same.
    still = build_views((24, 24), 3, strength=0.0)
    still.color = nn.Identity()
    moved = still(streams)
    assert torch.allclose(moved["image"].mean(1), moved["spectral"][:, 0], atol=1e-5)


@pytest.mark.parametrize("bands", [1, 3, 5])
def test_views_repeat_with_the_seed_and_stay_in_range(bands):
    views, image = build_views((16, 20), bands), torch.rand(6, bands, 16, 20)
    results = []
    for _ in range(2):
        torch.manual_seed(5)
        results.append(views({"image": image})["image"])
    assert torch.equal(*results)
    assert results[0].shape == image.shape
    assert results[0].min() >= -1e-5
    assert results[0].max() <= 1 + 1e-5


def test_views_are_drawn_in_full_precision():
    views, x = build_views((16, 16), 3), {"image": torch.rand(4, 3, 16, 16)}
    torch.manual_seed(2)
    plain = views(x)["image"]
    torch.manual_seed(2)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = views(x)["image"]
    assert torch.equal(plain, mixed)
