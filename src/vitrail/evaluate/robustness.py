"""Accuracy under corruptions, missing bands or streams, and adversarial attacks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from vitrail.bootstrap import NOT_SHOWN, Bootstrap
from vitrail.config.data import DataConfig
from vitrail.data.dataset import Batch
from vitrail.errors import ConfigError, DataError, plural
from vitrail.evaluate import statistics
from vitrail.evaluate.attacks import PGD_STEPS, check_epsilons, fgsm, losses, pgd
from vitrail.evaluate.corruptions import SEVERITIES, check_corruptions, corrupt
from vitrail.evaluate.metrics import accuracy_interval, interval_of_units, is_correct
from vitrail.evaluate.run import Evaluated
from vitrail.evaluate.saved_predictions import Intervals, SavedPredictions
from vitrail.files import write_text
from vitrail.runs.trained import with_derived_streams

Correct = npt.NDArray[np.bool_]
# Key of a case -> function from a batch to logits in that case.
Cases = Mapping[tuple[Any, ...], Callable[[Batch], Tensor]]


def measure_corruptions(
    evaluated: Evaluated,
    data: DataConfig | None,
    names: Sequence[str] = (),
    *,
    intervals: Intervals | None = None,
    sample: int | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure accuracy under corruptions; writes corruptions.csv and its part of robustness.json.

    Args:
        evaluated: An evaluation with saved predictions.
        data: Data settings, for groups.
        names: Corruptions; all by default.
        intervals: Settings of the intervals.
        sample: Number of images, evenly spaced over the split; all by default.
        seed: Seed of the corruptions.

    Returns:
        ``corruption``, ``severity``, ``images``, ``accuracy``, ``low``, ``high``; the first row is without corruption
        ("none", severity 0).

    Raises:
        ConfigError: Unknown corruption, or a sample below 1.
    """
    names = check_corruptions(names)
    trained = evaluated.trained

    def corrupted(name: str, severity: int) -> Callable[[Batch], Tensor]:
        def classify(batch: Batch) -> Tensor:
            indices = batch["index"].tolist()
            streams = {
                stream: corrupt(batch[stream], name, severity, indices, seed, stream)
                for stream in trained.card.input_streams
            }
            return trained.classify(with_derived_streams(trained.card, streams), evaluated.tta)[0]

        return classify

    cases: dict[tuple[Any, ...], Callable[[Batch], Tensor]] = {
        ("none", 0): lambda batch: trained.classify(batch, evaluated.tta)[0]
    }
    cases |= {(name, severity): corrupted(name, severity) for name in names for severity in SEVERITIES}
    table = accuracies(evaluated, data, cases, ("corruption", "severity"), intervals, sample, "corruptions")
    of_each = table[table["severity"] > 0].groupby("corruption", sort=False)["accuracy"].mean()
    record_part(
        evaluated,
        "corruptions",
        table,
        {
            "seed": seed,
            "mean_corrupted_accuracy": float(of_each.mean()),
            "of_each": {str(name): float(value) for name, value in of_each.items()},
        },
    )
    return table


def measure_missing(
    evaluated: Evaluated,
    data: DataConfig | None,
    *,
    intervals: Intervals | None = None,
    sample: int | None = None,
) -> pd.DataFrame:
    """Measure accuracy without each band and each stream; writes missing.csv and its part of robustness.json.

    A missing band or stream is replaced by its mean over the training images. A spectral stream is omitted if the model
    has a learned substitute (``missing_spectral="learned"``).

    Args:
        evaluated: An evaluation with saved predictions.
        data: Data settings, for groups.
        intervals: Settings of the intervals.
        sample: Number of images, evenly spaced over the split; all by default.

    Returns:
        ``stream``, ``band`` ("all" for a stream), ``how``, ``images``, ``accuracy``, ``low``, ``high``, and the columns
        of :func:`paired_drops`; the first row is with all inputs ("none").
    """
    trained = evaluated.trained
    streams = trained.card.streams

    def without(stream: str, bands: Sequence[int], left_out: bool = False) -> Callable[[Batch], Tensor]:
        def classify(batch: Batch) -> Tensor:
            inputs = {name: batch[name] for name in streams}
            if left_out:
                del inputs[stream]
            else:
                x = inputs[stream].clone()
                for band in bands:
                    x[:, band] = streams[stream].mean[band]
                inputs[stream] = x
                if stream == "image" and len(bands) < len(streams[stream].bands):
                    inputs = with_derived_streams(trained.card, inputs)
            return trained.classify(inputs, evaluated.tta)[0]

        return classify

    cases: dict[tuple[Any, ...], Callable[[Batch], Tensor]] = {
        ("none", "none", "as it is"): lambda batch: trained.classify(batch, evaluated.tta)[0]
    }
    for name, stream in streams.items():
        for i, band in enumerate(stream.bands):
            cases[(name, band, "its mean")] = without(name, [i])
        if len(streams) > 1:
            learned = name == "spectral" and getattr(trained.model, "spectral_token", None) is not None
            how = "left out" if learned else "means of its bands"
            cases[(name, "all", how)] = without(name, range(len(stream.bands)), learned)
    table = accuracies(
        evaluated, data, cases, ("stream", "band", "how"), intervals, sample, "missing bands", paired=True
    )
    worst = table.iloc[1:].sort_values("accuracy", kind="stable").iloc[0]
    record_part(
        evaluated,
        "missing",
        table,
        {
            "worst": {key: str(worst[key]) for key in ("stream", "band", "how")}
            | {"accuracy": float(worst["accuracy"])},
        },
    )
    return table


