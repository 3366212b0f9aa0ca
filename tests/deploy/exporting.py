"""A small trained run for tests of exports."""

import contextlib
import importlib.util
import io
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.images import make_folder
from vitrail.cli.main import main

VIT = "--model.name vit --model.patch_size 8 --model.embed_dim 8 --model.depth 1 --model.num_heads 2".split()
SMALL = (
    "--data.img_size 16 --data.batch_size 4 --data.loader.num_workers 0 --trainer.max_epochs 1 "
    "--trainer.accelerator cpu --trainer.precision 32-true --run.tensorboard false"
).split()

# Engine -> what it needs.
PACKAGES = {"openvino": ("openvino",), "onnx": ("onnxruntime", "onnx", "onnxscript"), "torch": (), "inductor": ()}


def missing(engine, *others):
    """Packages of an engine, or others, that are not installed."""
    return [package for package in (*PACKAGES[engine], *others) if importlib.util.find_spec(package) is None]


def skip_without(engine, *others):
    """The mark that skips a test where packages of an engine, or others, are missing."""
    lacks = missing(engine, *others)
    return pytest.mark.skipif(bool(lacks), reason=f"needs the extra export ({', '.join(lacks)})")


needs_openvino = skip_without("openvino")
needs_compiler = pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler")
# Fast tests have whole exports of smaller graphs, or eager ones; Inductor's compiler takes a minute for an export.
_MARKS = {"inductor": [needs_compiler]}
FORMATS = [
    pytest.param(engine, marks=[skip_without(engine), pytest.mark.slow, *_MARKS.get(engine, [])]) for engine in PACKAGES
]


# An export that measures nothing.
QUICK = "--format torch --precision fp32 --budget 0s --threads 1".split()


def train(pictures, run, *words, source="folder", epochs=1):
    """Train on images of a source; the model is a small ViT unless words name another."""
    given = ["--data.source", source, "--data.path", str(pictures), *SMALL, *(words or VIT), "--run.dir", str(run)]
    given[given.index("--trainer.max_epochs") + 1] = str(epochs)
    assert main(["train", *given]) == 0
    return run


def export(run, out, *words):
    """Export with one thread in a second, which is enough for the first candidate alone; return the exit code."""
    return main(["export", str(run), "--out", str(out), "--budget", "1s", "--threads", "1", *map(str, words)])


# Time for all candidates.
LONG = ("--budget", "10m")


def record(out):
    """Content of the export.json of an export."""
    return json.loads((out / "1" / "export.json").read_text())


def make_run(root, *words, per_class=4):
    """Train a ViT for one epoch on pictures of two brightnesses; the run lies in ``root/run``."""
    folder = make_folder(root / "pictures", splits=("train", "val"), per_class=per_class)
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        return train(folder, root / "run", *words)


def photographs(root, per_class=8, seed=0):
    """JPEG files, wide and tall, of two classes that differ in color, with detail of all scales."""
    rng = np.random.default_rng(seed)
    for split in ("train", "val", "test"):
        for name, tint in (("leaf", (0.5, 1.0, 0.4)), ("soil", (1.0, 0.7, 0.5))):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(per_class):
                height, width = (60, 130) if i % 2 else (120, 70)
                coarse = rng.integers(0, 256, (8, 8), dtype=np.uint8)
                gray = np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
                pixels = gray[..., None] * np.array(tint) * np.linspace(0.5, 1, width)[None, :, None]
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.jpg", quality=92)
    return root
