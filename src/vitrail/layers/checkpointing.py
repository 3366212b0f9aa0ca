"""Gradient checkpointing: the backward pass runs a block a second time instead of keeping its activations."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitrail.layers.tap import named_taps


def run_block(block: nn.Module, *inputs: object, checkpointing: bool) -> Tensor:
    """Run a block, with gradient checkpointing or without."""
    if checkpointing:
        return run_checkpointed(block, *inputs)
    out: Tensor = block(*inputs)
    return out


def run_checkpointed(block: nn.Module, *inputs: object) -> Tensor:
    """Run a block, keeping of it no more than its inputs for the backward pass.

    A block that is being watched runs plainly: its weights, the largest of its activations, are kept by whoever
    watches, and must be those of the one run whose gradient is asked for.

    Args:
        block: Gives one tensor.
        *inputs: What it takes.
    """
    if torch.compiler.is_compiling():
        out: Tensor = checkpoint(block, *inputs, use_reentrant=False)
    elif any(tap.armed for tap in named_taps(block).values()):
        out = block(*inputs)
    else:
        out = checkpoint(
            block,
            *inputs,
            use_reentrant=False,
            context_fn=lambda: (contextlib.nullcontext(), _second_run(block)),
        )
    return out


@contextlib.contextmanager
def _second_run(block: nn.Module) -> Iterator[None]:
    """Repeat what the first run computed, with nothing that it did beside that.

    Whoever has begun to watch since then gets no report, and the BatchNorms do not count the batch into their
    running statistics once more.
    """
    taps = list(named_taps(block).values())
    consumers = [tap.consumer for tap in taps]
    # Those that several GPUs share are of another class than BatchNorm2d.
    norms = [module for module in block.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for tap in taps:
        tap.consumer = None
    for norm in norms:
        # Without a momentum of 0 the counter would weigh the batch; a copy of it takes the second count.
        counter = norm.num_batches_tracked
        norm.momentum, norm.num_batches_tracked = 0.0, None if counter is None else counter.clone()
    try:
        yield
    finally:
        for tap, consumer in zip(taps, consumers, strict=True):
            tap.consumer = consumer
        for norm, (momentum, counter) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, counter
