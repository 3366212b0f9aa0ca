"""The Lightning trainer: its settings, its run, and readable errors of both."""

from __future__ import annotations

import signal
from datetime import timedelta
from pathlib import Path

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import Strategy

from vitrail.config.schema import Recipe, TrainerConfig
from vitrail.data.dataset import ImageData
from vitrail.data.sampling import EpochShuffle
from vitrail.data.workers import translate_worker_error
from vitrail.errors import ConfigError, DataError
from vitrail.models.modality import MODALITIES
from vitrail.runs.folder import RunFolder
from vitrail.tasks.base import Task
from vitrail.train.callbacks.checkpoints import WholeCheckpoints, bad_checkpoint
from vitrail.train.callbacks.explanations import DrawExplanations
from vitrail.train.callbacks.metrics import EpochMetrics
from vitrail.train.callbacks.progress import Progress
from vitrail.train.checks import explain_batch_norm
from vitrail.train.module import TaskModule
from vitrail.train.sharding import ShardedStrategy


def make_trainer(recipe: Recipe, run: RunFolder, data: ImageData, task: Task, callbacks: list[Callback]) -> Trainer:
    """Make the Lightning trainer of a run.

    Args:
        recipe: The recipe, with every "auto" resolved.
        run: The run folder.
        data: The images.
        task: The task.
        callbacks: Callbacks of the kind of training, :class:`EpochMetrics` among them.

    Raises:
        ConfigError: The machine lacks the accelerator, the number of devices or the precision.
    """
    config = recipe.trainer
    assert config.precision != "auto", "it has been resolved"
    callbacks = [*callbacks, *_common_callbacks(recipe, run, data, task, callbacks)]
    logger = TensorBoardLogger(str(run.path), name="", version="tensorboard") if recipe.run.tensorboard else False
    try:
        trainer = Trainer(
            max_epochs=config.max_epochs,
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.num_nodes,
            strategy=_strategy(config, task),
            use_distributed_sampler=False,
            sync_batchnorm=config.devices * config.num_nodes > 1 and torch.cuda.is_available(),
            precision=config.precision,
            deterministic=config.deterministic,
            gradient_clip_val=config.gradient_clip or None,
            accumulate_grad_batches=config.accumulate,
            callbacks=callbacks,
            logger=logger,
            plugins=[WholeCheckpoints()],
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            # Parameters that a sharded model gathers under inference_mode cannot be trained afterwards.
            inference_mode=config.strategy != "fsdp",
            log_every_n_steps=10,
            default_root_dir=str(run.path),
        )
    except (MisconfigurationException, ImportError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"trainer.accelerator {config.accelerator!r}, devices {config.devices!r}, precision {config.precision!r} "
            f"cannot be used here: {reason}"
        ) from error
    if trainer.precision != config.precision:
        raise ConfigError(
            f"trainer.precision {config.precision!r} cannot be used here, only {trainer.precision!r} in its place; "
            "ask for that"
        )
    return trainer


def run_trainer(trainer: Trainer, module: TaskModule, data: ImageData, run: RunFolder, checkpoint: Path | None) -> None:
    """Train and validate until the last epoch.

    Args:
        trainer: The trainer.
        module: The task as Lightning runs it; its seed shuffles the training images.
        data: The images.
        run: The run folder.
        checkpoint: Checkpoint to resume from.

    Raises:
        ConfigError: A BatchNorm has one value a channel.
        DataError: An image cannot be read.
        RunError: The checkpoint cannot be resumed, or the loss is not finite.
        KeyboardInterrupt: Training was interrupted.
    """
    share = {"rank": trainer.global_rank, "world": trainer.world_size}
    training = data.loader("train", shuffle_seed=module.seed, **share)
    validation = data.loader("val", **share) if "val" in data.splits else None
    assert isinstance(training.sampler, EpochShuffle)
    module.order = training.sampler
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, training, validation, ckpt_path=str(checkpoint) if checkpoint else None)
    except SystemExit:
        # Lightning's answer to Ctrl-C, from which on it ignores the signal; the first process reports for all.
        if not (trainer.interrupted and trainer.is_global_zero):
            raise
        signal.signal(signal.SIGINT, handler)
    except DataError as error:
        if not run.last_checkpoint.is_file():
            raise
        raise DataError(f"{error}; once that is mended, --resume goes on from the last epoch") from error
    except (RuntimeError, KeyError, ValueError) as error:
        found = translate_worker_error(error) or explain_batch_norm(error)
        if found is not None:
            raise found from error
        # A complete checkpoint of another model or program fails only while its parts are restored.
        if checkpoint is None or module.started or isinstance(error, ValueError):
            raise
        raise bad_checkpoint(checkpoint, error) from error
    if trainer.interrupted:
        raise KeyboardInterrupt


def _common_callbacks(
    recipe: Recipe, run: RunFolder, data: ImageData, task: Task, callbacks: list[Callback]
) -> list[Callback]:
    """Build the callbacks that supervised training and pre-training share, called after their own."""
    common: list[Callback] = []
    if recipe.run.explain_images:
        common.append(DrawExplanations(run, data, recipe, task))
    if recipe.trainer.max_minutes:
        common.append(Timer(timedelta(minutes=recipe.trainer.max_minutes), verbose=False))
    (metrics,) = (callback for callback in callbacks if isinstance(callback, EpochMetrics))
    # After the metrics, whose rows it shows.
    return [*common, Progress(metrics, recipe.trainer.monitor, MODALITIES[data.source.first].noun)]


def _strategy(config: TrainerConfig, task: Task) -> str | Strategy:
    processes = config.devices * config.num_nodes
    if processes == 1:
        return "auto"
    if config.strategy == "fsdp":
        return ShardedStrategy(processes)
    # Frozen parameters get no gradient either.
    return "ddp_find_unused_parameters_true" if task.unused or config.freeze_epochs > 0 else "ddp"
