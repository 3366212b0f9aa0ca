"""The loader beside torchvision's ImageFolder and torch's DataLoader: images decoded, cropped and batched a second.

    .venv-peers/bin/python benchmarks/loader.py                    # JPEGs made for it, of 256 and 500 pixels
    .venv-peers/bin/python benchmarks/loader.py --folder photos    # your own: one folder a class

Both bring the same files to 224 x 224 (shorter side, centre) as float32 in 0..1, in batches of 64 with two workers, in
turn in one process, from files that the system has in its cache. Each round is one pass over all images, the time of
starting the workers left out: it is the same for both, and once a training.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from vitrail.config import DataConfig
from vitrail.data import open_data
from vitrail.files import write_text
from vitrail.machine import processor

ROOT = Path(__file__).resolve().parent.parent
SIZE = 224


def make_photos(root: Path, side: int, number: int) -> Path:
    """JPEGs with the detail of photos: smooth shapes and fine noise, quality 90."""
    rng = np.random.default_rng(side)
    for i in range(number):
        knots = rng.integers(0, 255, (12, 12, 3)).astype(np.uint8)
        smooth = np.asarray(Image.fromarray(knots).resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)
        pixels = np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
        path = root / f"class{i % 2}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=90)
    return root


def ours(folder: Path, batch: int, workers: int) -> Callable[[], Iterator[torch.Tensor]]:
    config = DataConfig(source="folder", path=str(folder), batch_size=batch, loader={"num_workers": workers})
    data = open_data(config, (SIZE, SIZE), split=False)
    loader = data.loader("all")
    return lambda: (b["image"] for b in loader)


def torchvisions(folder: Path, batch: int, workers: int) -> Callable[[], Iterator[torch.Tensor]]:
    sys.path.insert(0, str(ROOT))
    from tests.peers import define_missing_operators

    define_missing_operators()
    from torchvision import datasets, transforms

    steps = [transforms.Resize(SIZE), transforms.CenterCrop(SIZE), transforms.ToTensor()]
    images = datasets.ImageFolder(str(folder), transforms.Compose(steps))
    loader = torch.utils.data.DataLoader(images, batch_size=batch, num_workers=workers, persistent_workers=workers > 0)
    return lambda: (b for b, _ in loader)


def rate(batches: Callable[[], Iterator[torch.Tensor]]) -> float:
    """Images a second of one pass, from the first batch to the last."""
    number, start = 0, 0.0
    for images in batches():
        if start:
            number += len(images)
        else:
            assert images.dtype == torch.float32
            assert images.shape[2:] == (SIZE, SIZE)
            start = time.perf_counter()
    return number / (time.perf_counter() - start)


def compare(name: str, folder: Path, arguments: argparse.Namespace) -> dict[str, object]:
    """Both in turn; the median of each, and of the ratio of each round."""
    loaders = {"vitrail": ours, "torchvision": torchvisions}
    made = {who: make(folder, arguments.batch, arguments.workers) for who, make in loaders.items()}
    for batches in made.values():
        rate(batches)  # starts the workers, and fills the system's cache
    rounds = [{who: rate(batches) for who, batches in made.items()} for _ in range(arguments.rounds)]
    ratios = sorted(r["vitrail"] / r["torchvision"] for r in rounds)
    row: dict[str, object] = {"images": name, "batch": arguments.batch, "workers": arguments.workers}
    row |= {f"{who} images/s": round(statistics.median(r[who] for r in rounds)) for who in loaders}
    return row | {
        "ratio": round(statistics.median(ratios), 2),
        "lowest": round(ratios[0], 2),
        "highest": round(ratios[-1], 2),
        "rounds": len(ratios),
        "machine": processor(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="images, one folder a class; made when not given")
    parser.add_argument("--number", type=int, default=1024, help="images to make of each size")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "loader.csv")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as place:
        if arguments.folder is not None:
            rows.append(compare(str(arguments.folder), arguments.folder, arguments))
        else:
            for side in (256, 500):
                folder = make_photos(Path(place) / str(side), side, arguments.number)
                rows.append(compare(f"{side} px JPEG", folder, arguments))
    for row in rows:
        print(row)
    write_text(arguments.out, pd.DataFrame(rows).to_csv(index=False))
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
