"""Copies made on purpose are found and described; other images are not."""

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits

from tests.tiers import fast_first
from vitrail.data import near_duplicates
from vitrail.data.candidate_pairs import ORIENTATIONS, orient, similar_pairs
from vitrail.data.near_duplicates import find_copies, find_copies_across_splits
from vitrail.data.perceptual_hash import DisjointSets
from vitrail.data.thumbnails import thumbnail_of_stored, thumbnails

TURNS = {
    "turned 90": Image.Transpose.ROTATE_90,
    "turned 180": Image.Transpose.ROTATE_180,
    "turned 270": Image.Transpose.ROTATE_270,
    "mirrored": Image.Transpose.FLIP_LEFT_RIGHT,
    "mirrored and turned 180": Image.Transpose.FLIP_TOP_BOTTOM,
}


def photo(seed, size=(120, 160)):
    """Shapes of several sizes, as photos have them."""
    rng = np.random.default_rng(seed)
    result = np.zeros((*size, 3))
    for knots, weight in ((5, 90), (11, 45), (23, 25)):
        field = rng.normal(0, 1, (knots, knots, 3))
        planes = [Image.fromarray(field[..., k].astype(np.float32)).resize(size[::-1], Image.Resampling.BICUBIC)
                  for k in range(3)]  # fmt: skip
        result += weight * np.stack([np.asarray(plane) for plane in planes], -1)
    return Image.fromarray(np.clip(120 + 0.5 * result, 0, 255).astype(np.uint8))


def recompressed(image, rng):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(rng.integers(50, 91)))
    return Image.open(io.BytesIO(buffer.getvalue()))


def cropped(image, rng):
    """Up to 5 % off each side."""
    left, top, right, bottom = rng.uniform(0.01, 0.05, 4)
    width, height = image.size
    return image.crop(
        (round(left * width), round(top * height), round((1 - right) * width), round((1 - bottom) * height))
    )


def scaled(image, rng):
    factor = float(np.exp(rng.uniform(np.log(0.5), np.log(2))))
    return image.resize([round(factor * side) for side in image.size], Image.Resampling.BICUBIC)


def brighter(image, rng):
    gain = rng.choice([rng.uniform(0.8, 0.9), rng.uniform(1.1, 1.25)])
    return Image.fromarray(np.clip(np.asarray(image, dtype=float) * gain, 0, 255).astype(np.uint8))


def turned(image, rng):
    return image.transpose(list(Image.Transpose)[rng.integers(7)])


def small(images):
    arrays = [np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.BOX)) for image in images]
    return thumbnails(torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255)


@pytest.mark.fast_cases("0-brighter")
@pytest.mark.parametrize("change", [turned, recompressed, cropped, scaled, brighter])
@pytest.mark.parametrize("seed", range(2))
def test_copies_are_found_and_nothing_else(change, seed):
    rng = np.random.default_rng(seed)
    originals = [photo(1000 * seed + i) for i in range(30)]
    made = [recompressed(change(original, rng), rng) for original in originals[:20]]
    found = find_copies(small([*originals, *made]))
    assert {(copy.first, copy.second) for copy in found.copies} == {(i, 30 + i) for i in range(20)}


@pytest.mark.fast_cases("8")
@pytest.mark.parametrize("size", [8, 40])
def test_digits_of_any_size_are_no_copies_of_each_other(size):
    """Scikit-learn's digits are 8 x 8; enlarged, they have no more detail."""
    digits = torch.from_numpy(load_digits().images[:150]).float()[:, None] / 16
    images = F.interpolate(digits, size=(size, size), mode="bilinear")
    assert find_copies(thumbnails(images)).copies == []


@pytest.mark.parametrize("kind", TURNS)
@pytest.mark.fast_cases("turned 180", "mirrored and turned 180")
def test_the_orientation_is_named(kind):
    original = photo(3)
    [copy] = find_copies(small([original, original.transpose(TURNS[kind])])).copies
    assert copy.kind == kind
    [other] = find_copies(small([original.transpose(TURNS[kind]), original])).copies
    assert copy.reversed() == other.kind


