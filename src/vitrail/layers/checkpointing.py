"""Gradient checkpointing: the backward pass recomputes a block instead of storing its activations."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vitrail.layers.tap import named_taps


def run_block(block: nn.Module, *inputs: object, checkpointing: bool) -> Any:
    """Run a block, with gradient checkpointing or without."""
    if checkpointing:
        return run_checkpointed(block, *inputs)
    return block(*inputs)


def run_checkpointed(block: nn.Module, *inputs: object) -> Any:
    """Run a block and store only its inputs for the backward pass.

    A block with an armed tap runs plainly: the consumer holds its weights, the largest of its activations, and they
    must be those of the run whose gradient is computed.

    Args:
        block: Returns tensors.
        *inputs: Its arguments.
    """
    if torch.compiler.is_compiling():
        out = checkpoint(block, *inputs, use_reentrant=False)
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
    """Recompute the first run without its side effects.

    Taps armed since then report nothing, and the BatchNorms do not update their running statistics once more.
    """
    taps = list(named_taps(block).values())
    consumers = [tap.consumer for tap in taps]
    # Those synchronised over several GPUs are of another class than BatchNorm2d.
    norms = [module for module in block.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    settings = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
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
        for norm, (momentum, counter) in zip(norms, settings, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, counter
