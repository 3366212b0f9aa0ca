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
from vitrail.models.modality import IMAGE, VIDEO
from vitrail.runs.folder import RunFolder
from vitrail.runs.trained import ModelCard, TrainedModel, card_from_values, load_trained


class LoadedTeacher:
    """Computes the logits of a trained model, in the order of a student's classes.

    Images and frames are resized to the teacher's size, and normalised as it was trained. It is not a module: its
    weights take no part in the student's checkpoints, averages and optimiser.

    Args:
        path: A run folder, or the folder of an export.
        student: Card of the student.

    Raises:
        ConfigError: Other classes, bands, frames or points than the student's, or a multi-label teacher.
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
        fitted = {
            name: _resized(x, self.card.streams[name].img_size)
            for name, x in streams.items()
            if name in self.card.streams
        }
        if isinstance(self.model, TrainedModel):
            self.model = self.model.to(device)
            logits = self.model.classify(fitted)[0]
        else:
            inputs = {entry["stream"]: entry for entry in self.model.record["inputs"] if entry["prepared"]}
            batch = {name: _as_stored(fitted[name].float().cpu(), entry) for name, entry in inputs.items()}
            logits = torch.from_numpy(self.model.run(to_inputs(self.model.record, batch))["logits"])
        # Copied, since tensors of inference mode take no part in a graph.
        return logits.to(device)[:, self.order].clone()

    def __deepcopy__(self, memo: dict[int, Any]) -> LoadedTeacher:
        # Copies of a task (averages of the weights, trial steps) share the teacher.
        return self


def _resized(x: Tensor, size: tuple[Any, ...]) -> Tensor:
    """Resize images ``(B, C, H, W)``, or the frames of clips ``(B, C, T, H, W)``; clouds remain.

    Args:
        x: A stream.
        size: Size of the teacher's, as on its card.
    """
    if x.ndim < 4 or x.shape[2:] == size:
        return x
    frames = x.transpose(1, 2).flatten(0, 1) if x.ndim == 5 else x
    frames = F.interpolate(frames, size=size[-2:], mode="bilinear", antialias=True)
    return frames.view(x.shape[0], x.shape[2], *frames.shape[1:]).transpose(1, 2) if x.ndim == 5 else frames


def _as_stored(x: Tensor, entry: Mapping[str, Any]) -> Tensor:
    """Bring augmented values into the range of an export's input, and to the levels of 8 bits where it takes these."""
    if not entry["low"]:
        return x
    x = x.clamp(0, 1)
    return (x * 255).round() / 255 if entry["dtype"] == "uint8" else x


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
    if student.modality is not IMAGE and card.img_size[0] != student.img_size[0]:
        # Other frames or points would be other moments, or another cloud, than the student's.
        name = "num_frames" if student.modality is VIDEO else "num_points"
        raise ConfigError(
            f"task.teacher {path} takes {student.modality.noun} of {card.img_size[0]} {name[4:]}, and the student of "
            f"{student.img_size[0]}; set --model.{name} {card.img_size[0]}"
        )


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
