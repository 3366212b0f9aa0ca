"""Recognition of copies, masks, video frames and bands by patterns of file names.

Plain numbering (``img_1``, ``img_2``) makes no family. Findings are proposed, never applied: a line names the
setting that keeps a family in one split.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vitrail.data.band_files import natural_order
from vitrail.data.image_errors import head
from vitrail.data.sources.folder_names import MASK_MARK, are_masks, parse_split
from vitrail.errors import count_of, plural

# Words of programs that change images, at the end of a stem or, some, before it.
_AUGMENTED = r"aug|augm|augment|augmented|augmentation"
_CHANGED = (
    r"flip|flipped|[hv]flip|lrflip|udflip|fliplr|flipud|flip[hvxy]|mirror|mirrored|rot|rotate|rotated|rotation|blur|"
    r"blurred|noise|noisy|bright|brightness|brighter|darker|contrast|zoom|zoomed|shear|sheared|shift|shifted|translate|"
    r"translated|jitter|elastic|hue|saturation|gamma|sharpen|crop|cropped|cutout|edited|"
    r"(?:new)?\d{1,3}deg(?:flip(?:lr|ud))?"
)
_SIDE = r"(?:[_-]?(?:lr|ud|horizontal|vertical|left|right|[hvxy]))?"
_NUMBERS = r"(?:[_ -]?-?\d+)*"
# Required text of a mark, and the mark: in each the copies' own numbers, never the stem's. ``WORDS`` stands for the
# words found.
_MARKS = {
    "augmented": (("aug",), rf"[ _.-]+(?:WORDS){_NUMBERS}", _AUGMENTED),
    "changed": (
        ("flip", "mirror", "rot", "blur", "nois", "bright", "darker", "contrast", "zoom", "shear", "shift", "transl",
         "jitter", "elastic", "hue", "satur", "gamma", "sharpen", "crop", "cutout", "edited", "deg"),
        rf"[ _.-]+(?:WORDS){_SIDE}{_NUMBERS}",
        _CHANGED,
    ),
    # Roboflow: STEM_jpg.rf.HASH.
    "roboflow": ((".rf.",), r"(?:[_.](?:jpe?g|png|bmp|webp))?\.rf\.\w{8,}", ""),
    # File managers.
    "copy": (("cop", "kop"), r"(?: - |[ _-])(?:WORDS)(?:[ _-]?\(?\d+\)?)?", "copy|copie|kopie|copia"),
    "numbered": ((")", "~"), r"(?: ?\(\d+\)|~\d{1,2})", ""),
    # Augmentor: CLASS_original_NAME.jpg_UUID.jpg.
    "augmentor": (("_original_",), r"\.[a-z]{3,4}_[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", ""),
    # Keras' ImageDataGenerator: PREFIX_0_1234, the number at random.
    "keras": (("_0_",), r"_0_\d{1,7}", ""),
}  # fmt: skip
_BEFORE = {
    "augmented before": (("aug",), rf"(?:WORDS){_NUMBERS}[ _-]+", _AUGMENTED),
    "changed before": (_MARKS["changed"][0], rf"(?:WORDS){_SIDE}{_NUMBERS}[ _-]+", _CHANGED),
    "copy before": (("copy of ",), r"copy of ", ""),
}
# More numbered files than these beside one without a number were numbered, not copied.
_MOST_COPIES = 10
# Families that are all of consecutive numbers were numbered, too.
_DENSE = 0.5
# Beside names of other months "aug" is one, too.
_MONTH = re.compile(r"(?<![a-z])(?:jan|feb|mar|apr|jun|jul|sept?|oct|nov|dec)(?![a-z])")
_MASK = re.compile(rf"(?i)^(?P<stem>.+?){MASK_MARK}")
_MASK_WORDS = ("mask", "seg", "label", "annot", "gt")
_FRAME = re.compile(r"(?i)^(?:frame|frm|img|image|f)?[ _-]?\d{3,}$")
_FRAMES_AT_LEAST = 3
_SUFFIX = r"(?:\.[^./]{1,5})?$"
_ENDING = re.compile(r"\.[^./]{1,5}$")


@dataclass(frozen=True)
class Families:
    """Images whose names mark them as copies of one another.

    Attributes:
        family: Family of each image, its path without the marks; None where it has no copies.
        pattern: A ``data.splitting.group`` under which each family, and each image without one, is a group.
    """

    family: list[str | None]
    pattern: str

    def __bool__(self) -> bool:
        return any(name is not None for name in self.family)


def find_families(keys: Sequence[str]) -> Families:
    """Find copies by common marks in their names.

    Args:
        keys: Paths of the images.
    """
    # Copies may lie in another split than their original.
    lower = [f"{_without_split(key)}/{key.rpartition('/')[2]}".lstrip("/").lower() for key in keys]
    end = [mark for kind in _MARKS if (mark := _used(kind, lower)) is not None]
    start = [mark for kind in _BEFORE if (mark := _used_before(kind, lower)) is not None]
    if not end and not start:
        return Families([None] * len(keys), "")
    # A mark cut off at the front lies in the middle of a path: the group is then a name without its folders.
    stem = f"(?:^|/)(?:{'|'.join(start)})?([^/]+?)" if start else "^(.+?)"
    stripped = f"(?i){stem}" + (f"(?:{'|'.join(end)})*" if end else "") + _SUFFIX
    compiled = re.compile(stripped)
    stems = []
    for key in keys:
        found = compiled.search(key)
        assert found is not None, "it matches every path"
        name = found.group(1).rsplit("/", 1)[-1]
        stems.append(f"{_without_split(key)}/{name}")
    counts = Counter(stems)
    return Families([stem if counts[stem] > 1 else None for stem in stems], stripped)


def _used(kind: str, keys: Sequence[str]) -> str | None:
    """Return the pattern of a mark with the words found; None if it marks no copies in these paths.

    Args:
        kind: Kind of the mark.
        keys: The paths in lower case.
    """
    hints, mark, words = _MARKS[kind]
    hinted = _containing(hints, keys)
    if not hinted:
        return None
    # Marks of several kinds may follow one another: the stem is what lies before all of them.
    others = f"(?:{'|'.join(mark.replace('WORDS', words) for _, mark, words in _MARKS.values())})*"
    own = mark.replace("WORDS", f"(?P<word>{words})")
    pattern, each = re.compile(f"^(.+?){others}?({own}){others}{_SUFFIX}"), re.compile(f"{own}(?![a-z])")
    found: dict[str, list[str]] = defaultdict(list)
    used: set[str] = set()
    for key in hinted:
        match = pattern.match(key)
        if match is not None:
            found[match.group(1)].append(match.group(2))
            used |= {part["word"] for part in each.finditer(key, match.end(1))} if words else set()
    if not found:
        return None
    stems = {_ENDING.sub("", key) for key in keys}
    beside = [stem for stem, marks in found.items() if stem in stems and len(marks) <= _MOST_COPIES]
    several = [marks for marks in found.values() if len(marks) > 1]
    if kind == "numbered" and not beside:
        return None
    # One stem with numbers is a series; several in one class, each with numbers of its own, are copies.
    stems_of = Counter(stem.partition("/")[0] for stem, marks in found.items() if len(marks) > 1)
    if kind in ("augmented", "changed", "keras") and not beside and max(stems_of.values(), default=0) < 2:
        return None
    if kind == "augmented" and any(_MONTH.search(key) for key in keys):
        return None
    if kind == "keras":
        groups = [sorted(int(mark.rsplit("_", 1)[1]) for mark in marks) for marks in several]
        spread = [numbers for numbers in groups if len(numbers) < _DENSE * (numbers[-1] - numbers[0] + 1)]
        if len(spread) <= len(groups) / 2:
            return None
    return mark.replace("WORDS", "|".join(sorted(used, key=lambda word: (-len(word), word))))


def _used_before(kind: str, keys: Sequence[str]) -> str | None:
    """Return the same for a mark before the stem, where the bare stem must be another image's."""
    hints, mark, words = _BEFORE[kind]
    hinted = _containing(hints, keys)
    if not hinted:
        return None
    pattern = re.compile(f"^(.*/)?({mark.replace('WORDS', f'(?P<word>{words})')})([^/]+){_SUFFIX}")
    stems = {_ENDING.sub("", key) for key in keys}
    used: set[str] = set()
    for key in hinted:
        match = pattern.match(_ENDING.sub("", key))
        if match is not None and (match.group(1) or "") + match.groups()[-1] in stems:
            used.add(match["word"] if words else "")
    return mark.replace("WORDS", "|".join(sorted(used))) if used else None


