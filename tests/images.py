"""Small image folders and files that tests make."""

import functools
import io
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def save_image(path, size=(20, 24), mode="RGB", level=128, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_encode(path.suffix.lower(), size, mode, level, seed))
    return path


@functools.cache
def _encode(suffix, size, mode, level, seed):
    """Encoded once: many tests make folders of the same images."""
    rng = np.random.default_rng(seed)
    bands = {"L": (), "RGB": (3,), "RGBA": (4,), "CMYK": (4,)}[mode]
    array = np.clip(rng.normal(level, 20, (*size, *bands)), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(array, mode).save(buffer, Image.registered_extensions()[suffix])
    return buffer.getvalue()


def make_folder(root, classes=("dark", "light"), splits=("train", "val", "test"), per_class=8, seed=0):
    """Classes that differ in brightness; suffixes and sizes vary."""
    rng = random.Random(seed)
    for split in splits or ("",):
        for number, name in enumerate(classes):
            for i in range(per_class):
                suffix = rng.choice([".png", ".jpg", ".bmp", ".jpeg"])
                size = (rng.randint(9, 40), rng.randint(9, 40))
                level = 60 + 120 * number / max(len(classes) - 1, 1)
                save_image(root / split / name / f"{i}{suffix}", size, level=level, seed=rng.randrange(10**6))
    return root


def embed_images(path, labels, size=(20, 24), seed=0):
    """A Parquet file with noise of each label's own level inside."""
    rng = np.random.default_rng(seed)
    levels = 40 + 170 * np.array(labels) / max(labels)
    content = []
    for level in levels:
        buffer = io.BytesIO()
        Image.fromarray(np.clip(rng.normal(level, 20, (*size, 3)), 0, 255).astype(np.uint8)).save(buffer, "PNG")
        content.append({"bytes": buffer.getvalue(), "path": None})
    pq.write_table(pa.table({"image": content, "label": labels}), path)
