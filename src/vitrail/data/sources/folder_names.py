"""Folder names that mark splits, masks, bands or variants."""

from __future__ import annotations

import re

# Names that a split's folder may have, in any letter case.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
_SPLIT_WORDS = {word: split for split, words in SPLIT_NAMES.items() for word in words} | {
    "trainset": "train", "testset": "test", "valset": "val", "dev": "val", "eval": "test", "pred": "test",
    "holdout": "test", "unseen": "test", "query": "test", "gallery": "test", "trainval": "train",
}  # fmt: skip
# Words beside which a split's word still means a split.
_NEUTRAL = frozenset(
    "a all and crop cropped data dataset file files final folder full image images img imgs new of original photo "
    "photos pic pics picture pictures png jpg raw resized seg set sets split the v".split()
)
_IMAGES = frozenset(
    "image images img imgs jpegimages leftimgbit orig original originals photo photos picture pictures raw rgb input "
    "inputs".split()
)
_MASKS = frozenset(
    "mask masks label labels annotation annotations annotated segmentation segmentations segmentationclass "
    "segmentationobject seg gt groundtruth truth trimap trimaps bbox bboxes boxes xml xmls json imagesets "
    "boundingboxes target targets output outputs ann anns annot annots gtfine gtcoarse".split()
)
# Words that leave such a name what it is: "img_dir", "train_masks", "masks_png".
_BESIDE = frozenset("all data dir directory file files folder gif jpg original png raw set tif".split())
_ORIGINALS = frozenset("orig origs original originals raw source clean unaugmented".split())
# End of the stem of a mask beside its image.
MASK_MARK = r"[ _.-]+(?:mask|masks|seg|segmentation|label|labels|annotation|gt)(?:[ _-]?\d+)?$"
_CHANGED = re.compile(
    r"(?:rotat|turn|flip|mirror|aug|crop|blur|nois|bright|dark|contrast|zoom|shear|shift|transl|scal|resiz|copy|copies|"
    r"duplicate|compress|processed|enhanced)[a-z]*|rot"
)
_BAND = re.compile(
    r"(?:b|band|ch|channel|c)[ _-]?\d{1,2}a?|red|green|blue|nir|swir\d?|red_?edge\d?|rgb|rededge|thermal|depth|ir|lwir|"
    r"tir|vis|uv|dapi|gfp|pan|panchromatic|coastal|cirrus"
)


def parse_split(name: str) -> str | None:
    """Return the split of a folder name; None if it is not a split's."""
    lower = name.lower()
    return next((split for split, names in SPLIT_NAMES.items() if lower in names), None)


def guess_split(name: str) -> str | None:
    """Guess the split of a folder name such as "Final_Training", "images_train" or "test2017"."""
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]
    splits = {_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS}
    rest = [word for word in words if word not in _SPLIT_WORDS]
    return splits.pop() if len(splits) == 1 and all(word in _NEUTRAL for word in rest) else None


def _bare(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())


def _essence(name: str) -> str:
    """Strip words from a name that do not change the meaning of a folder."""
    words = [word for word in re.split(r"[^a-z]+", name.lower()) if word]
    essential = [word for word in words if word not in _BESIDE and word not in _SPLIT_WORDS]
    return "".join(essential) or "".join(words)


def images_and_masks(names: set[str]) -> bool:
    """Check whether folders are images and annotations: "images" beside "masks", "labels" or "annotations"."""
    bare = {_essence(name) for name in names}
    return len(bare) > 1 and bool(bare & _IMAGES) and bool(bare & _MASKS) and bare <= _IMAGES | _MASKS


def are_variants(names: set[str]) -> bool:
    """Check whether folders are images and altered copies: "orig" beside "rotated" or "augmented"."""
    bare = {_bare(name) for name in names}
    changed = {name for name in bare if _CHANGED.fullmatch(name)}
    return bool(changed) and bare <= changed | _ORIGINALS


def are_masks(name: str) -> bool:
    """Check whether a folder name marks masks or annotations."""
    return _essence(name) in _MASKS


def are_bands(names: set[str]) -> bool:
    """Check whether all folders are named like bands: "B02", "red", "ch1"."""
    return len(names) > 1 and all(_BAND.fullmatch(name.lower()) for name in names)
