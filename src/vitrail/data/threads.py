"""Files read side by side: decoders and the system do most of the work, beside which Python may run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

# Most items of a task, and least tasks of a thread: small files take less time than it takes to hand them over.
_TOGETHER, _TASKS = 32, 16


def map_in_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Apply a function that reads files to each item, in as many threads as PyTorch has: one a core by default.

    Python's own lock lets one thread compute at a time: of more threads than cores, most wait for it.

    Args:
        function: Called by several threads at once.
        items: Its arguments.

    Yields:
        The results, in order; an error of the function is raised at the place of its result or some places before.
    """
    threads = min(torch.get_num_threads(), len(items))
    if threads <= 1:
        yield from map(function, items)
        return
    size = max(1, min(_TOGETHER, len(items) // (_TASKS * threads)))
    parts = [items[i : i + size] for i in range(0, len(items), size)]
    with ThreadPoolExecutor(threads) as pool:
        for results in pool.map(lambda part: list(map(function, part)), parts):
            yield from results
