"""A small trained run for tests of exports."""

import contextlib
import importlib.util
import io

import pytest

from tests.images import make_folder
from vitrail.cli.main import main

VIT = "--model.name vit --model.patch_size 8 --model.embed_dim 8 --model.depth 1 --model.num_heads 2".split()
SMALL = (
    "--data.img_size 16 --data.batch_size 4 --data.loader.num_workers 0 --trainer.max_epochs 1 "
    "--trainer.accelerator cpu --trainer.precision 32-true --run.tensorboard false"
).split()

# Engine -> what it needs.
PACKAGES = {"openvino": ("openvino",), "onnx": ("onnxruntime", "onnx", "onnxscript"), "torch": ()}


def missing(engine, *others):
    """Packages of an engine, or others, that are not installed."""
    return [package for package in (*PACKAGES[engine], *others) if importlib.util.find_spec(package) is None]


def skip_without(engine, *others):
    """The mark that skips a test where packages of an engine, or others, are missing."""
    lacks = missing(engine, *others)
    return pytest.mark.skipif(bool(lacks), reason=f"needs the extra export ({', '.join(lacks)})")


needs_openvino = skip_without("openvino")
FORMATS = [pytest.param(engine, marks=skip_without(engine)) for engine in PACKAGES]


def make_run(root, *words, per_class=4):
    """Train a ViT for one epoch on pictures of two brightnesses; the run lies in ``root/run``."""
    folder = make_folder(root / "pictures", splits=("train", "val"), per_class=per_class)
    run = root / "run"
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        code = main(["train", "--data.source", "folder", "--data.path", str(folder), *SMALL, *(words or VIT),
                     "--run.dir", str(run)])  # fmt: skip
    assert code == 0
    return run
