"""Fully sharded data parallelism: each process holds a shard of weights, gradients and optimiser state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from typing_extensions import override

from vitrail.machine import return_large_buffers
from vitrail.tasks.base import Task
from vitrail.train.environment import is_first_process

# Modules that are iterated, not called.
_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's sharding with full checkpoints in one file, as all other strategies write and read them.

    A run can therefore be resumed under another strategy or with another number of processes.

    Args:
        processes: Number of processes.

    Source: Zhao et al. 2023, arXiv:2304.11277; torch.distributed.fsdp.fully_shard.
    """

    def __init__(self, processes: int) -> None:
        super().__init__(data_parallel_size=processes, tensor_parallel_size=1, save_distributed_checkpoint=False)

    @property
    @override
    def lightning_restore_optimizer(self) -> bool:
        return True

    @override
    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return whole_state(self.lightning_module)

    @override
    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        state = optimizer.state_dict()
        moments = {number: _whole(values) for number, values in state["state"].items()}
        return {**state, "state": moments}

    @override
    def load_checkpoint(self, checkpoint_path: _PATH, weights_only: bool | None = None) -> dict[str, Any]:
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)

    @override
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        parameters = dict(self.lightning_module.named_parameters())
        state = {name: _shared(value, parameters.get(name)) for name, value in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(state, strict=strict)

    @override
    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            # As torch does: parameters by their order in the groups, not by their indices.
            numbers = [number for group in state["param_groups"] for number in group["params"]]
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            owners = dict(zip(numbers, parameters, strict=False))  # torch rejects another number of them
            moments = {
                number: {name: _shared(value, owners.get(number)) for name, value in values.items()}
                for number, values in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": moments})


def shard(task: Task, mesh: DeviceMesh) -> None:
    """Shard the parameters of a task over processes that all hold the same values.

    The modules of :func:`units` are gathered only while they run, all others (embeddings, head) while the task runs. On
    GPUs BatchNorm statistics are synchronised.

    Args:
        task: Task, changed in place.
        mesh: One-dimensional mesh of the processes.
    """
    if isinstance(task, FSDPModule):
        return
    if mesh.device_type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(task)  # type: ignore[no-untyped-call]
    for parameter in task.parameters():
        # Shards are contiguous rows; channels_last weights are not contiguous.
        parameter.data = parameter.data.contiguous()
    for module in [*units(task), task]:
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    if mesh.device_type == "cpu":
        # Gathered parameters must return to the operating system after each block.
        return_large_buffers()
        # gloo has a sum but no average.
        for module in task.modules():
            if isinstance(module, FSDPModule):
                module.set_force_sum_reduction_for_comms(True)


def units(task: Task) -> list[nn.Module]:
    """List the modules that are gathered one by one, in the order of the model.

    These are the largest modules within one layer group between the first and the last, modules of the last group of at
    least that size (a fusion, a head), and the layers of the task's own modules (a decoder).

    Args:
        task: Task whose parts are called as modules, not through other methods.
    """
    _, *middle, last = task.model.layer_groups()
    found = [unit for group in middle for unit in _within(task.model, "", set(group))]
    smallest = min((_size(unit) for unit in found), default=0)
    found += [unit for unit in _within(task.model, "", set(last)) if _size(unit) >= smallest]
    for name, child in task.named_children():
        if name != "model":
            found += _layers(child)
    return found


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _layers(module: nn.Module) -> list[nn.Module]:
    if isinstance(module, nn.ModuleList):
        return [layer for layer in module if _size(layer)]
    return [layer for child in module.children() for layer in _layers(child)]


def _within(module: nn.Module, prefix: str, group: set[str]) -> list[nn.Module]:
    """Find the largest called modules whose parameters are all in the group."""
    own = {prefix + name for name, _ in module.named_parameters()}
    if not own & group:
        return []
    called = not isinstance(module, _CONTAINERS) and type(module).forward is not nn.Module.forward
    if own <= group and called:
        return [module]
    return [unit for name, child in module.named_children() for unit in _within(child, f"{prefix}{name}.", group)]


@contextmanager
def gathering(task: Task, method: str) -> Iterator[None]:
    """Gather parameters for calls of a method other than ``forward``, by all processes together.

    Args:
        task: Task; without shards nothing changes.
        method: Name of the method.
    """
    if not isinstance(task, FSDPModule):
        yield
        return
    register_fsdp_forward_method(task, method)
    try:
        yield
    finally:
        delattr(task, method)  # the wrapper, which shadows the class's method


def share_statistics(task: Task) -> None:
    """Broadcast the first process's BatchNorm statistics, as DDP does; all processes call it."""
    for module in task.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)


def whole_state(module: nn.Module) -> dict[str, Any]:
    """Gather the state of a module; all processes call it, and only the first receives sharded tensors.

    Args:
        module: Module, sharded or not; without shards this is its ``state_dict()``.
    """
    state: dict[str, Any] = module.state_dict()
    whole = _whole(state)
    # In place: the dictionary carries the modules' versions as metadata.
    for name in list(state):
        if name in whole:
            state[name] = whole[name]
        else:
            del state[name]
    return state


def _whole(state: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in state.items():
        if isinstance(value, DTensor):
            # One by one, so that at most one full tensor is on a GPU.
            full = value.full_tensor()
            if is_first_process():
                result[name] = full.cpu()
        else:
            result[name] = value
    return result


def _shared(value: Any, like: Tensor | None) -> Any:
    """Distribute a full value like the sharded parameter that it belongs to."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.ndim == 0:
        return value
    # Every process has read the file, so nothing is sent.
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
