"""Plain sentences about an audit, derived from its findings."""

from __future__ import annotations

from collections.abc import Sequence

from vitrail.data.audit import Audit
from vitrail.errors import plural
from vitrail.report.brief import Answer, lie, listed

QUESTIONS = ("What was checked", "What was found", "What to do")
_REGROUP = (
    "Keep copies together: `vitrail data audit ... --groups groups.csv` writes them as groups, and `--data.split "
    "grouped` keeps each group in one split."
)


def audit_brief(found: Audit, place: str) -> list[Answer]:
    """Answer the three questions of a reader for an audit.

    Args:
        found: The audit.
        place: The data.

    Returns:
        An answer to each question.
    """
    findings = _findings(found)
    lines = [line for line, _ in findings] or ["Nothing that spoils these data."]
    remedies = list(dict.fromkeys(remedy for _, remedy in findings))
    return [
        Answer(QUESTIONS[0], [_checked(found, place)]),
        Answer(QUESTIONS[1], lines),
        Answer(QUESTIONS[2], remedies or ["Nothing: train on these data as they are."]),
    ]


def _checked(found: Audit, place: str) -> str:
    splits = listed([f"{name} {number:,}" for name, number in found.splits.items() if name != "labelled"])
    classes = f" of {plural(len(found.balance), 'class')}" if found.balance else ""
    among = f" ({splits})" if len(found.splits) > 1 else ""
    compared = "opened and compared with each other" if found.searched else "opened"
    copies = "copies" if found.searched else "exact copies"
    return (
        f"{plural(found.images, 'image')}{classes} of {place}{among} were {compared}: "
        f"files that cannot be read, {copies}, leaks between splits, class names, constant bands."
    )


def _findings(found: Audit) -> Sequence[tuple[str, str]]:
    """List each finding with its remedy, the most urgent first."""
    one_split = [group for group in found.duplicates if not group.leaks and not group.conflicts]
    lacking = {
        split: [name for name, row in found.balance.items() if not row.get(split)]
        for split in found.splits
        if split in ("train", "val", "test")
    }
    missing = [f"{listed(names, 3)} in {split}" for split, names in lacking.items() if names]
    still = [] if found.clips is None else found.clips.still
    constant = len({key for key, _, _ in found.constant})
    return [
        (line, remedy)
        for number, line, remedy in (
            (
                len(found.leaks),
                f"{plural(len(found.leaks), 'group')} of copies {lie(len(found.leaks))} in several splits: metrics "
                "are overestimated.",
                _REGROUP,
            ),
            (
                len(found.shared_groups),
                f"{plural(len(found.shared_groups), 'group')} of the data's own {lie(len(found.shared_groups))} in "
                f"several splits ({listed(list(found.shared_groups), 3)}): metrics are overestimated.",
                "Give each group one split in the data, or let `--data.split grouped` do it.",
            ),
            (
                len(found.conflicts),
                f"{plural(len(found.conflicts), 'group')} of copies with different classes.",
                "Look at the copies of different classes below and correct their labels.",
            ),
            (
                len(found.unreadable),
                f"{plural(len(found.unreadable), 'file')} cannot be read.",
                "Replace or remove the unreadable files, or go on without them by `--data.errors.on_unreadable skip`.",
            ),
            (
                len(found.damaged),
                f"{plural(len(found.damaged), 'clip')} with damaged frames.",
                "Take out the damaged clips, or encode them again: training stops at those that cannot be decoded, and "
                "reads other damaged frames as they are.",
            ),
            (
                len(missing),
                f"No image of {listed(missing, 3)}.",
                "Add images of the missing classes, or split the data again: nothing is measured of them.",
            ),
            (
                len(found.possible_leaks),
                f"{plural(len(found.possible_leaks), 'possible leak')}: look-alikes in different splits that are not "
                f"confirmed as copies (hashes that differ in at most {found.distance} of 64 bits, --distance).",
                "Look at the possible leaks below; where they show the same thing, group them.",
            ),
            (
                len(found.similar_classes),
                "Class names that differ only in spelling: "
                f"{listed([' / '.join(names) for names in found.similar_classes], 3)}.",
                "Correct the class names, or merge them by `--data.classes.merge similar`.",
            ),
            (
                len(found.empty_bands),
                f"Bands with one value in every image: {listed([band for _, band in found.empty_bands], 4)}.",
                "Leave out empty bands, by `--data.bands.use`.",
            ),
            (
                len(still),
                f"{plural(len(still), 'clip')} without motion.",
                "Look at the clips without motion: one of their frames shows all that they do.",
            ),
            (
                constant,
                f"{plural(constant, 'image')} with a constant band.",
                "Look at the images with a constant band below: they may be empty or damaged.",
            ),
            (
                len(one_split),
                f"{plural(len(one_split), 'group')} of copies {lie(len(one_split))} within one split.",
                "Copies within one split do no harm to the result; remove them where they count too much.",
            ),
        )
        if number
    ]  # fmt: skip
