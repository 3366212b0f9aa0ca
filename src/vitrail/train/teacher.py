"""The teacher of distillation: any trained run, or an export."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.engines.inputs import to_inputs
from vitrail.engines.load import ENGINES, Export, digest, find_export, load_export
from vitrail.errors import ConfigError, few
from vitrail.runs.folder import RunFolder
from vitrail.runs.trained import ModelCard, TrainedModel, card_from_values, load_trained


class LoadedTeacher:
    """Computes the logits of a trained model, in the order of a student's classes.

    Images are resized to the teacher's size, and normalised as it was trained. It is no module: its weights take no
    part in the student's checkpoints, averages and optimiser.

    Args:
        path: A run folder, or the folder of an export.
        student: Card of the student.

    Raises:
        ConfigError: Other classes or bands than the student's, or a multi-label teacher.
        RunError: A file is missing or damaged.
    """

    def __init__(self, path: str | Path, student: ModelCard) -> None:
        self.path = str(path)
        self.model: TrainedModel | Export
        if find_export(path) is None:
            self.model = load_trained(path)
            self.card = self.model.card
        else:
            self.model = load_export(path)
            self.card = card_from_values(self.model.record["model"])
        _check(self.path, self.card, student)
        self.order = [self.card.classes.index(name) for name in student.classes]

    def __call__(self, streams: Mapping[str, Tensor]) -> Tensor:
        """Compute logits.

        Args:
            streams: Images in 0..1, shape ``(B, C, H, W)`` each.

        Returns:
            Shape ``(B, K)``, on the device of the images.
        """
        device = next(iter(streams.values())).device
        resized = {
            name: x if x.shape[2:] == size else F.interpolate(x, size=size, mode="bilinear", antialias=True)
            for name, x in streams.items()
            for size in (self.card.streams[name].img_size,)
        }
        if isinstance(self.model, TrainedModel):
            self.model = self.model.to(device)
            logits = self.model.classify(resized)[0]
        else:
            batch = {name: x.clamp(0, 1).float().cpu() for name, x in resized.items()}
            logits = torch.from_numpy(self.model.run(to_inputs(self.model.record, batch))["logits"])
        # Copied, since tensors of inference mode take no part in a graph.
        return logits.to(device)[:, self.order].clone()

    def __deepcopy__(self, memo: dict[int, Any]) -> LoadedTeacher:
        # Copies of a task (averages of the weights, trial steps) share the teacher.
        return self


def _check(path: str, card: ModelCard, student: ModelCard) -> None:
    if card.multi_label or student.multi_label:
        raise ConfigError(f"task.name distill needs one label an image; {path} or the data is multi-label")
    if set(card.classes) != set(student.classes):
        lacks = [name for name in student.classes if name not in card.classes]
        beside = [name for name in card.classes if name not in student.classes]
        parts = [f"it lacks {few(lacks, 3)}"] * bool(lacks) + [f"the data lacks {few(beside, 3)}"] * bool(beside)
        raise ConfigError(f"task.teacher {path} has other classes than the data: {'; '.join(parts)}")
    inputs = [{name: (s.bands, s.value_type) for name, s in one.streams.items()} for one in (card, student)]
    if inputs[0] != inputs[1]:
        described = [
            "; ".join(f"{name}: {', '.join(bands)} ({kind})" for name, (bands, kind) in one.items()) for one in inputs
        ]
        raise ConfigError(f"task.teacher {path} takes {described[0]}, and the data has {described[1]}")


def check_teacher(path: str | Path) -> None:
    """Check that a teacher exists.

    Raises:
        RunError: Neither a run folder nor an export.
    """
    if find_export(path) is None:
        RunFolder.open(path)


def teacher_hash(path: str | Path) -> str | None:
    """Hash the weights of a teacher by their content; None for a run without weights."""
    folder = find_export(path)
    if folder is None:
        return RunFolder.open(path).weights_hash()
    return next(digest(folder / file)[:16] for file in ENGINES.values() if (folder / file).is_file())
