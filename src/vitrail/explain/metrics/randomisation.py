"""Model randomisation check: similarity of maps when weights are randomised.

A map that stays the same with random weights explains the image, not the model.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from vitrail.errors import ConfigError
from vitrail.explain.capture.forwarding import check_count
from vitrail.explain.capture.prepare import Explainable, Images, Target, prepared
from vitrail.explain.interface import explain
from vitrail.explain.methods.maps import Explanation
from vitrail.explain.methods.registry import get_method
from vitrail.models.base import VisionModel

MODES = ("cascading", "independent")
# Window of the structural similarity, and its minimum.
_WINDOW, _SMALLEST_WINDOW = 11, 3


@dataclass(frozen=True)
class Randomisation:
    """Similarity of maps to the original as parts of the model are randomised.

    Attributes:
        parts: Names of the randomised parts, from the head down.
        rank: Spearman correlation with the original tokens, shape ``(L, B)``; 0 for a constant map.
        similarity: Structural similarity (SSIM) with the original map, both scaled to 0..1, shape ``(L, B)``.
    """

    parts: tuple[str, ...]
    rank: Tensor
    similarity: Tensor


def randomisation_check(
    model: Explainable,
    images: Images,
    method: str,
    target: Target = None,
    *,
    mode: str = "cascading",
    parts: int | None = None,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
) -> Randomisation:
    """Compare explanations before and after the weights of parts of the model are re-initialised.

    The weights are those of a new model with the same settings. A copy is randomised; the model itself stays unchanged.
    The class stays that of the trained model.

    Args:
        model: Any model of vitrail, or a trained model.
        images: As for :func:`vitrail.explain.explain`.
        method: One of :func:`vitrail.explain.list_methods`.
        target: The class; by default the class that the trained model predicts.
        mode: "cascading" (cumulative, from the head down) or "independent" (one part at a time).
        parts: Maximum number of parts; by default the layer groups. 1 randomises the whole model at once.
        seed: Seed of the random weights.
        settings: Settings of the method.

    Returns:
        Similarity to the original after each step, averaged over the streams.

    Raises:
        ConfigError: An unknown method, setting, class or mode.

    Source: Adebayo et al. 2018, arXiv:1810.03292, section 3.
    """
    if mode not in MODES:
        raise ConfigError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    if parts is not None:
        check_count("parts", parts)
    with prepared(model, images, target, by_class=get_method(method).by_class) as (network, inputs, classes):
        original = explain(network, inputs, method, classes, **(settings or {}))
        fresh = _fresh(network, seed)
        groups = _top_down(network, parts)
        rank, similarity = [], []
        for changed in _randomised(network, fresh, groups, mode == "cascading"):
            found = explain(changed, inputs, method, classes, **(settings or {}))
            rank.append(_mean(original, found, _rank_correlation, "tokens"))
            similarity.append(_mean(original, found, _structural_similarity, "map"))
    return Randomisation(tuple(map(_label, groups)), torch.stack(rank), torch.stack(similarity))


def _fresh(model: VisionModel, seed: int) -> dict[str, Tensor]:
    """Initialise the state of a new model with the same settings, by name."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        new = type(model)(model.config)
    state = new.state_dict()
    own = {name: value.shape for name, value in model.state_dict().items()}
    assert own == {name: value.shape for name, value in state.items()}, "the settings determine the shapes"
    return state


def _top_down(model: VisionModel, parts: int | None) -> list[list[str]]:
    """Group the names of the state from head to input; running statistics belong to the weights of their module."""
    groups = [list(group) for group in reversed(model.layer_groups()) if group]
    owner = {name.rpartition(".")[0]: group for group in groups for name in group}
    known = {name for group in groups for name in group}
    for name in model.state_dict():
        if name not in known:
            owner.get(name.rpartition(".")[0], groups[-1]).append(name)
    if parts is None or parts >= len(groups):
        return groups
    return [[name for i in part for name in groups[i]] for part in np.array_split(np.arange(len(groups)), parts)]


def _randomised(
    model: VisionModel, fresh: dict[str, Tensor], groups: list[list[str]], cascading: bool
) -> Iterator[VisionModel]:
    changed = copy.deepcopy(model)
    state = changed.state_dict()
    trained = model.state_dict()
    for group in groups:
        with torch.no_grad():
            for name in group:
                state[name].copy_(fresh[name])
        yield changed
        if not cascading:
            with torch.no_grad():
                for name in group:
                    state[name].copy_(trained[name])


def _label(names: list[str]) -> str:
    paths = [name.split(".") for name in names]
    shared = [words[0] for words in itertools.takewhile(lambda words: len(set(words)) == 1, zip(*paths, strict=False))]
    return ".".join(shared) or ", ".join(dict.fromkeys(path[0] for path in paths))


def _mean(one: Explanation, other: Explanation, compare: Any, what: str) -> Tensor:
    return torch.stack(
        [compare(getattr(one[name], what).float().cpu(), getattr(other[name], what).float().cpu()) for name in one]
    ).mean(dim=0)


def _rank_correlation(one: Tensor, other: Tensor) -> Tensor:
    """Compute Spearman's correlation with mean ranks of ties, shape ``(B,)``."""
    from scipy.stats import rankdata

    first, second = (torch.from_numpy(rankdata(x.flatten(1).double().numpy(), axis=1)) for x in (one, other))
    first, second = first - first.mean(dim=1, keepdim=True), second - second.mean(dim=1, keepdim=True)
    spread = (first.square().sum(dim=1) * second.square().sum(dim=1)).sqrt()
    return torch.where(spread > 0, (first * second).sum(dim=1) / spread.clamp_min(1e-300), 0.0).float()


def _structural_similarity(one: Tensor, other: Tensor) -> Tensor:
    """Compute SSIM of maps scaled to 0..1, shape ``(B,)``."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    def scaled(x: Tensor) -> Tensor:
        low, high = x.amin(dim=(1, 2), keepdim=True), x.amax(dim=(1, 2), keepdim=True)
        return ((x - low) / (high - low).clamp_min(torch.finfo(x.dtype).tiny))[:, None]

    window = min(_WINDOW, (min(one.shape[1:]) - 1) // 2 * 2 + 1)
    if window < _SMALLEST_WINDOW:
        raise ConfigError(f"maps of {one.shape[1]} x {one.shape[2]} pixels are too small to compare structures")
    found = structural_similarity_index_measure(
        scaled(one), scaled(other), gaussian_kernel=False, kernel_size=window, data_range=1.0, reduction="none"
    )
    return cast(Tensor, found).reshape(len(one))
