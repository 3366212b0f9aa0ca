"""Copies of clips: found whatever was done to them; clips of one scene with other motion are none."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.tiers import fast_first, in_turn
from vitrail.data.candidate_pairs import ORIENTATIONS, orient
from vitrail.data.video import copies
from vitrail.data.video.copies import find_clip_copies
from vitrail.data.video.scan import ScannedClip

FRAMES, RATE = 40, 10.0


def _texture(rng, side, cells):
    small = torch.from_numpy(rng.uniform(0, 1, (1, 1, cells, cells))).float()
    return F.interpolate(small, size=(side, side), mode="bicubic")[0, 0].numpy()


def footage(scene, way, frames=FRAMES):
    """Render frames ``(frames, 64, 64)``, 0..1: a patch that wanders over a still scene.

    Args:
        scene: Seed of the scene and the patch.
        way: Seed of the way.
        frames: How many.
    """
    rng = np.random.default_rng(scene)
    background, patch = _texture(rng, 64, 12), _texture(rng, 28, 8)
    knots = np.random.default_rng(1000 + way).uniform(0, 36, (5, 2))
    times = np.linspace(0, 4, frames)
    rows, columns = (np.interp(times, range(5), knots[:, axis]).round().astype(int) for axis in (0, 1))
    found = np.repeat(background[None], frames, axis=0)
    for frame, row, column in zip(found, rows, columns, strict=True):
        frame[row : row + 28, column : column + 28] = patch
    return found.clip(0, 1)


def clip(frames, rate=RATE, seed=0):
    """Thumbnails of frames, with the noise of a codec."""
    noise = np.random.default_rng(seed).normal(0, 0.01, frames.shape)
    pixels = torch.from_numpy((frames + noise).clip(0, 1)).float()[:, None]
    small = F.interpolate(pixels, size=(32, 32), mode="bilinear", antialias=True)
    small = (small[:, 0] * 255).round().to(torch.uint8).numpy()
    return ScannedClip(np.arange(len(frames)) / rate, small, len(frames) / rate, rate)


def _cropped(frames):
    return F.interpolate(torch.from_numpy(frames[None, :, 2:62, 3:63]), size=(64, 64), mode="bilinear")[0].numpy()


CHANGES = {
    "recompressed or scaled": lambda frames: clip(frames, seed=1),
    "brighter": lambda frames: clip(frames * 1.15 + 0.05, seed=1),
    "cropped": lambda frames: clip(_cropped(frames), seed=1),
    "at half the rate": lambda frames: clip(frames[::2], RATE / 2),
    "a part": lambda frames: clip(frames[9:31]),
    "the first part": lambda frames: clip(frames[:25]),
    "mirrored": lambda frames: clip(frames[:, :, ::-1]),
}


@pytest.mark.parametrize(("change", "scene"), in_turn(CHANGES, range(3)))
def test_copies_are_found(scene, change):
    frames = footage(scene, way=scene)
    others = [clip(footage(10 + i, way=10 + i)) for i in range(3)]
    found = find_clip_copies([*others, clip(frames), CHANGES[change](frames)])
    (copy,) = found.copies
    assert (copy.first, copy.second) == (3, 4)
    kind = {"at half the rate": "recompressed or scaled", "the first part": "a part"}.get(change, change)
    assert kind in copy.kind
    assert ("a part" in copy.kind) == ("part" in change)
    assert copy.reversed().endswith("longer") == ("part" in change)


@pytest.mark.parametrize("turn", range(1, 8))
def test_turned_and_mirrored_copies_are_found(turn):
    original = clip(footage(20, way=20))
    turned = ScannedClip(original.times, np.ascontiguousarray(orient(original.small, turn)), original.duration, RATE)
    (copy,) = find_clip_copies([original, turned]).copies
    assert copy.kind == ORIENTATIONS[turn]


def test_a_part_of_another_part_overlaps():
    frames = footage(21, way=21)
    (copy,) = find_clip_copies([clip(frames[:28]), clip(frames[10:])]).copies
    assert copy.kind == "recompressed or scaled, overlapping in time"


NO_COPIES = {
    "other motion in the scene": lambda scene: clip(footage(scene, way=scene + 50)),
    "played backwards": lambda scene: clip(footage(scene, way=scene)[::-1]),
    "another time of the scene": lambda scene: clip(footage(scene, way=scene, frames=80)[45:]),
    "another scene": lambda scene: clip(footage(scene + 30, way=scene)),
}


@pytest.mark.parametrize(("other", "scene"), in_turn(NO_COPIES, [0, 2, 3, 4]))
def test_other_footage_of_a_scene_is_no_copy(scene, other):
    first = footage(scene, way=scene, frames=80)[:35] if "time" in other else footage(scene, way=scene)
    found = find_clip_copies([clip(first), NO_COPIES[other](scene)], distance=64)
    assert not found.copies
    if other != "another scene":
        assert [(pair.first, pair.second) for pair in found.look_alikes] == [(0, 1)]


def _sparse(frames, seconds):
    """A long clip, of which there are as many thumbnails as of a short one."""
    return dataclasses.replace(clip(frames), times=np.arange(len(frames)) * seconds / len(frames), duration=seconds)


@pytest.mark.parametrize(("seconds", "seed"), in_turn([600.0, 300.0], range(2)))
def test_one_frame_in_common_is_no_copy(seconds, seed):
    """Of 4 s of a long clip there is a thumbnail or none; with other motion no shift in time makes more of them."""
    order = np.random.default_rng(seed).permutation(64)
    long = _sparse(footage(seed, way=seed + 50, frames=64)[order], seconds)
    found = find_clip_copies([clip(footage(seed, way=seed)), long], distance=64)
    assert not found.copies
    assert [(pair.first, pair.second) for pair in found.look_alikes] == [(0, 1)]


@pytest.mark.parametrize(("frames", "confirmed"), [(3, False), (6, True)])
def test_copies_of_few_frames_are_look_alikes(frames, confirmed):
    short = footage(7, way=7, frames=frames)
    found = find_clip_copies([clip(short), clip(short, seed=1)])
    assert (bool(found.copies), bool(found.look_alikes)) == (confirmed, not confirmed)


def test_still_clips_are_copies_of_their_own_picture_alone():
    pictures = [np.repeat(footage(seed, way=0, frames=1), 12, axis=0) for seed in (5, 6)]
    found = find_clip_copies([clip(pictures[0]), clip(pictures[1]), clip(pictures[0], seed=2)])
    assert [(copy.first, copy.second) for copy in found.copies] == [(0, 2)]


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_clips_without_contrast_are_compared_with_nothing(level):
    empty = ScannedClip(np.arange(9.0), np.full((9, 32, 32), int(255 * level), dtype=np.uint8), 9.0, 1.0)
    found = find_clip_copies([empty, empty, clip(footage(0, way=0))])
    assert not found.copies
    assert not found.look_alikes


def test_no_frames_at_all():
    nothing = ScannedClip(np.zeros(0), np.zeros((0, 32, 32), dtype=np.uint8), 1.0, 1.0, "damaged")
    assert find_clip_copies([nothing, nothing]).copies == []


def _mixed(seed, scenes, number=6):
    """Clips of a few scenes, a part of them with copies."""
    rng = np.random.default_rng(seed)
    clips = []
    for i in range(number):
        frames = footage(
            1000 * seed + int(rng.integers(scenes)), int(rng.integers(40)), frames=int(rng.integers(12, 24))
        )
        clips.append(clip(frames, seed=i))
        if rng.random() < 0.4:
            clips.append(list(CHANGES.values())[int(rng.integers(4))](frames))
    return [clips[i] for i in rng.permutation(len(clips))]


@pytest.mark.parametrize(("seed", "scenes"), fast_first([(0, 2), (2, 6), (1, 4), (3, 1000)], 2))
def test_the_search_by_hashes_finds_what_the_comparison_of_all_finds(monkeypatch, seed, scenes):
    clips = _mixed(seed, scenes)
    every = copies._propose(clips)
    found = find_clip_copies(clips, distance=12)
    assert found.copies
    monkeypatch.setattr(copies, "_FEW", 0)
    assert {pair: sorted(own) for pair, own in copies._propose(clips).items()} == {
        pair: sorted(own) for pair, own in every.items()
    }
    assert find_clip_copies(clips, distance=12) == found


@pytest.mark.parametrize(("few", "seed"), in_turn([0, 4096], range(2)))
def test_of_splits_those_that_differ_are_compared(monkeypatch, seed, few):
    monkeypatch.setattr(copies, "_FEW", few)
    frames, other = footage(seed, way=seed), footage(seed + 5, way=seed + 5)
    clips = [clip(frames), clip(frames, seed=1), clip(other), clip(other, seed=1), clip(frames, seed=2)]
    found = find_clip_copies(clips, splits=[0, 0, 1, 1, 2])
    assert {(copy.first, copy.second) for copy in found.copies} == {(0, 4), (1, 4)}
    assert not find_clip_copies(clips, splits=[0] * 5).copies
