"""Copies that an audit finds among real images, images that it takes for copies, and what looking costs.

    python benchmarks/duplicates.py --folder apple=leaves --folder bees=insects --parquet cifar=cifar10.parquet
    python benchmarks/duplicates.py --parquet cifar=cifar10.parquet --before ../older/src     # time of 10,000 images
    python benchmarks/duplicates.py --folder apple=leaves --train --model.name vit --model.img_size 128 ...  # an epoch

Copies of 500 images of each set are made, one kind at a time, encoded and decoded again, and searched for among all
images of the set. Confirmed pairs of the set's own images are counted as they are: some are real copies.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
from PIL import Image

from vitrail.data.images import read_image
from vitrail.data.near_duplicates import find_copies, find_copies_across_splits
from vitrail.data.thumbnails import Thumbnails, thumbnails

COPIES = 500
TURNS = [t for t in Image.Transpose]
Change = Callable[[Image.Image, np.random.Generator], Image.Image]


def encoded(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def turned(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return image.transpose(TURNS[int(rng.integers(7))])


def cropped(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Up to 5 % off each side."""
    return _crop(image, rng.uniform(0, 0.05, 4))


def cropped_most(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """5 % off every side."""
    return _crop(image, np.full(4, 0.05))


def _crop(image: Image.Image, part: np.ndarray) -> Image.Image:
    width, height = image.size
    box = (part[0] * width, part[1] * height, (1 - part[2]) * width, (1 - part[3]) * height)
    return image.crop(tuple(map(round, box)))


def scaled(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    factor = float(np.exp(rng.uniform(np.log(0.5), np.log(2))))
    return image.resize([max(1, round(factor * side)) for side in image.size], Image.Resampling.BICUBIC)


def brighter(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Gain 0.8 to 1.25, cut off at white."""
    return Image.fromarray(np.clip(np.asarray(image, float) * rng.uniform(0.8, 1.25), 0, 255).astype(np.uint8))


def together(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Cropped, turned, brighter or darker, and scaled."""
    return scaled(brighter(turned(cropped(image, rng), rng), rng), rng)


# Kind -> change, and range of the JPEG quality that follows.
KINDS: dict[str, tuple[Change, tuple[int, int]]] = {
    "turned or mirrored": (turned, (90, 90)),
    "recompressed, quality 50 to 90": (lambda image, rng: image, (50, 90)),
    "scaled, 0.5 to 2": (scaled, (90, 90)),
    "brighter or darker, 0.8 to 1.25": (brighter, (90, 90)),
    "cropped, 0 to 5 % a side": (cropped, (90, 90)),
    "cropped, 5 % on every side": (cropped_most, (90, 90)),
    "all of these": (together, (50, 90)),
}


def load(path: Path) -> tuple[list[bytes], list[str]]:
    """Files of a folder with their class, or images of a Parquet file."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return [file.read_bytes() for file in files], [file.parent.name for file in files]
    table = pq.read_table(path)
    return [row["bytes"] for row in table["image"].to_pylist()], [str(v) for v in table["label"].to_pylist()]


def small(files: Sequence[bytes]) -> Thumbnails:
    parts = [files[i : i + 256] for i in range(0, len(files), 256)]
    return np.concatenate([
        thumbnails(torch.stack([read_image(f, "rgb", (64, 64), "squash", True, "made") for f in part]).float() / 255)
        for part in parts
    ])  # fmt: skip


def measure(name: str, path: Path, most: int) -> tuple[list[dict[str, object]], dict[str, object]]:
    files, labels = load(path)
    files, labels = files[:most], labels[:most]
    base = small(files)
    chosen = np.random.default_rng(1).choice(len(files), min(COPIES, len(files)), replace=False)
    rows = []
    for kind, (change, (low, high)) in KINDS.items():
        made = []
        for i in chosen:
            rng = np.random.default_rng((7, int(i)))
            image = change(Image.open(io.BytesIO(files[i])).convert("RGB"), rng)
            made.append(encoded(image, int(rng.integers(low, high + 1))))
        images = np.concatenate([base, small(made)])
        groups = {}
        for copy in find_copies(images).copies:
            a, b = groups.get(copy.first, {copy.first}), groups.get(copy.second, {copy.second})
            for row in (union := a | b):
                groups[row] = union
        found = [len(files) + i in groups.get(int(row), ()) for i, row in enumerate(chosen)]
        quick = find_copies_across_splits(images, ["train"] * len(files) + ["val"] * len(chosen))
        at_start = [quick.joined(int(row), len(files) + i) for i, row in enumerate(chosen)]
        rows.append({"images": name, "kind": kind, "copies": len(chosen), "audit": f"{np.mean(found):.1%}",
                     "before training": f"{np.mean(at_start):.1%}"})  # fmt: skip
        print(rows[-1], flush=True)
    alone = find_copies(base)
    differ = sum(labels[c.first] != labels[c.second] for c in alone.copies)
    told = {"images": name, "number": len(files), "pairs": f"{len(files) * (len(files) - 1) // 2:,}",
            "confirmed": len(alone.copies), "of different classes": differ,
            "possible (8 bits)": len(alone.look_alikes)}  # fmt: skip
    print(told, flush=True)
    return rows, told


# Run in a process of its own, with the code of one of two versions.
_AUDIT = """
import sys, time, torch
torch.manual_seed(0)
from vitrail.config import DataConfig
from vitrail.data.audit import audit
start, used = time.perf_counter(), time.process_time()
audit(DataConfig(source="parquet", path=sys.argv[1]))
print(time.perf_counter() - start, time.process_time() - used)
"""


def compare(path: Path, before: Path, rounds: int) -> None:
    """Seconds of an audit of 10,000 images with both versions, in turn."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "images.parquet"
        pq.write_table(pq.read_table(path).slice(0, 10_000), file)
        versions = {"before": before, "after": Path(__file__).resolve().parent.parent / "src"}
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in versions}
        for _ in range(rounds):
            for name, source in versions.items():
                environment = {**os.environ, "PYTHONPATH": str(source)}
                done = subprocess.run([sys.executable, "-c", _AUDIT, str(file)], env=environment, check=True,
                                      capture_output=True, text=True)  # fmt: skip
                wall, used = map(float, done.stdout.split()[-2:])
                seconds[name].append((wall, used))
                print(name, f"{wall:.1f} s, {used:.1f} s of processor time", flush=True)
    ratios = [b[1] / a[1] for a, b in zip(seconds["before"], seconds["after"], strict=True)]
    print(f"after / before, processor time: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def epochs(data: list[str], model: list[str], rounds: int) -> None:
    """Seconds of the look before training, beside an epoch."""
    from vitrail.config import DataConfig
    from vitrail.data import open_data
    from vitrail.train.copies import describe_copies

    looks, whole = [], []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(rounds):
            command = [sys.executable, "-m", "vitrail", "train", *data, *model, "--trainer.max_epochs", "1",
                       "--run.tensorboard", "false", "--run.dir", f"{folder}/{i}"]  # fmt: skip
            subprocess.run(command, check=True, capture_output=True)
            whole.append(float(pd.read_csv(f"{folder}/{i}/metrics.csv")["epoch_seconds"].iloc[-1]))
            settings = dict(zip([w.removeprefix("--data.") for w in data[::2]], data[1::2], strict=True))
            opened = open_data(DataConfig().changed(settings), (64, 64))
            start = time.perf_counter()
            lines = describe_copies(opened, "recipe.yaml")
            looks.append(time.perf_counter() - start)
            print(f"epoch {whole[-1]:.1f} s, look {looks[-1]:.2f} s: {looks[-1] / whole[-1]:.1%}", *lines, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--parquet", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--most", type=int, default=10_000, help="images of each set")
    parser.add_argument("--before", type=Path, help="src of another version, to compare the time of 10,000 images with")
    parser.add_argument("--train", nargs=argparse.REMAINDER, help="time an epoch with these settings; the last option")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    sets = [(kind, *text.split("=", 1)) for kind in ("folder", "parquet") for text in getattr(arguments, kind)]
    for kind, _, path in sets:
        if arguments.before is not None:
            compare(Path(path), arguments.before, arguments.rounds)
        elif arguments.train is not None:
            epochs(["--data.source", kind, "--data.path", path], arguments.train, arguments.rounds)
    if arguments.before is None and arguments.train is None:
        results = [measure(name, Path(path), arguments.most) for _, name, path in sets]
        print(pd.DataFrame([row for rows, _ in results for row in rows]).to_string(index=False))
        print(pd.DataFrame([told for _, told in results]).to_string(index=False))


if __name__ == "__main__":
    main()
