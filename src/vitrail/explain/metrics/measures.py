"""Registry of measures of a map, each a value for every image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.errors import ConfigError, did_you_mean
from vitrail.explain.methods.maps import Explanation
from vitrail.explain.metrics.captum_metrics import infidelity, sensitivity
from vitrail.explain.metrics.faithfulness import deletion, insertion
from vitrail.explain.metrics.localisation import energy_inside, mask_iou, pointing_game
from vitrail.explain.metrics.randomisation import randomisation_check
from vitrail.explain.metrics.remove_and_debias import road


@dataclass(frozen=True)
class Case:
    """One explanation of a batch of images, to be measured.

    Attributes:
        model: The model.
        inputs: One tensor for each stream, or None.
        classes: Class of each image, shape ``(B,)``.
        explanation: The explanation.
        masks: Stream -> relevant pixels, bool, shape ``(B, H, W)``; empty where they are unknown.
        method: Name of the method.
        settings: Settings of the method.
        steps: Steps of deletion and insertion.
        fractions: Shares of imputed pixels of ROAD.
        score: Score of the class.
        seed: Seed of all random numbers.
        batch_size: Batch size.
    """

    model: nn.Module
    inputs: tuple[Tensor | None, ...]
    classes: Tensor
    explanation: Explanation
    masks: Mapping[str, Tensor]
    method: str
    settings: Mapping[str, Any]
    steps: int
    fractions: Sequence[float]
    score: str
    seed: int
    batch_size: int

    def call(self, compute: Callable[..., Any], **settings: Any) -> Any:
        """Call a measure of faithfulness."""
        return compute(
            self.model, self.inputs, self.explanation, self.classes,
            score=self.score, seed=self.seed, batch_size=self.batch_size, **settings,
        )  # fmt: skip

    def localise(self, compare: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Compute the mean of a measure of localisation over streams with a mask, NaN where all masks are empty."""
        values = [
            compare(one.map, self.masks[name].to(one.map.device))
            for name, one in self.explanation.items()
            if name in self.masks
        ]
        return torch.stack(values).nanmean(dim=0)


@dataclass(frozen=True)
class Measure:
    """A measure of a map.

    Attributes:
        compute: Computes one value for each image of a case, shape ``(B,)``.
        higher_is_better: Whether large values are good.
        needs_masks: Whether it compares maps with masks.
        summary: Description, one line.
    """

    compute: Callable[[Case], Tensor]
    higher_is_better: bool
    needs_masks: bool
    summary: str


def _deletion(case: Case) -> Tensor:
    area: Tensor = case.call(deletion, steps=case.steps).area
    return area


def _insertion(case: Case) -> Tensor:
    area: Tensor = case.call(insertion, steps=case.steps).area
    return area


def _road(case: Case) -> Tensor:
    gap: Tensor = case.call(road, fractions=case.fractions).gap
    return gap


def _infidelity(case: Case) -> Tensor:
    values: Tensor = case.call(infidelity)
    return values


def _sensitivity(case: Case) -> Tensor:
    return sensitivity(
        case.model, case.inputs, case.method, case.classes,
        seed=case.seed, batch_size=case.batch_size, settings=case.settings,
    )  # fmt: skip


def _randomisation(case: Case) -> Tensor:
    check = randomisation_check(
        case.model, case.inputs, case.method, case.classes, parts=1, seed=case.seed, settings=case.settings
    )
    return check.rank[-1]


MEASURES: dict[str, Measure] = {
    "deletion": Measure(_deletion, False, False, "area under the score while relevant pixels are removed"),
    "insertion": Measure(_insertion, True, False, "area under the score while relevant pixels are restored"),
    "road": Measure(_road, True, False, "score without irrelevant minus score without relevant pixels, imputed"),
    "infidelity": Measure(_infidelity, False, False, "error of the map as a prediction of score drops"),
    "sensitivity": Measure(_sensitivity, False, False, "largest change of the map under small changes of the image"),
    "randomisation": Measure(_randomisation, False, False, "rank correlation with the map of a random model"),
    "pointing": Measure(lambda case: case.localise(pointing_game), True, True, "the maximum lies in the mask"),
    "mask_iou": Measure(lambda case: case.localise(mask_iou), True, True, "IoU of mask and most relevant pixels"),
    "energy_inside": Measure(lambda case: case.localise(energy_inside), True, True, "share of the map in the mask"),
}
# Defaults: measures that do not run the method again.
_DEFAULT = ("deletion", "insertion", "road", "infidelity")
_WITH_MASKS = ("pointing", "mask_iou", "energy_inside")


def choose_measures(names: Iterable[str] | None, with_masks: bool) -> list[str]:
    """Check the names of measures, or return the default ones.

    Args:
        names: Names of measures; None for the default.
        with_masks: Whether there are masks.

    Raises:
        ConfigError: An unknown measure, or one that needs masks without any.
    """
    if names is None:
        return [*_DEFAULT, *(_WITH_MASKS if with_masks else ())]
    chosen = list(dict.fromkeys(names))
    for name in chosen:
        if name not in MEASURES:
            raise ConfigError(f"no measure {name!r}{did_you_mean(name, MEASURES)}; measures: {', '.join(MEASURES)}")
        if MEASURES[name].needs_masks and not with_masks:
            raise ConfigError(f"{name} compares maps with masks of relevant pixels; give masks, or omit it")
    return chosen
