"""Precision by measured speed."""

from __future__ import annotations

import copy
import platform
import statistics
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from vitrail.config.schema import TrainerConfig
from vitrail.tasks.base import Task
from vitrail.train.auto.trial_steps import TrialSteps

Precision = Literal["32-true", "bf16-mixed"]
# Number of timed steps of each precision, and the seconds that end the timing early.
_STEPS, _ENOUGH = 7, 10.0
# Smallest speed-up that justifies the 8 bits of precision of bfloat16.
_GAIN = 1.1
# Where two steps in bfloat16 take this many times as long, more of them cannot change the choice.
_HOPELESS = 4.0


def resolve_precision(task: Task, config: TrainerConfig, batch: Mapping[str, Tensor]) -> tuple[Precision, str]:
    """Time training steps in both precisions, alternately, and choose bfloat16 where it gains for this model.

    Tiny models lose: casting costs more than the faster products save.

    Args:
        task: The task that will be trained; it is not changed.
        config: The trainer's settings.
        batch: A batch of training images.

    Returns:
        "bf16-mixed" where the hardware multiplies bfloat16 and a step takes at most 1 / 1.1 of its time in float32,
        "32-true" elsewhere; and the reason.
    """
    precision, why = hardware_precision(config.accelerator)
    if precision == "32-true":
        return precision, why
    device = next(task.parameters()).device
    single: list[float] = []
    half: list[float] = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        steps = TrialSteps(copy.deepcopy(task).train(), config, device)
        _, begun = (steps.seconds(batch, bfloat16) for bfloat16 in (False, True))
        while len(single) < _STEPS and (len(single) < 2 or sum(single) + sum(half) < _ENOUGH):
            single.append(steps.seconds(batch, False))
            half.append(steps.seconds(batch, True))
            if min(begun, half[0]) > _HOPELESS * single[0]:
                break
    slow, fast = statistics.median(single), statistics.median(half)
    where = f"on this {'GPU' if device.type == 'cuda' else 'processor'} ({_ms(fast)} against {_ms(slow)} a step)"
    if slow >= _GAIN * fast:
        return precision, f"computes in bfloat16, which is faster than float32 {where}"
    if slow >= fast:
        return "32-true", f"computes in float32: bfloat16 gains less than {_GAIN - 1:.0%} {where}"
    return "32-true", f"computes in float32: bfloat16 is slower {where}"


def _ms(seconds: float) -> str:
    """Format seconds in milliseconds, to three digits."""
    return f"{float(f'{1000 * seconds:.3g}'):,g} ms"


def hardware_precision(accelerator: str) -> tuple[Precision, str]:
    """Return the fastest precision of the hardware for large models, and the reason.

    Args:
        accelerator: As in the recipe; "auto" uses a GPU if there is one.

    Returns:
        "bf16-mixed" where the hardware multiplies bfloat16 itself, "32-true" elsewhere; and the reason.
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16-mixed", f"{name} multiplies bfloat16 itself"
        return "32-true", f"{name} does not multiply bfloat16 itself"
    if accelerator in ("auto", "cpu"):
        if accelerator == "cpu" or not torch.backends.mps.is_available():
            native = [name for name in ("amx_bf16", "avx512_bf16", "bf16") if _capabilities().get(name)]
            if native:
                return "bf16-mixed", f"this CPU multiplies bfloat16 itself ({native[0]})"
            return "32-true", "this CPU multiplies bfloat16 in software, which is slower than float32"
    return "32-true", "nothing is known of how this device multiplies bfloat16"


def _capabilities() -> dict[str, bool]:
    """Return the features of the CPU by name."""
    if hasattr(torch.cpu, "get_capabilities"):
        return dict(torch.cpu.get_capabilities())
    # torch before 2.13
    if platform.machine() in ("x86_64", "AMD64"):
        return {"avx512_bf16": torch.cpu._is_avx512_bf16_supported(), "amx_bf16": torch.cpu._is_amx_tile_supported()}
    return {}
