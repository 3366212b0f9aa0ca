"""The plain sentences about runs, decided from recorded facts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vitrail.data.augment.test_time import TURNED
from vitrail.errors import plural
from vitrail.evaluate.run import OTHER
from vitrail.report.brief import Answer, lie, listed, per_hundred, per_hundred_between
from vitrail.report.run_facts import ClassFacts, RunFacts

QUESTIONS = ("What was trained", "How good it is", "What to be careful about")
# Fewer images, groups, or images of a class than these leave figures rough.
_FEW_IMAGES, _FEW_GROUPS, _FEW_OF_A_CLASS, _FEW_TO_TRAIN_ON = 100, 10, 10, 20
# A class is weak below this recall, or this far below the accuracy.
_WEAK_RECALL, _WEAK_GAP = 0.5, 0.2
# The largest class has this many times the training images of the smallest.
_UNBALANCED = 5
# A calibration error or a gap of confidence that matters to a reader.
_MISCALIBRATED, _CONFIDENCE_GAP = 0.03, 0.02
_TOLD_APART = 0.9


def run_brief(facts: Sequence[RunFacts]) -> list[Answer]:
    """Answer the three questions of a reader for the runs on a page.

    Args:
        facts: Facts of each run; with several runs, each sentence names those that it is about.

    Returns:
        An answer to each question.
    """
    good = _joined([(one.label, [(0, how_good(one))]) for one in facts])
    if len(facts) > 1:
        good.append("This page tests no difference between the models; `vitrail compare` does.")
    return [
        Answer(QUESTIONS[0], _joined([(one.label, [(0, what_was_trained(one))]) for one in facts])),
        Answer(QUESTIONS[1], good),
        Answer(QUESTIONS[2], _joined([(one.label, ranked_cautions(one)) for one in facts])),
    ]


def _joined(lines: Sequence[tuple[str, Sequence[tuple[int, str]]]]) -> list[str]:
    """Join equal sentences, by rank, with the runs that each is about unless it is about all."""
    whose: dict[str, list[str]] = {}
    ranks: dict[str, int] = {}
    for label, sentences in lines:
        for rank, sentence in sentences:
            whose.setdefault(sentence, []).append(label)
            ranks[sentence] = rank
    return [
        sentence if len(whose[sentence]) == len(lines) else f"{listed(whose[sentence])}: {sentence}"
        for sentence in sorted(whose, key=lambda sentence: ranks[sentence])
    ]


def what_was_trained(facts: RunFacts) -> str:
    """Describe the trained task, and the images of training."""
    kind = "label" if facts.multi_label else "class"
    names = [one.name for one in facts.classes]
    told = f"{plural(len(names), kind)} ({listed(names)})" if names else plural(2, kind).removeprefix("2 ")
    verb = "find" if facts.multi_label else "tell apart"
    train = facts.splits.get("train")
    on = f"on {plural(train, 'image')} of {facts.data}" if train else f"on images of {facts.data}"
    begin = f", starting from the pre-trained weights {facts.weights}" if facts.weights else ""
    val = facts.splits.get("val")
    chosen = f"; {plural(val, 'further image')} chose the best epoch" if val else ""
    bands = f" It reads {plural(len(facts.bands), 'band')}: {listed(facts.bands)}." if facts.bands else ""
    if attributes := facts.point_attributes:
        bands = f" It reads {plural(len(attributes), 'attribute')} of each point: {listed(attributes)}."
    return f"A model ({facts.model}) was trained {on} to {verb} {told}{begin}{chosen}.{bands}{_on_bands(facts)}"


def _on_bands(facts: RunFacts) -> str:
    """Name the bands that were measured to be needed."""
    if not facts.band_drops:
        return ""
    drops = {band: drop for band, (drop, verdict) in facts.band_drops.items() if verdict == "needed"}
    if not drops:
        return " No single band is shown to be needed."
    largest = sorted(drops, key=lambda band: -drops[band])
    named = [f"{band} (accuracy falls by {drops[band]:.2f} without it)" for band in largest]
    others = "" if len(drops) == len(facts.band_drops) else "; of the others it is not shown"
    return f" Shown to be needed: {listed(named, 3)}{others}."


def how_good(facts: RunFacts) -> str:
    """State the number of correctly classified images, and where the images come from."""
    share = per_hundred(facts.accuracy, _evaluated(facts))
    number = round(facts.accuracy * facts.images)
    if facts.multi_label:
        told = f"All labels are correct in {share}"
    else:
        told = f"{share[0].upper()}{share[1:]} are classified correctly"
    interval = f"({per_hundred_between(facts.low, facts.high)}, with 95 % confidence)"
    return f"{told} {interval}: {number:,} of {plural(facts.images, 'image')}{_of_groups(facts)}.{_how_unseen(facts)}"


def unseen(facts: RunFacts) -> bool:
    """Return whether no evaluated image had a part in training, as far as it is recorded."""
    apart = facts.split in ("test", OTHER) and not facts.trained_on and not facts.chosen_on
    return (
        apart
        and facts.trained_on is not None
        and not facts.pretrained_on
        and (facts.split == OTHER or not any(facts.leaking))
    )


def _evaluated(facts: RunFacts) -> str:
    if unseen(facts):
        return "unseen images"
    return {"train": "training images", "val": "validation images", "test": "test images"}.get(
        facts.split, "other images"
    )


def _of_groups(facts: RunFacts) -> str:
    if facts.groups is None:
        return ""
    what, names = facts.groups.what, facts.groups.names
    told = plural(len(names), "group") if what == "group" else plural(len(names), what)
    return f" from {told}" + ("" if what == "block" else f" ({listed(names, 5)})")


def _how_unseen(facts: RunFacts) -> str:
    """Describe whether the evaluated images were used in training."""
    if facts.split == "train":
        return " The model was trained on these very images: this says nothing about new ones."
    if facts.split == "val":
        return " These images chose the epoch, so new images may do worse; no unseen test images were measured."
    if facts.trained_on or facts.chosen_on:
        parts = [
            *([f"{facts.trained_on:,} of them were trained on"] if facts.trained_on else []),
            *([f"{facts.chosen_on:,} of them chose the epoch"] if facts.chosen_on else []),
        ]
        return f" {' and '.join(parts)}: the result is not on unseen images."
    if facts.pretrained_on:
        return f" The starting weights were pre-trained on {facts.pretrained_on:,} of them."
    if facts.trained_on is None:
        return " Whether training used any of them is not recorded."
    if facts.leaking[0] and facts.split != OTHER:
        return " None of these files was used in training, but copies of some of them may have been."
    where = f" They lie in {facts.path}." if facts.split == OTHER and facts.path else ""
    if facts.groups is None or facts.split == OTHER:
        return where or " None of them was used in training."
    if facts.groups.shared is None:
        return f" None of them was used in training; whether their {_plural(facts)} were is not recorded."
    if facts.groups.shared:
        return f" None of them was used in training, but other images of the same {_plural(facts)} may have been."
    return f" No image of these {_plural(facts)} was used in training."


def _plural(facts: RunFacts) -> str:
    assert facts.groups is not None
    return plural(2, facts.groups.what).removeprefix("2 ")


def ranked_cautions(facts: RunFacts) -> list[tuple[int, str]]:
    """List the limits of the result, the most urgent first, with their ranks."""
    told = [(rank, line) for rank, caution in enumerate(_CAUTIONS) if (line := caution(facts))]
    return told or [(0, "The records of this run show nothing unusual.")]


def _unfinished(facts: RunFacts) -> str:
    return "" if facts.finished else "Training did not come to its end: the model is that of the best epoch so far."


def _leaks(facts: RunFacts) -> str:
    copies, groups = facts.leaking
    parts = [
        *([f"{plural(copies, 'group')} of copies of the same image"] if copies else []),
        *([f"{plural(groups, 'group')} of the data's own"] if groups else []),
    ]
    if not parts:
        return ""
    return (
        f"{' and '.join(parts)} {lie(copies + groups)} in several splits: the result is overestimated for new images."
    )


def _shared_groups(facts: RunFacts) -> str:
    if facts.groups is None or not facts.groups.shared or facts.leaking[1]:
        return ""
    return (
        f"{plural(facts.groups.shared, facts.groups.what)} of the data {lie(facts.groups.shared)} in several "
        f"splits: the result says little about new {_plural(facts)}."
    )


def _pretrained(facts: RunFacts) -> str:
    if not facts.pretrained_on:
        return ""
    return "The starting weights were pre-trained on evaluated images: the result is overestimated for new images."


def _near_guess(facts: RunFacts) -> str:
    if facts.most_frequent is None or facts.low > facts.most_frequent[1]:
        return ""
    name, share = facts.most_frequent
    return (
        f"The model is not shown to be better than the constant answer {name}, which is correct for "
        f"{per_hundred(share, 'images')}."
    )


def _stale(facts: RunFacts) -> str:
    return "Files, labels or splits have changed since training." if facts.stale else ""


def _few_images(facts: RunFacts) -> str:
    groups = facts.groups
    if groups is not None and len(groups.names) < _FEW_GROUPS:
        return (
            f"The result rests on {plural(len(groups.names), groups.what)}: another {groups.what} may do much better "
            "or worse."
        )
    if facts.images >= _FEW_IMAGES:
        return ""
    return f"The result rests on {plural(facts.images, 'image')}, so its interval is wide."


def _weak_classes(facts: RunFacts) -> str:
    def weak(one: ClassFacts) -> bool:
        return one.recall is not None and (one.recall < _WEAK_RECALL or one.recall < facts.accuracy - _WEAK_GAP)

    found = sorted((one for one in facts.classes if weak(one)), key=lambda one: one.recall or 0)
    if not found:
        return ""
    told = [f"{one.name} ({round((one.recall or 0) * one.images):,} of {plural(one.images, 'image')})" for one in found]
    return f"Rarely recognised: {listed(told, 3)}."


def _few_of_a_class(facts: RunFacts) -> str:
    few = sorted((one for one in facts.classes if one.images < _FEW_OF_A_CLASS), key=lambda one: one.images)
    if not few:
        return ""
    told = listed([f"{one.name} ({one.images})" for one in few], 3)
    return f"Few evaluated images of {told}: nothing certain is known about {'it' if len(few) == 1 else 'them'}."


def _few_to_train_on(facts: RunFacts) -> str:
    few = [one for one in facts.classes if one.train is not None and one.train < _FEW_TO_TRAIN_ON]
    few.sort(key=lambda one: one.train or 0)
    return f"Few training images of {listed([f'{one.name} ({one.train})' for one in few], 3)}." if few else ""


def _unbalanced(facts: RunFacts) -> str:
    trained = [(one.train, one.name) for one in facts.classes if one.train]
    if len(trained) < 2:
        return ""
    (least, rare), (most, frequent) = min(trained), max(trained)
    if most < _UNBALANCED * least:
        return ""
    return (
        f"{frequent} has {most / least:.0f} times as many training images as {rare}: the accuracy favours {frequent}."
    )


def _miscalibrated(facts: RunFacts) -> str:
    if facts.ece is None or facts.ece_of_chance is None or facts.ece <= max(facts.ece_of_chance, _MISCALIBRATED):
        return ""
    gap = 0.0 if facts.mean_confidence is None else facts.mean_confidence - facts.accuracy
    if facts.multi_label or abs(gap) < _CONFIDENCE_GAP:
        told = f"Its probabilities do not match how often it is correct (calibration error {facts.ece:.2f})"
    else:
        told = (
            f"Its probabilities are too {'high' if gap > 0 else 'low'}: {100 * (gap + facts.accuracy):.0f} % on "
            f"average, where {100 * facts.accuracy:.0f} % are correct"
        )
    if facts.ece_after is not None and facts.ece_after < facts.ece / 2:
        told += f"; temperature scaling lowers the calibration error from {facts.ece:.2f} to {facts.ece_after:.2f}"
    return f"{told}."


def _possible_leaks(facts: RunFacts) -> str:
    if not facts.possible_leaks:
        return ""
    return (
        f"{plural(facts.possible_leaks, 'possible leak')}: images in different splits look alike and are not confirmed "
        "as copies; look at them on the page of the audit."
    )


def _unaudited(facts: RunFacts) -> str:
    if facts.audited:
        return ""
    return "No audit for copies across the splits is recorded; `vitrail data audit --run RUN` makes one."


def _unreadable(facts: RunFacts) -> str:
    return f"{plural(facts.unreadable, 'file')} could not be read and took no part." if facts.unreadable else ""


def _views(facts: RunFacts) -> str:
    if facts.views == "none":
        return ""
    if facts.views in TURNED:
        return f"Each image was rotated once at random ({facts.views}); another rotation may give another class."
    return f"The result averages several views of each image ({facts.views}); a prediction of one view may be worse."


def _out_of_distribution(facts: RunFacts) -> str:
    if facts.multi_label:
        return ""
    always = "The model gives every image one of its classes, also an image that shows none of them"
    if facts.out_of_distribution is None:
        return f"{always}."
    area, path = facts.out_of_distribution
    verdict = "" if area >= _TOLD_APART else "only "
    return f"{always}; it tells images of {path} from its own in {verdict}{round(100 * area)} of 100 pairs."


_CAUTIONS: tuple[Callable[[RunFacts], str], ...] = (
    _unfinished, _leaks, _shared_groups, _pretrained, _near_guess, _stale, _few_images, _weak_classes, _few_of_a_class,
    _miscalibrated, _possible_leaks, _unbalanced, _few_to_train_on, _unreadable, _views, _unaudited,
    _out_of_distribution,
)  # fmt: skip