@pytest.mark.parametrize("orientation", range(8))
def test_orientations_are_those_of_pillow(orientation):
    pixels = np.arange(16, dtype=np.uint8).reshape(4, 4)
    image = Image.fromarray(pixels)
    name = ORIENTATIONS[orientation]
    if "mirrored" in name:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    degrees = int(name.split()[-1]) if "turned" in name else 0
    assert np.array_equal(orient(pixels[None], orientation)[0], np.asarray(image.rotate(degrees)))


def test_what_differs_is_named():
    original = photo(8)
    crop = original.crop((8, 6, 160, 120))
    dark = Image.fromarray((np.asarray(original) * 0.8).astype(np.uint8))
    for changed, kind in ((original, "recompressed or scaled"), (crop, "cropped"), (dark, "darker")):
        assert [copy.kind for copy in find_copies(small([original, changed])).copies] == [kind]


@pytest.mark.parametrize("seed", range(3))
def test_gray_copies_of_colour_images_are_found(seed):
    rng = np.random.default_rng(seed)
    colour = [
        Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)).resize((64, 64), Image.Resampling.BICUBIC)
        for _ in range(12)
    ]
    gray = [image.convert("L").convert("RGB").rotate(90 * (i % 4)) for i, image in enumerate(colour)]
    found = find_copies(small(colour + gray)).copies
    assert {(copy.first, copy.second) for copy in found} == {(i, i + 12) for i in range(12)}


def test_candidates_are_those_of_brute_force():
    """Every pair and orientation one by one, with SciPy's cosine transform."""
    from scipy.fft import dctn

    rng = np.random.default_rng(2)
    images = small([photo(i) for i in range(12)])
    images = np.concatenate([images, np.stack([orient(images[i : i + 1], rng.integers(8))[0] for i in range(12)])])
    weight = np.hypot(*np.mgrid[:8, :8])

    def described(image):
        waves = (dctn(image / 255, norm="ortho")[:8, :8] * weight).ravel()
        return waves / np.linalg.norm(waves)

    wanted = set()
    for i in range(24):
        for j in range(i + 1, 24):
            scores = [described(orient(images[i : i + 1], o)[0]) @ described(images[j]) for o in range(8)]
            if max(scores) > 0.99:
                wanted.add((i, j, int(np.argmax(scores))))
    found = set()
    for block in similar_pairs(images, np.arange(1, 25)):
        found |= set(zip(block.first.tolist(), block.second.tolist(), block.orientation.tolist(), strict=True))
    assert len(wanted) == 12
    assert wanted <= found


def test_only_pairs_of_different_splits_are_compared():
    original = photo(4)
    images = small([original, original.rotate(180), photo(5), original.rotate(90, expand=True)])
    found = find_copies(images, splits=["val", "train", "train", "train"])
    assert {frozenset((c.first, c.second)) for c in found.copies} <= {frozenset((0, 1)), frozenset((0, 3))}
    assert len(found.copies) == 2
    assert find_copies(images, splits=["train"] * 4).copies == []


def test_many_copies_of_one_image_are_one_group():
    """Pairs inside a group that is connected already are not compared again."""
    rng = np.random.default_rng(0)
    pixels = np.asarray(photo(6).convert("L").resize((32, 32)), dtype=float)
    images = np.clip(pixels + rng.normal(0, 1, (80, 32, 32)), 0, 255).astype(np.uint8)
    found = find_copies(images)
    assert len(found.copies) == 79
    assert found.look_alikes == []


def test_images_without_contrast_have_no_copies():
    assert find_copies(np.full((5, 32, 32), 90, dtype=np.uint8)).copies == []
    assert find_copies(np.zeros((0, 32, 32), dtype=np.uint8)).copies == []


@pytest.mark.fast_cases("recompressed")
@pytest.mark.parametrize("change", [turned, recompressed, scaled, brighter])
def test_the_quick_search_finds_copies_across_splits(change):
    rng = np.random.default_rng(1)
    originals = [photo(500 + i) for i in range(40)]
    made = [recompressed(change(original, rng), rng) for original in originals[:20]]
    splits = ["train"] * 40 + ["val", "test"] * 10
    groups = find_copies_across_splits(small([*originals, *made]), splits)
    assert [groups.root(40 + i) for i in range(20)] == list(range(20))
    assert [groups.root(i) for i in range(40)] == list(range(40))


