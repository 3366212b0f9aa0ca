"""The code in the README of an export runs as it stands, beside its files."""

import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.deploy.exporting import FORMATS, photographs, train
from vitrail.cli.main import main
from vitrail.engines import load_export

# The fast tests run the code in their own process (test_export.py).
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("readme")
    return train(photographs(root / "pictures", per_class=4), root / "run")


def _code(folder):
    return re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL).group(1)


def _printed(code, folder):
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [int(word) for word in re.findall(r"\d+", done.stdout)]


@pytest.mark.parametrize("engine", FORMATS)
def test_the_code_runs_as_it_stands_and_with_the_pixels_of_its_comment(run, tmp_path, engine, capsys):
    words = ["--format", engine, "--precision", "fp32", "--budget", "0s", "--threads", "1", "--include"]
    assert main(["export", str(run), "--out", str(tmp_path / "out"), *words]) == 0
    capsys.readouterr()
    folder = tmp_path / "out" / "1"
    code = _code(folder)
    export = load_export(tmp_path / "out")
    black = export.run({"image": np.zeros((1, 3, 480, 640), np.uint8)})["probabilities"].argmax(1)
    assert _printed(code, folder) == black.tolist()
    if engine in ("torch", "inductor"):
        return
    photo = next((run.parent / "pictures" / "val").rglob("*.jpg"))
    (folder / "photo.jpg").write_bytes(photo.read_bytes())
    code, replaced = re.subn(r"^image = np\.zeros\(.*?\)  # ", "image = ", code, flags=re.MULTILINE)
    assert replaced == 1
    pixels = np.asarray(Image.open(photo).convert("RGB"))[None].transpose(0, 3, 1, 2)
    assert _printed(code, folder) == export.run({"image": pixels})["probabilities"].argmax(1).tolist()
