"""A small trained run for tests of exports."""

import contextlib
import importlib.util
import io

import pytest

from tests.images import make_folder
from vitrail.cli.main import main

VIT = "--model.name vit --model.patch_size 8 --model.embed_dim 8 --model.depth 1 --model.num_heads 2".split()
SMALL = (
    "--data.img_size 16 --data.batch_size 4 --data.num_workers 0 --trainer.max_epochs 1 --trainer.accelerator cpu "
    "--trainer.precision 32-true --run.tensorboard false"
).split()

needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs the extra export")
# Engine -> what it needs.
PACKAGES = {"openvino": ("openvino",), "onnx": ("onnxruntime", "onnx", "onnxscript"), "torch": ()}
FORMATS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            any(importlib.util.find_spec(package) is None for package in packages), reason="needs the extra export"
        ),
    )
    for name, packages in PACKAGES.items()
]


def make_run(root, *words):
    """Train a ViT for one epoch on pictures of two brightnesses; the run lies in ``root/run``."""
    folder = make_folder(root / "pictures", splits=("train", "val"), per_class=4)
    run = root / "run"
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        code = main(["train", "--data.source", "folder", "--data.path", str(folder), *SMALL, *(words or VIT),
                     "--run.dir", str(run)])  # fmt: skip
    assert code == 0
    return run
