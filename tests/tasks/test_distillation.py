"""Distillation losses against their formulas, and the parts of both classifiers."""

import math

import pytest
import torch
import torch.nn.functional as F

import vitrail
from vitrail.data.normalization import NormalizeStreams
from vitrail.tasks.distillation import DistillationTask, distillation_loss
from vitrail.tasks.losses import ClassificationLoss


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_soft_loss_is_the_divergence(temperature):
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 5), 2 * torch.randn(6, 5)
    expected = 0.0
    for s, t in zip(student.double(), teacher.double(), strict=True):
        p, q = ((x / temperature).exp() / (x / temperature).exp().sum() for x in (t, s))
        expected += sum(float(a) * math.log(float(a) / float(b)) for a, b in zip(p, q, strict=True))
    found = distillation_loss(student, teacher, "soft", temperature)
    assert float(found) == pytest.approx(temperature**2 * expected / 6, rel=1e-5)
    assert float(distillation_loss(teacher, teacher, "soft", temperature)) == pytest.approx(0, abs=1e-6)


def test_the_gradient_of_a_high_temperature_is_that_of_logits():
    """Hinton et al. 2015, equation 4: in the limit the gradient is the difference of centred logits over K."""
    student, teacher = torch.randn(1, 5, dtype=torch.float64, requires_grad=True), torch.randn(1, 5).double()
    (gradient,) = torch.autograd.grad(distillation_loss(student, teacher, "soft", 300.0), student)
    centred = [x - x.mean() for x in (student, teacher)]
    assert torch.allclose(gradient, (centred[0] - centred[1]) / 5, atol=2e-3)


def test_hard_loss_is_cross_entropy_with_the_teachers_class():
    student, teacher = torch.randn(4, 3), torch.randn(4, 3)
    expected = -student.log_softmax(1)[range(4), teacher.argmax(1)].mean()
    assert torch.allclose(distillation_loss(student, teacher, "hard"), expected)


def _task(dist_token, **settings):
    torch.manual_seed(1)
    model = vitrail.create_model("vit", img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2, num_classes=3,
                                 in_chans=1, dist_token=dist_token)  # fmt: skip
    teacher = torch.tensor([[2.0, 0, 0], [0, 1, 0]])
    normalize = NormalizeStreams({"image": ([0.5], [0.5])})
    return DistillationTask(
        model, normalize, lambda streams: teacher, criterion=ClassificationLoss(), **settings
    ), teacher


@pytest.mark.parametrize("dist_token", [True, False])
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_each_classifier_has_its_part(dist_token, kind):
    task, teacher = _task(dist_token, distillation=kind, alpha=0.3, temperature=2.0)
    batch = {"image": torch.rand(2, 1, 8, 8), "target": torch.tensor([0, 2])}
    prepared = task.train().prepare(batch)
    output = task(prepared)
    first, second = output if dist_token else (output, output)
    expected = 0.7 * F.cross_entropy(first, batch["target"]) + 0.3 * distillation_loss(second, teacher, kind, 2.0)
    assert torch.allclose(task.loss(output, prepared), expected)
    assert torch.allclose(task.logits(output), (first + second) / 2)
    task.eval()
    logits = task(task.prepare(batch))
    assert logits.shape == (2, 3)
    assert torch.allclose(task.loss(logits, batch), F.cross_entropy(logits, batch["target"]))


def test_the_teacher_is_no_part_of_the_student():
    task, _ = _task(True)
    assert not [key for key in task.state_dict() if "teacher" in key]
    names = {name for name, _ in task.model.named_parameters()}
    assert {"dist_token", "head_dist.weight"} <= names
