"""The images that a run's weights were trained on, by what they hold: known from run to run that begins with them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from vitrail.data.dataset import ImageData
from vitrail.files import write_text
from vitrail.runs.folder import RunFolder
from vitrail.weights.hub import HUB_PREFIX

# Hexadecimal digits of a hash: two of a billion images are the same once in forty times.
_DIGITS = 16
_OWN, _EARLIER = "own", "weights"


def record_training_images(run: RunFolder, data: ImageData, weights: str | None) -> None:
    """Write the hashes of a run's training images, and of those that its weights began with.

    Args:
        run: The run.
        data: Its images.
        weights: ``model.weights``; a run's folder or file is asked for its images.
    """
    earlier = _read(_run_of(weights), (_OWN, _EARLIER))
    own = _hashes(data, data.splits["train"])
    lines = [f"{_OWN} {code}" for code in own] + [f"{_EARLIER} {code}" for code in sorted(earlier)]
    write_text(run.seen, "".join(f"{line}\n" for line in lines))


def count_pretraining_images(run: RunFolder, data: ImageData, split: str) -> int | None:
    """Count the images of a split that a run's weights had been trained on before the run began.

    Args:
        run: The run.
        data: The images, as they are evaluated.
        split: Which of them.

    Returns:
        How many; None where nothing is known of the weights, or the run began without.
    """
    earlier = _read(run, (_EARLIER,))
    return sum(code in earlier for code in _hashes(data, data.splits[split])) if earlier else None


def describe_pretraining_images(seen: int | None, total: int, split: str) -> str | None:
    """One line on images of a split that the weights were pre-trained on; None where there are none.

    Args:
        seen: As :func:`count_pretraining_images` counts.
        total: Images of the split.
        split: Its name.
    """
    if not seen:
        return None
    return (
        f"{seen} of {total} images of the split {split} are among those that the weights were pre-trained on: the "
        "result is of images that the encoder has seen, and too good for new ones; pre-train without them (data.source "
        "and data.split as here leave the test split out)"
    )


def _hashes(data: ImageData, indices: Iterable[int]) -> list[str]:
    return [data.source.digest(index).hex()[:_DIGITS] for index in indices]


def _run_of(weights: str | None) -> RunFolder | None:
    if weights is None or weights.startswith(HUB_PREFIX):
        return None
    path = Path(weights)
    return RunFolder(path.parent if path.is_file() else path)


def _read(run: RunFolder | None, kinds: tuple[str, ...]) -> set[str]:
    if run is None or not run.seen.is_file():
        return set()
    rows = (line.partition(" ") for line in run.seen.read_text(encoding="utf-8").splitlines())
    return {code for kind, _, code in rows if kind in kinds}
