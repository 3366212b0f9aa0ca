"""Record of the images that a run's weights were trained on, by content, passed on through fine-tuning."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from vitrail.data.dataset import ImageData
from vitrail.errors import plural
from vitrail.files import write_text
from vitrail.runs.folder import RunFolder
from vitrail.weights.hub import HUB_PREFIX

# Hexadecimal digits of a hash: a collision among 10^9 images has a probability of 1 in 40.
_DIGITS = 16
_OWN, _EARLIER = "own", "weights"


def record_training_images(run: RunFolder, data: ImageData, weights: str | None) -> None:
    """Write the hashes of a run's training images, and of those of its initial weights.

    Args:
        run: The run.
        data: Images of the run.
        weights: ``model.weights``; the record of a run folder or its file is passed on.
    """
    earlier = _read(_run_of(weights), (_OWN, _EARLIER))
    own = _hashes(data, data.splits["train"])
    lines = [f"{_OWN} {digest}" for digest in own] + [f"{_EARLIER} {digest}" for digest in sorted(earlier)]
    write_text(run.seen, "".join(f"{line}\n" for line in lines))


def count_pretraining_images(run: RunFolder, data: ImageData, split: str) -> int | None:
    """Count the images of a split that a run's initial weights were trained on.

    Args:
        run: The run.
        data: The evaluated images.
        split: Split of the images.

    Returns:
        Number of images; None without initial weights, or without a record of these.
    """
    earlier = _read(run, (_EARLIER,))
    return sum(digest in earlier for digest in _hashes(data, data.splits[split])) if earlier else None


def describe_pretraining_images(seen: int | None, total: int, split: str) -> str | None:
    """Describe the images of a split that the weights were pre-trained on; None without any.

    Args:
        seen: Result of :func:`count_pretraining_images`.
        total: Number of images of the split.
        split: Name of the split.
    """
    if not seen:
        return None
    return (
        f"{seen:,} of {plural(total, 'image')} of the split {split} {'is' if seen == 1 else 'are'} among those that "
        "the weights were pre-trained on: the result is optimistic for unseen images; pre-train without them (the same "
        "data.source and data.split leave the test split out)"
    )


def _hashes(data: ImageData, indices: Iterable[int]) -> list[str]:
    digests = data.source.digests()  # cached: the record of the images needs them too
    return [digests[index].hex()[:_DIGITS] for index in indices]


def _run_of(weights: str | None) -> RunFolder | None:
    if weights is None or weights.startswith(HUB_PREFIX):
        return None
    path = Path(weights)
    return RunFolder(path.parent if path.is_file() else path)


def _read(run: RunFolder | None, kinds: tuple[str, ...]) -> set[str]:
    if run is None or not run.seen.is_file():
        return set()
    rows = (line.partition(" ") for line in run.seen.read_text(encoding="utf-8").splitlines())
    return {digest for kind, _, digest in rows if kind in kinds}
