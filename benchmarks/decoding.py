"""JPEG decoding: how far pixels, resized as evaluation does, are from those of a full decoding, and how fast it is.

    .venv/bin/python benchmarks/decoding.py PHOTOGRAPHS --sizes 96 160 224
    .venv/bin/python benchmarks/decoding.py PHOTOGRAPHS --run runs/x     # decisions of a run too

Full decodings by OpenCV and simplejpeg are compared where these packages are installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vitrail.data import jpeg_draft
from vitrail.data.images import decode_picture, image_size, read_image, resize_picture
from vitrail.machine import processor
from vitrail.runs.trained import TrainedModel, load_trained

FULL = "Pillow, in full"
Size = tuple[int, int]
Read = Callable[[Path, Size], Tensor]


def _to_the_size(file: Path, size: Size) -> Tensor:
    """As vitrail did before: no larger than needed, and crops between two pixels are rounded."""
    factor, jpeg_draft.FACTOR = jpeg_draft.FACTOR, 1
    try:
        return resize_picture(decode_picture(file, size=size).planes, size, "crop")
    finally:
        jpeg_draft.FACTOR = factor


def _opencv(file: Path, size: Size) -> Tensor:
    import cv2

    pixels = cv2.imdecode(np.frombuffer(file.read_bytes(), np.uint8), cv2.IMREAD_COLOR_RGB)
    return resize_picture(torch.from_numpy(pixels.transpose(2, 0, 1)), size, "crop")


def _simplejpeg(file: Path, size: Size) -> Tensor:
    import simplejpeg

    pixels = simplejpeg.decode_jpeg(file.read_bytes(), "RGB")
    return resize_picture(torch.from_numpy(pixels.transpose(2, 0, 1)), size, "crop")


def readers() -> dict[str, Read]:
    """Functions from a file and a size to its pixels, by name; the first is the reference."""
    found: dict[str, Read] = {
        FULL: lambda file, size: resize_picture(read_image(file), size, "crop"),
        "Pillow, draft to the size": _to_the_size,
        "vitrail": lambda file, size: read_image(file, size=size),
    }
    if importlib.util.find_spec("cv2"):
        found["OpenCV, in full"] = _opencv
    if importlib.util.find_spec("simplejpeg"):
        found["simplejpeg, in full"] = _simplejpeg
    return found


def _decide(trained: TrainedModel, pixels: Tensor) -> tuple[int, np.ndarray]:
    probabilities = trained.card.probabilities(trained.classify({"image": pixels[None].float() / 255})[0])[0]
    return int(probabilities.argmax()), probabilities.numpy()


def measure(files: list[Path], size: Size, trained: TrainedModel | None) -> list[str]:
    """Rows of the table for one size."""
    known = readers()
    times: dict[str, list[float]] = {name: [] for name in known}
    levels: dict[str, list[tuple[float, int]]] = {name: [] for name in known}
    changed = dict.fromkeys(known, 0)
    moved = dict.fromkeys(known, 0.0)
    for turn, file in enumerate(files):
        pixels: dict[str, Tensor] = {}
        for name in known if turn % 2 else reversed(known):
            start = time.process_time()
            pixels[name] = known[name](file, size)
            times[name].append(time.process_time() - start)
        for name, own in pixels.items():
            far = (own.int() - pixels[FULL].int()).abs()
            levels[name].append((float(far.float().mean()), int(far.max())))
        if trained is not None:
            decided = {name: _decide(trained, own) for name, own in pixels.items()}
            for name, (label, probabilities) in decided.items():
                changed[name] += label != decided[FULL][0]
                moved[name] = max(moved[name], float(np.abs(probabilities - decided[FULL][1]).max()))
    rows = []
    for name in known:
        means, most = zip(*levels[name], strict=True)
        decisions = f" {len(files) - changed[name]} of {len(files)} | {moved[name]:.3f} |" if trained else ""
        rows.append(
            f"| {size[0]} | {name} | {statistics.mean(means):.2f} | {max(means):.2f} | {max(most)} | "
            f"{1000 * statistics.median(times[name]):.2f} |{decisions}"
        )
    return rows


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[96, 160, 224])
    parser.add_argument("--run", type=Path, help="compare its decisions, at its own size")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    trained = None if arguments.run is None else load_trained(arguments.run)
    files = sorted(file for file in arguments.photographs.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg"))
    shapes = [image_size(file) for file in files]
    height, width = (statistics.median(side) for side in zip(*shapes, strict=True))
    print(f"{len(files)} photographs, median {height:g} x {width:g}; {processor()}, one thread\n")
    more = (" decisions | largest change |", "---|---|") if trained else ("", "")
    print(f"| size | decoder | mean levels | worst mean | largest | CPU ms |{more[0]}")
    print(f"|---|---|---|---|---|---|{more[1]}")
    for size in [trained.card.img_size] if trained else [(side, side) for side in arguments.sizes]:
        print("\n".join(measure(files, size, trained)))


if __name__ == "__main__":
    main()
