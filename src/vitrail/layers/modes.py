"""What torch does with the code that it runs, where a layer must know."""

from __future__ import annotations

import torch


def in_transform() -> bool:
    """Whether derivatives or batches are being carried along by torch.func or by forward-mode differentiation.

    Tensors then look plain and stand for others: no value may be kept beside them or read off them, results can
    not be written into given memory, vmap knows one layout of memory, and fused kernels lack rules.
    """
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0
