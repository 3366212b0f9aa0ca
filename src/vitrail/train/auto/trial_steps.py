"""Training steps that are only timed: they move no weight."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from torch import Tensor

from vitrail.config.schema import TrainerConfig
from vitrail.tasks.base import Task


class TrialSteps:
    """Take and time whole training steps: augmentation, forward and backward pass, optimiser.

    Args:
        task: A copy of the task that will be trained; its learning rate is 0.
        config: Weight decay of the parameter groups.
        device: The device of the task.
    """

    def __init__(self, task: Task, config: TrainerConfig, device: torch.device) -> None:
        self.task, self.device = task, device
        # A step with rate 0 moves nothing and costs the same.
        self.optimizer = torch.optim.AdamW(task.parameter_groups(config.weight_decay, 0.0), lr=0.0)

    def seconds(self, batch: Mapping[str, Tensor], bfloat16: bool) -> float:
        """Time one step.

        Args:
            batch: Stream -> shape ``(B, C, H, W)``, and the targets.
            bfloat16: Whether the model computes under autocast to bfloat16.

        Returns:
            The time in seconds.
        """
        start = time.perf_counter()
        prepared = self.task.prepare({name: value.to(self.device) for name, value in batch.items()})
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16):
            loss = self.task.loss(self.task(prepared), prepared)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - start
