"""Weights that training starts from, and the normalisation that they expect."""

from __future__ import annotations

from torch import nn

from vitrail.config.schema import ModelConfig
from vitrail.errors import ConfigError, plural
from vitrail.weights.load import load_weights
from vitrail.weights.normalisation import Normalization, describe
from vitrail.weights.remedies import RECIPE
from vitrail.weights.report import LoadReport

# Largest difference of means and deviations, in 0..1, that is not reported.
_SAME = 0.01


def load_start(model: nn.Module, config: ModelConfig, resumed: bool) -> LoadReport | None:
    """Load the weights that training starts from, and print the report.

    Args:
        model: The recipe's model.
        config: Settings of the model.
        resumed: Whether a checkpoint replaces the weights; then they are read only for their normalisation, if the run
            uses it.

    Returns:
        The report; None if no weights were read.

    Raises:
        WeightsError: The weights do not match the model.
    """
    if config.weights is None or (resumed and config.normalization == "data"):
        return None
    report = load_weights(
        model,
        config.weights,
        key=config.weights_key,
        new_head=config.new_head,
        bands=config.bands_rule,
        band_wavelengths=config.band_wavelengths,
        source_wavelengths=config.source_wavelengths,
        allow_missing=config.allow_missing,
        allow_unexpected=config.allow_unexpected,
        spelling=RECIPE,
        dry_run=resumed,
    )
    if not resumed:
        print(f"weights of {config.weights}: {report}")
    return report


def choose_normalization(
    of_data: dict[str, tuple[list[float], list[float]]], report: LoadReport | None, config: ModelConfig
) -> Normalization:
    """Choose mean and standard deviation of each stream, and print a line if those of data and weights differ.

    Args:
        of_data: Statistics of the training images, by stream.
        report: Report of the weights; None without weights.
        config: Settings of the model.

    Returns:
        The data's statistics, or the weights' for ``model.normalization weights``.

    Raises:
        ConfigError: The weights have no statistics, or those of other bands, and ``model.normalization`` is "weights".
    """
    chosen = {name: (tuple(mean), tuple(std)) for name, (mean, std) in of_data.items()}
    given = {} if report is None else report.normalization
    if config.normalization == "weights" and not set(given) & set(chosen):
        raise ConfigError(
            f"model.normalization is 'weights', and {config.weights} gives no mean and standard deviation; use 'data'"
        )
    for name in [name for name in given if name in chosen]:
        same_bands = len(given[name][0]) == len(chosen[name][0])
        if config.normalization == "weights":
            if not same_bands:
                raise ConfigError(
                    f"model.normalization is 'weights', with {plural(len(given[name][0]), 'band')} in the {name} "
                    f"stream, and the data has {len(chosen[name][0])}; use 'data'"
                )
            print(f"{name} stream normalised as for the weights: {describe(given[name])}")
            chosen[name] = given[name]
        elif not same_bands or _differ(given[name], chosen[name]):
            remedy = "; model.normalization weights uses the weights'" if same_bands else ""
            print(
                f"{name} stream: the weights expect {describe(given[name])}, the run normalises by its data's "
                f"{describe(chosen[name])}{remedy}"
            )
    return chosen


def _differ(one: tuple[tuple[float, ...], ...], other: tuple[tuple[float, ...], ...]) -> bool:
    pairs = zip([*one[0], *one[1]], [*other[0], *other[1]], strict=True)
    return any(abs(a - b) > _SAME for a, b in pairs)