def _containing(hints: Sequence[str], keys: Sequence[str]) -> list[str]:
    """Return the keys with one of the hints in them: most sets have none, and searches for patterns take longer."""
    return [key for key in keys if any(hint in key for hint in hints)]


def _without_split(key: str) -> str:
    """Return the folder of a path without folders of splits: copies may lie in several splits."""
    folder = key.rpartition("/")[0]
    first, _, rest = folder.partition("/")
    return rest if parse_split(first) else folder


def describe_families(keys: Sequence[str], splits: Mapping[str, Sequence[int]], *, given: bool = False) -> list[str]:
    """Describe names that mark copies, frames or masks, one line each.

    Args:
        keys: Paths of the images.
        splits: Indices of the images of each split.
        given: Whether the data brings its split, which no setting changes.

    Returns:
        Lines on families of copies and frames of clips in several splits, and on masks among the images.
    """
    lines = []
    families = find_families(keys)
    if families:
        divided, number = _divided(families.family, splits)
        if divided:
            copies = sum(name is not None for name in families.family)
            lie = "lies" if divided == 1 else "lie"
            lines.append(
                f"{divided:,} of {plural(number, 'family', 'families')} of names ({copies:,} images whose names are "
                f"those of copies, {_example(keys, families.family)}) {lie} in several splits: "
                + _remedy(families.pattern, given)
            )
    clips = _clips(keys)
    divided, number = _divided(clips, splits)
    if divided:
        lines.append(
            f"{divided:,} of {plural(number, 'folder')} of consecutive frames ({_example(keys, clips)}) "
            f"{'lies' if divided == 1 else 'lie'} in several splits: " + _remedy("^(.*)/[^/]+$", given)
        )
    masks = _masks(keys)
    if masks:
        lines.append(
            f"{count_of(len(masks), len(keys), 'image', 'is', 'are')} named like masks of others or in folders named "
            f"so ({head(masks, 2)}): they would be trained on as images; move them away if they are masks"
        )
    return lines


