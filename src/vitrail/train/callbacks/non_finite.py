"""The stop at a training loss that is not finite."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from vitrail.errors import RunError
from vitrail.runs.folder import RunFolder
from vitrail.train.module import TaskModule
from vitrail.weights.write import write_tensors

REMEDY = "lower trainer.learning_rate, lengthen trainer.warmup_epochs, or clip with trainer.gradient_clip"


class StopOnNonFinite(Callback):
    """Stop at the first step whose loss is not finite, and write its batch to the run folder.

    Args:
        run: The run folder.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if bool(loss.isfinite()):
            return
        assert isinstance(pl_module, TaskModule)
        assert pl_module.batch is not None, "a loss comes from a batch"
        write_tensors(self.run.diverged_batch, pl_module.batch)
        raise RunError(
            f"the training loss became {loss.item()} in epoch {trainer.current_epoch + 1}, "
            f"step {trainer.global_step}; "
            f"{REMEDY}; its batch is in {self.run.diverged_batch}"
        )