def test_the_quick_search_joins_equal_images():
    original = photo(9)
    images = small([original, photo(10), original, original])
    groups = find_copies_across_splits(images, ["train", "val", "val", "train"])
    assert [groups.root(i) for i in range(4)] == [0, 1, 0, 0]


def rows_of_a_crop(seed, tiles=75, fields=6, side=48, noise=0.06, turned=True):
    """Tiles of drilled rows, five bands of 16 bits: each field has its angle and spacing, each tile its phase."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side].astype(float)
    angle = rng.uniform(0, np.pi, fields) if turned else np.zeros(fields)
    spacing = rng.uniform(5, 9, fields) if turned else np.full(fields, 8.0)
    images = []
    for i in range(tiles):
        field, vigour = i % fields, 1 - 0.2 * rng.integers(3)
        along = x * np.cos(angle[field]) + y * np.sin(angle[field])
        rows = np.cos(2 * np.pi * (along / spacing[field] + rng.uniform())).clip(-0.3)
        bands = [low + height * vigour * rows + rng.normal(0, noise * abs(height) + 40, rows.shape)
                 for low, height in ((600, 300), (900, 500), (800, -300), (1500, 1500), (2500, 4000))]  # fmt: skip
        images.append(np.stack(bands).clip(0, 65535).astype(np.uint16))
    return np.stack([thumbnail_of_stored(image, None) for image in images])


@pytest.mark.fast_cases("1-64-0.1-True")
@pytest.mark.parametrize(
    ("seed", "side", "noise", "turned"),
    [(0, 48, 0.06, False), (1, 64, 0.1, True), (2, 96, 0.2, False)],
)
def test_tiles_of_regular_rows_are_no_copies(seed, side, noise, turned):
    images = rows_of_a_crop(seed, side=side, noise=noise, turned=turned)
    assert find_copies(images).copies == []
    groups = find_copies_across_splits(images, ["train", "val", "test"] * 25)
    assert len({groups.root(i) for i in range(len(images))}) == len(images)


@pytest.mark.parametrize("seed", fast_first(range(2), 1))
def test_copies_of_regular_rows_are_found(seed):
    images = rows_of_a_crop(seed)
    made = np.concatenate([orient(images[i : i + 1], i % 8) for i in range(20)])
    dark = (made * 0.85).astype(np.uint8)
    found = find_copies(np.concatenate([images, dark])).copies
    assert {(copy.first, copy.second) for copy in found} == {(i, 75 + i) for i in range(20)}


@pytest.mark.parametrize(("seed", "number", "largest"), fast_first([(0, 20, 17), (0, 100, 26), (1, 100, 26)], 1))
def test_images_that_each_resemble_the_next_are_not_one_group(monkeypatch, seed, number, largest):
    """Discs on black: a crop of one is the next larger one."""
    monkeypatch.setattr(near_duplicates, "_SMALL_CHAIN", number // 2)
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:64, :64]
    radius = np.linspace(8, largest, number)
    images = [
        Image.fromarray(((np.hypot(y - cy, x - cx) < r) * rng.uniform(150, 255)).astype(np.uint8))
        for r, (cy, cx) in zip(radius, rng.uniform(28, 36, (number, 2)), strict=True)
    ]
    groups = DisjointSets(range(number))
    for copy in find_copies(small(images)).copies:
        groups.join(copy.first, copy.second)
    spans = {}
    for i in range(number):
        spans.setdefault(groups.root(i), []).append(radius[i])
    assert max(max(own) / min(own) for own in spans.values()) < 1.7


def test_a_copy_stays_in_a_chain_with_its_original():
    """A landscape photographed in steps: each view overlaps the next by 95 %; one of them lies there twice."""
    wide = photo(12, (120, 320))
    views = [wide.crop((left, 0, left + 160, 120)) for left in range(0, 160, 10)]
    groups = DisjointSets(range(len(views) + 1))
    for copy in find_copies(small([*views, views[7].rotate(180)])).copies:
        groups.join(copy.first, copy.second)
    assert groups.joined(7, len(views))
    assert not groups.joined(0, len(views) - 1)