# Marks of bands: "Ch3", "B02", "nir"; a number alone at the end of TIFF files' names.
_EDGE, _OTHER_EDGE = r"(?<![A-Za-z0-9])", r"(?![A-Za-z0-9])"
_BAND_WORDS = r"red_?edge|red|green|blue|nir|swir\d?|lwir|tir|thermal|dapi|gfp|pan|coastal|cirrus|gre|reg|re|r|g|b"
_BAND_MARKS = (
    re.compile(rf"(?i){_EDGE}(?:ch|channel|band|b|c)[_-]?\d{{1,2}}a?{_OTHER_EDGE}"),
    re.compile(rf"(?i){_EDGE}(?:{_BAND_WORDS}){_OTHER_EDGE}"),
    re.compile(r"(?i)(?<=[_-])\d{1,2}(?=\.tiff?$)"),
)
# So many images must have the same bands for a proposal, and so large a share of all images and of all files.
_IMAGES_AT_LEAST, _MOST = 3, 0.7


def describe_band_files(keys: Sequence[str]) -> list[str]:
    """Describe names that differ only in the mark of a band: each file is one band of an image.

    Args:
        keys: Paths of the files.
    """
    for kind in _BAND_MARKS:
        images: dict[tuple[str, str], list[str]] = defaultdict(list)
        for key in keys:
            start = key.rfind("/") + 1
            matches = list(kind.finditer(key, start))
            if matches:
                left, right = matches[-1].span()
                images[key[:left], key[right:]].append(key[left:right])
        sets = Counter(tuple(sorted(marks, key=natural_order)) for marks in images.values())
        if not sets:
            continue
        bands, number = sets.most_common(1)[0]
        alike = number >= max(_IMAGES_AT_LEAST, _MOST * len(images)) and number * len(bands) >= _MOST * len(keys)
        if len(bands) > 1 and alike:
            (before, after), _ = next(item for item in images.items() if len(item[1]) == len(bands))
            pattern, names = _proposed(bands, after)
            start = before.rfind("/") + 1
            example = " and ".join(f"{before[start:]}{mark}{after}" for mark in bands[:2])
            return [
                f"{len(keys):,} files look like {len(bands)} bands of {len(images):,} images in files of their own "
                f"({example}), and each is taken for an image: --data.bands.files '{pattern}' --data.bands.names "
                f"'[{', '.join(names)}]' stacks them"
            ]
    return []


