"""Which precision the hardware is fast in."""

from __future__ import annotations

import platform
from typing import Literal

import torch


def choose_precision(accelerator: str) -> tuple[Literal["32-true", "bf16-mixed"], str]:
    """The precision for "auto", and why.

    Args:
        accelerator: As in the recipe; "auto" takes a GPU where there is one.

    Returns:
        "bf16-mixed" where products of bfloat16 are done by the hardware itself, "32-true" elsewhere; and the reason.
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
    """Features of the CPU by name."""
    if hasattr(torch.cpu, "get_capabilities"):
        return dict(torch.cpu.get_capabilities())
    # torch before 2.13
    if platform.machine() in ("x86_64", "AMD64"):
        return {"avx512_bf16": torch.cpu._is_avx512_bf16_supported(), "amx_bf16": torch.cpu._is_amx_tile_supported()}
    return {}
