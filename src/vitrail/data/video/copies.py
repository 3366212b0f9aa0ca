"""Near duplicates among clips: copies of the same footage, whole or in part.

Frames that resemble each other propose pairs of clips. A pair is confirmed where one shift in time makes the frames
agree on aligned pixels, and what moves agrees too: two clips of one scene in which different things happen are no
copies.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from vitrail.data.alignment import Alignment
from vitrail.data.candidate_pairs import (
    Integers,
    descriptors,
    orient,
    orient_pairs,
    oriented_descriptors,
    pairs_of_groups,
    similar_pairs,
)
from vitrail.data.near_duplicates import Copy, LookAlike, SearchResult, compare_pairs, describe_copy, with_contrast
from vitrail.data.perceptual_hash import DisjointSets, perceptual_hashes
from vitrail.data.thumbnails import Thumbnails
from vitrail.data.video.scan import ScannedClip

# Frames of a clip that propose pairs: at most, altogether, and at least. Pairs of a clip that are tried, those of most
# proposals first.
_PROPOSING, _ALTOGETHER, _LEAST, _PARTNERS = 32, 20_000, 3, 5
# Frames up to which all pairs are compared, in about a second; of more, those of clips that share parts of hashes.
_FEW = 4096
# Orientations of a pair that are tried, frames of a pair that are aligned, and the share of these that must agree.
_TRIED, _ALIGNED, _AGREEING = 2, 8, 0.75
# Scale and shift of a frame deviate by so much at most, in sides, from those of the others; mean correlation of detail
# over frames: 0.87 to 1 of 123 made copies of ultrasound clips, below 0.79 of most similar digits that move alike.
_STEADY, _DETAIL = 0.02, 0.85
# Share of the shorter clip that two clips must have in common, and frames of each: fewer show no motion to compare.
_COMMON, _MATCHED = 0.5, 4
# Correlation of what moves, and the mean square of its descriptors (of unit length) from which something moves. Of 200
# made copies of ultrasound clips 198 are found; of 50 pairs of their halves, and of clips with their reverse, 1 is.
_MOVING, _STILL = 0.8, 1e-3

Floats = npt.NDArray[np.floating]
# Frame of the one clip, of the other, and the orientation in which they resemble each other.
_Proposal = tuple[int, int, int]


def find_clip_copies(
    clips: Sequence[ScannedClip], distance: int = 8, *, splits: Sequence[int] | None = None
) -> SearchResult:
    """Find copies among clips: recompressed, scaled, cropped, rotated, mirrored, brighter, darker or cut in time.

    Copies at another speed or played backwards are not found. Copies of fewer than four thumbnails, and parts of which
    a much longer clip has fewer, are look-alikes at most.

    Args:
        clips: The clips.
        distance: Bits of 64 in which the hashes of frames of unconfirmed look-alikes may differ.
        splits: Number of each clip's split, ascending; only clips of different splits are compared. All when not given.

    Returns:
        Confirmed pairs that connect the clips of each group, and look-alikes with the smallest distance of two of their
        frames. Rows count the clips.
    """
    groups = DisjointSets(range(len(clips)))
    copies, rest = [], []
    pairs = sorted(_strongest(_propose(clips, splits)).items())
    for (first, second), proposals in tqdm(pairs, "comparing", unit="pair", leave=False, disable=None):
        # A group that is connected already needs no further pair.
        if groups.joined(first, second):
            continue
        kinds = (_confirm(clips[first], clips[second], turn) for turn in _most_frequent(proposals))
        kind = next((kind for kind in kinds if kind is not None), None)
        if kind is None:
            small = clips[first].small, clips[second].small
            bits = min(_distance(small[0][i], small[1][j], turn) for i, j, turn in proposals)
            rest.append(LookAlike(first, second, bits))
            continue
        groups.join(first, second)
        copies.append(Copy(first, second, kind))
    look_alikes = [pair for pair in rest if pair.distance <= distance and not groups.joined(pair.first, pair.second)]
    return SearchResult(copies, sorted(look_alikes, key=lambda pair: (pair.distance, pair.first, pair.second)))


def _propose(
    clips: Sequence[ScannedClip], splits: Sequence[int] | None = None
) -> dict[tuple[int, int], list[_Proposal]]:
    """Find pairs of clips with frames that resemble each other."""
    most = min(_PROPOSING, max(_LEAST, _ALTOGETHER // max(1, len(clips))))
    places = []
    for row, clip in enumerate(clips):
        count = min(most, len(clip.small))
        chosen = ((np.arange(count) + 0.5) * len(clip.small) / max(1, count)).astype(np.int64)
        places += [(row, frame) for frame in chosen[with_contrast(clip.small[chosen])].tolist()]
    if not places:
        return {}
    small = np.stack([clips[row].small[frame] for row, frame in places])
    rows = np.array([row for row, _ in places])
    found: dict[tuple[int, int], list[_Proposal]] = {}
    apart = rows if splits is None else np.array(splits)[rows]
    starts = np.searchsorted(apart, apart, side="right")
    blocks = similar_pairs(small, starts) if len(small) <= _FEW else pairs_of_groups(small, starts, rows)
    for block in tqdm(blocks, "searching", unit="block", leave=False, disable=None):
        for (i, j), turn in zip(block.ends(), block.orientation.tolist(), strict=True):
            (first, frame), (second, other) = places[i], places[j]
            found.setdefault((first, second), []).append((frame, other, turn))
    return found


def _strongest(pairs: Mapping[tuple[int, int], list[_Proposal]]) -> dict[tuple[int, int], list[_Proposal]]:
    """Select the pairs of each clip that most frames propose."""
    order = sorted(pairs, key=lambda pair: (-len(pairs[pair]), pair))
    number: Counter[int] = Counter()
    chosen = {}
    for pair in order:
        if min(number[row] for row in pair) < _PARTNERS:
            chosen[pair] = pairs[pair]
            number.update(pair)
    return chosen


def _most_frequent(proposals: Sequence[_Proposal]) -> list[int]:
    return [turn for turn, _ in Counter(turn for _, _, turn in proposals).most_common(_TRIED)]


def _confirm(one: ScannedClip, other: ScannedClip, turn: int) -> str | None:
    """Describe the difference of the second clip from the first; None where they are not copies.

    Args:
        one: The first clip.
        other: The second.
        turn: Orientation of the first in which it resembles the second.
    """
    a = oriented_descriptors(descriptors(one.small))[:, turn].numpy()
    b = descriptors(other.small).flatten(1).numpy()
    shift = _best_shift(one, a, other, b)
    if shift is None:
        return None
    i, j = _matched(one, other, shift)
    if not _moves_alike(a[i], b[j]):
        return None
    clear = np.intersect1d(with_contrast(one.small[i]), with_contrast(other.small[j]))
    if not len(clear):
        return None
    chosen = clear[np.unique(np.linspace(0, len(clear) - 1, _ALIGNED).round().astype(np.int64))]
    small = np.concatenate([one.small[i[chosen]], other.small[j[chosen]]])
    rows = np.arange(len(chosen))
    pairs = dataclasses.replace(
        orient_pairs(small, rows, rows + len(rows)), orientation=np.full(len(rows), turn, dtype=np.int64)
    )
    aligned, agree = compare_pairs(small, pairs)
    agree &= _is_steady(aligned)
    if agree.mean() < _AGREEING or float(aligned.detail[agree].mean()) < _DETAIL:
        return None
    kinds = Counter(describe_copy(pairs, aligned, index).kind for index in np.flatnonzero(agree).tolist())
    in_time = _describe_times(one, other, shift)
    return kinds.most_common(1)[0][0] + (f", {in_time}" if in_time else "")


def _is_steady(aligned: Alignment) -> npt.NDArray[np.bool_]:
    """Find the frames whose scale and shift are those of most frames: a crop is the same throughout a clip."""
    geometry = torch.cat([aligned.scale, aligned.shift], 1)
    steady: npt.NDArray[np.bool_] = ((geometry - geometry.median(0).values).abs().amax(1) <= _STEADY).numpy()
    return steady


def _best_shift(one: ScannedClip, a: Floats, other: ScannedClip, b: Floats) -> float | None:
    """Find the seconds from a time of the first clip to that of the second at which their frames are most alike.

    Args:
        one: The first clip.
        a: Descriptors of its frames, shape ``(F, 64)``.
        other: The second.
        b: Descriptors of its frames, shape ``(G, 64)``.

    Returns:
        None where no shift gives the clips enough in common.
    """
    common = _COMMON * min(one.duration, other.duration)
    step = min(_step(one), _step(other))
    low, high = common - one.duration, other.duration - common
    similar = a @ b.T
    best, found = -np.inf, None
    # From no shift on, which is best among equals: clips without motion.
    for shift in sorted(step * np.arange(np.floor(low / step), np.ceil(high / step) + 1), key=abs):
        i, j = _matched(one, other, shift)
        # A frame of the sparser clip may match two of the other.
        if len(np.unique(j)) < max(_MATCHED, common / max(_step(one), _step(other)) - 1):
            continue
        score = float(similar[i, j].mean())
        if score > best + 1e-6:
            best, found = score, float(shift)
    return found


def _step(clip: ScannedClip) -> float:
    """Return the mean seconds between thumbnails."""
    return clip.duration / max(1, len(clip.times))


def _matched(one: ScannedClip, other: ScannedClip, shift: float) -> tuple[Integers, Integers]:
    """Return frames of both clips that show the same time after a shift."""
    wanted = one.times + shift
    right = np.searchsorted(other.times, wanted).clip(1, max(1, len(other.times) - 1))
    right = np.minimum(right, len(other.times) - 1)
    left = np.maximum(right - 1, 0)
    nearest = np.where(np.abs(other.times[left] - wanted) <= np.abs(other.times[right] - wanted), left, right)
    within = np.flatnonzero(np.abs(other.times[nearest] - wanted) <= 0.75 * min(_step(one), _step(other)))
    return within, nearest[within]


def _moves_alike(a: Floats, b: Floats) -> bool:
    """Check whether the motion agrees; true where nothing moves.

    Args:
        a: Descriptors of frames, shape ``(F, 64)``.
        b: Descriptors of the other clip's frames at the same times, shape ``(F, 64)``.
    """
    a, b = a - a.mean(0), b - b.mean(0)
    own, others = float(np.square(a).sum()), float(np.square(b).sum())
    if max(own, others) < _STILL * len(a):
        return True
    agreement = float((a * b).sum())
    return agreement > _MOVING * float(np.sqrt(own * others))


def _describe_times(one: ScannedClip, other: ScannedClip, shift: float) -> str:
    """Describe which part of the first clip the second is."""
    # The second clip in times of the first.
    start, end = -shift, other.duration - shift
    slack = 1.5 * max(_step(one), _step(other)) + 0.02 * max(one.duration, other.duration)
    later, sooner = start > slack, end < one.duration - slack
    earlier, longer = start < -slack, end > one.duration + slack
    if (later or sooner) and not (earlier or longer):
        return "a part"
    if (earlier or longer) and not (later or sooner):
        return "longer"
    return "overlapping in time" if later or earlier else ""


def _distance(image: Thumbnails, other: Thumbnails, turn: int) -> int:
    """Return the bits in which the hashes of two frames differ, the first in an orientation."""
    both = torch.from_numpy(np.stack([orient(image[None], turn)[0], other])).float() / 255
    first, second = perceptual_hashes(both).tolist()
    return int(first ^ second).bit_count()