def _proposed(bands: Sequence[str], after: str) -> tuple[str, list[str]]:
    """Build a pattern that finds these marks, and names for them."""
    if all(mark.isdigit() for mark in bands):
        return rf"[_-](?P<band>\d+){re.escape(after)}$", [f"band_{mark}" for mark in bands]
    prefixes = {re.sub(r"\d+[Aa]?$", "", mark) for mark in bands}
    if len(prefixes) == 1 and all(mark[-1].isdigit() or mark[-1] in "aA" for mark in bands):
        return rf"(?:^|[_. -])(?P<band>{re.escape(prefixes.pop())}\d+[Aa]?)", list(bands)
    return rf"(?:^|[_. -])(?P<band>{'|'.join(bands)})(?=[_. -])", list(bands)


def _remedy(pattern: str, given: bool) -> str:
    if given:
        return "move each into one split"
    return f"--data.splitting.group '{pattern}' keeps each in one (data.split grouped)"


def _divided(families: Sequence[str | None], splits: Mapping[str, Sequence[int]]) -> tuple[int, int]:
    """Count the families in several splits, and all families."""
    found: dict[str, set[str]] = defaultdict(set)
    for split, rows in splits.items():
        for row in rows:
            name = families[row]
            if name is not None:
                found[name].add("train" if split in ("unlabelled", "labelled") else split)
    return sum(len(own) > 1 for own in found.values()), len(found)


def _example(keys: Sequence[str], families: Sequence[str | None]) -> str:
    first = next(i for i, name in enumerate(families) if name is not None)
    other = next(i for i in range(first + 1, len(keys)) if families[i] == families[first])
    return f"{keys[first].rpartition('/')[2]} and {keys[other].rpartition('/')[2]}"


def _clips(keys: Sequence[str]) -> list[str | None]:
    """Return the folder of each image that is a video frame below its class folder; None elsewhere."""
    folders: dict[str, list[int]] = defaultdict(list)
    for i, key in enumerate(keys):
        folders[key.rpartition("/")[0]].append(i)
    found: list[str | None] = [None] * len(keys)
    for folder, rows in folders.items():
        parts = folder.split("/")
        if len(parts) < (3 if parse_split(parts[0]) else 2) or len(rows) < _FRAMES_AT_LEAST:
            continue
        stems = [_stem(keys[i]) for i in rows]
        if not all(_FRAME.match(stem) for stem in stems):
            continue
        numbers = sorted(int(re.sub(r"\D", "", stem)) for stem in stems)
        if len(numbers) >= _DENSE * (numbers[-1] - numbers[0] + 1):
            for i in rows:
                found[i] = folder
    return found


def _masks(keys: Sequence[str]) -> list[str]:
    """List images with the name of another image and a word for masks, or in a folder of masks."""
    stems = {_ENDING.sub("", key) for key in keys}
    # Of folders below those of classes alone: a class may be called "labels".
    inside: dict[str, set[str]] = defaultdict(set)
    for folder in {key.rpartition("/")[0] for key in keys}:
        above, _, name = folder.rpartition("/")
        if above:
            inside[above].add(name)
    folders = {
        f"{above}/{name}" for above, names in inside.items() if len(names) > 1 for name in names if are_masks(name)
    }
    found = []
    for key in keys:
        folder = key.rpartition("/")[0]
        match = _MASK.match(_stem(key)) if any(word in key.lower() for word in _MASK_WORDS) else None
        if folder in folders or (match is not None and (f"{folder}/" if folder else "") + match["stem"] in stems):
            found.append(key)
    return found


def _stem(key: str) -> str:
    """Return the name of a file without folders and suffix."""
    return _ENDING.sub("", key.rpartition("/")[2])