def measure_attacks(
    evaluated: Evaluated,
    data: DataConfig | None,
    epsilons: Sequence[float] = (),
    *,
    intervals: Intervals | None = None,
    sample: int | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure accuracy under FGSM and PGD; writes attacks.csv and its part of robustness.json.

    Args:
        evaluated: An evaluation with saved predictions.
        data: Data settings, for groups.
        epsilons: Radii of the L-infinity ball, in units of pixel values in 0..1; by default 1, 2, 4 and 8 of 255.
        intervals: Settings of the intervals.
        sample: Number of images, evenly spaced over the split; all by default.
        seed: Seed of PGD's random start.

    Returns:
        ``attack``, ``epsilon``, ``epsilon_of_255``, ``steps``, ``images``, ``accuracy``, ``low``, ``high``; the first
        row is without attack ("none").

    Raises:
        ConfigError: An epsilon out of range, test-time augmentation, or a sample below 1.
    """
    if evaluated.tta != "none":
        raise ConfigError(f"attacks need the model without --tta {evaluated.tta}; leave one of them out")
    sizes = check_epsilons(epsilons)
    trained = evaluated.trained

    def attacked(attack: Callable[..., dict[str, Tensor]], epsilon: float, **more: int) -> Callable[[Batch], Tensor]:
        def classify(batch: Batch) -> Tensor:
            on_device = {name: batch[name].to(trained.device) for name in trained.card.streams}
            target = batch["target"].to(trained.device)
            changed = attack(trained, on_device, target, epsilon, **more)
            with torch.no_grad():
                return losses(trained, changed, target)[0]

        return classify

    cases: dict[tuple[Any, ...], Callable[[Batch], Tensor]] = {
        ("none", 0.0, 0.0, 0): lambda batch: trained.classify(batch)[0]
    }
    for size in sizes:
        cases[("fgsm", size, 255 * size, 1)] = attacked(fgsm, size)
    for size in sizes:
        cases[("pgd", size, 255 * size, PGD_STEPS)] = attacked(pgd, size, steps=PGD_STEPS, seed=seed)
    keys = ("attack", "epsilon", "epsilon_of_255", "steps")
    table = accuracies(evaluated, data, cases, keys, intervals, sample, "attacks")
    pgd_rows = table[table["attack"] == "pgd"]
    record_part(
        evaluated,
        "attacks",
        table,
        {
            "seed": seed,
            "pgd": [
                {"epsilon": float(row["epsilon"]), "accuracy": float(row["accuracy"])} for _, row in pgd_rows.iterrows()
            ],
        },
    )
    return table


def accuracies(
    evaluated: Evaluated,
    data: DataConfig | None,
    cases: Cases,
    keys: Sequence[str],
    intervals: Intervals | None,
    sample: int | None,
    what: str,
    paired: bool = False,
) -> pd.DataFrame:
    """Compute one row per case: keys, images, accuracy, interval and, if ``paired``, the drop against the first.

    Args:
        evaluated: An evaluation with saved predictions.
        data: Data settings, for groups.
        cases: The cases, the unchanged images first.
        keys: Columns of the cases' keys.
        intervals: Settings of the intervals.
        sample: Number of images, evenly spaced over the split; all by default.
        what: Name of the cases, for progress.
        paired: Whether to compare with the first case.
    """
    if sample is not None and sample < 1:
        raise ConfigError(f"--sample must be at least 1 image, got {sample}")
    indices = evaluated.images.indices(evaluated.split)
    if sample is not None and sample < len(indices):
        indices = [indices[i] for i in np.unique(np.linspace(0, len(indices) - 1, sample).round().astype(int))]
    correct: dict[tuple[Any, ...], list[Correct]] = {case: [] for case in cases}
    for batch in _with_progress(evaluated.images.batches(indices, 64), len(indices), what):
        target = batch["target"].numpy()
        for case, classify in cases.items():
            correct[case].append(is_correct(classify(batch).cpu().numpy(), target))
    bootstrap = _bootstrap(evaluated, data, indices, intervals or Intervals())
    rows = []
    for case, parts in correct.items():
        own = np.concatenate(parts)
        low, high = accuracy_with_groups(own, bootstrap)
        rows.append(
            {**dict(zip(keys, case, strict=True)), "images": len(own), "accuracy": own.mean(), "low": low, "high": high}
        )
    table = pd.DataFrame(rows)
    if paired and len(rows[0]) and rows[0]["images"] > 1:
        groups = None if bootstrap is None else bootstrap.groups
        table = pd.concat([table, paired_drops([np.concatenate(parts) for parts in correct.values()], groups)], axis=1)
        table.attrs["groups"] = None if groups is None else len(set(groups))
    return table


def paired_drops(correct: Sequence[Correct], groups: Sequence[str] | None) -> pd.DataFrame:
    """Compare the accuracy of each case with that of the first, paired by image.

    Args:
        correct: Whether each image is correct, shape ``(N,)``, by case.
        groups: Group of each image, if any.

    Returns:
        One row per case: ``drop`` of the accuracy, its 95 % interval ``drop_low`` and ``drop_high``, ``p_drop`` with
        Holm's correction, and ``verdict``: "needed" (significant drop), "disturbs" (significant rise) or "not shown".
        The first row is empty. Inference is about this model on other images.
    """
    first = correct[0].astype(np.float64)
    found = []
    for own in correct[1:]:
        difference = (first - own)[None]
        if groups is not None:
            difference = statistics.join_groups(difference, np.asarray(groups, dtype=object))
        found.append(statistics.runs_and_images(difference, largest=1.0))
    corrected = statistics.holm([float(one.p_value()) for one in found])
    rows: list[dict[str, Any]] = [dict.fromkeys(("drop", "drop_low", "drop_high", "p_drop")) | {"verdict": ""}]
    for one, p in zip(found, corrected, strict=True):
        low, high = one.interval()
        verdict = NOT_SHOWN if p >= 0.05 else "needed" if one.value > 0 else "disturbs"
        rows.append({"drop": float(one.value), "drop_low": float(low), "drop_high": float(high), "p_drop": float(p),
                     "verdict": verdict})  # fmt: skip
    return pd.DataFrame(rows)


def accuracy_with_groups(correct: Correct, bootstrap: Bootstrap | None) -> tuple[float, float]:
    """Compute the interval of an accuracy: Wilson's for images, the bootstrap's for groups.

    Args:
        correct: Whether each image is correct, shape ``(N,)``.
        bootstrap: Settings of the bootstrap.
    """
    if bootstrap is None or bootstrap.groups is None:
        return accuracy_interval(int(correct.sum()), len(correct))
    return bootstrap.mean(correct) or interval_of_units(float(correct.mean()), bootstrap)


def _bootstrap(
    evaluated: Evaluated, data: DataConfig | None, indices: Sequence[int], intervals: Intervals
) -> Bootstrap | None:
    table = SavedPredictions.read(evaluated.run, evaluated.name).table
    rows = {key: row for row, key in enumerate(table["path"])}
    keys = [evaluated.images.source.keys[i] for i in indices]
    missing = [key for key in keys if key not in rows]
    if missing:
        raise DataError(
            f"{missing[0]} is not among the saved predictions of {evaluated.name}; evaluate {evaluated.run} again"
        )
    return intervals.bootstrap(table.iloc[[rows[key] for key in keys]].reset_index(drop=True), data)


def _with_progress(batches: Iterator[Batch], images: int, what: str) -> Iterator[Batch]:
    """Yield the batches, and print progress on a terminal."""
    done = 0
    for batch in batches:
        yield batch
        done += len(batch["index"])
        if sys.stderr.isatty():
            print(
                f"\r{what}: {done} of {plural(images, 'image')}",
                end="" if done < images else "\n",
                file=sys.stderr,
                flush=True,
            )


def record_part(evaluated: Evaluated, part: str, table: pd.DataFrame, summary: dict[str, Any]) -> None:
    """Write a table, and its summary with the accuracy of the first row into robustness.json.

    Args:
        evaluated: The evaluation.
        part: Name of the table's file and of the summary.
        table: The table.
        summary: Further entries of robustness.json.
    """
    run, files = evaluated.run, evaluated.files
    write_text(getattr(files, part), table.to_csv(index=False))
    known = run.read_json(files.robustness) if files.robustness.is_file() else {}
    as_it_is = {"images": int(table["images"].iloc[0]), "accuracy": float(table["accuracy"].iloc[0])}
    run.write_json(files.robustness, {**known, part: {"weights": run.weights_hash(), **as_it_is, **summary}})
