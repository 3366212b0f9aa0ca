"""Distillation: a classifier that also learns from the predictions of a teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.data.augment import Mixing
from vitrail.data.normalization import NormalizeStreams
from vitrail.models.base import VisionModel
from vitrail.tasks.classification import ClassificationTask

# Streams in 0..1 -> logits of the teacher, shape (B, K).
Teacher = Callable[[Mapping[str, Tensor]], Tensor]
Distillation = Literal["hard", "soft"]
# Key of the teacher's logits in a batch.
TEACHER = "teacher"


class DistillationTask(ClassificationTask):
    """Supervised classification with a teacher, which sees the augmented and mixed images of the student.

    The loss is ``(1 - alpha) L + alpha D``: ``L`` is the criterion with the labels. ``D`` is, for "hard", the
    cross-entropy with the teacher's class; for "soft", ``T^2 KL(softmax(teacher / T) || softmax(student / T))``. A
    model with a distillation token computes ``L`` from its class token and ``D`` from its distillation token.

    Args:
        model: The student.
        normalize: Normalises streams in 0..1 to the student's inputs.
        teacher: Computes the teacher's logits.
        distillation: "hard" or "soft".
        alpha: Weight of the teacher, 0 to 1.
        temperature: T of the soft distillation, above 0.
        augment: As for :class:`~vitrail.tasks.classification.ClassificationTask`.
        criterion: The same.
        mix: The same.

    Source: soft: Hinton et al. 2015, arXiv:1503.02531, section 2; hard, and the token: Touvron et al. 2021,
    arXiv:2012.12877, section 4; the same view for both: Beyer et al. 2022, arXiv:2106.05237, section 3.
    """

    def __init__(
        self,
        model: VisionModel,
        normalize: NormalizeStreams,
        teacher: Teacher,
        distillation: Distillation = "soft",
        alpha: float = 0.5,
        temperature: float = 3.0,
        augment: nn.Module | None = None,
        criterion: nn.Module | None = None,
        mix: Mixing | None = None,
    ) -> None:
        super().__init__(model, normalize, augment, criterion, mix)
        self.teacher = teacher
        self.distillation, self.alpha, self.temperature = distillation, alpha, temperature
        model.set_distilled_training()

    def prepare(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Prepare a batch, and in training add the teacher's logits."""
        changed = super().prepare(batch)
        if self.training:
            changed[TEACHER] = self.teacher(self.streams(changed))
        return changed

    def logits(self, output: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        """Compute the logits of an output: of two classifiers the mean."""
        return (output[0] + output[1]) / 2 if isinstance(output, tuple) else output

    def loss(self, output: Tensor | tuple[Tensor, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        """Compute the loss; in evaluation, without a teacher, that of the labels alone."""
        of_labels, of_teacher = output if isinstance(output, tuple) else (output, output)
        if TEACHER not in batch:
            return super().loss(self.logits(output), batch)
        labels = super().loss(of_labels, batch)
        distilled = distillation_loss(of_teacher, batch[TEACHER], self.distillation, self.temperature)
        return (1 - self.alpha) * labels + self.alpha * distilled


def distillation_loss(student: Tensor, teacher: Tensor, kind: Distillation, temperature: float = 3.0) -> Tensor:
    """Compute the loss of a student's logits with a teacher's, averaged over images.

    Args:
        student: Shape ``(B, K)``.
        teacher: Shape ``(B, K)``.
        kind: "hard" or "soft"; see :class:`DistillationTask`.
        temperature: T of the soft loss.
    """
    student, teacher = student.float(), teacher.float()
    if kind == "hard":
        return F.cross_entropy(student, teacher.argmax(dim=1))
    log = (student / temperature).log_softmax(dim=1)
    wanted = (teacher / temperature).log_softmax(dim=1)
    return F.kl_div(log, wanted, reduction="batchmean", log_target=True) * temperature**2
