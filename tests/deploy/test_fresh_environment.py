"""An export runs in an environment with its engine and Pillow alone, and gives the classes of ``vitrail predict``."""

import csv
import io
import json
import re
import subprocess
import sys

import pytest

from tests.deploy.exporting import photographs, skip_without, train
from vitrail.cli.main import main

PACKAGES = {"openvino": "openvino", "onnx": "onnxruntime"}
# The README's code for one photograph, in a loop over files; nothing but its lines knows the export.
PROGRAM = """
import importlib.util, json, pathlib, sys
import PIL.Image
folder, photos = map(pathlib.Path, sys.argv[1:])
assert not any(importlib.util.find_spec(name) for name in ("vitrail", "torch"))
classes = json.loads((folder / "export.json").read_text())["model"]["classes"]
found = {}
for photo in sorted(photos.rglob("*.jpg")):
%s
    found[str(photo)] = classes[int(%s["probabilities"].argmax(1)[0])]
print(json.dumps(found))
"""


def program(folder):
    """Insert the code of an export's README; the placeholder of pixels becomes the expression in its comment."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL).group(1)
    code = re.sub(r"^(\w+) = np\.zeros\(.*?\)  # (np\.asarray\(.*)$", r"\1 = \2", code, flags=re.MULTILINE)
    code = code.replace('"photo.jpg"', "photo")
    code = re.sub(r'"(model\.\w+)"', r'str(folder / "\1")', code)
    lines = [line for line in code.splitlines() if not line.startswith("print")]
    outputs = "outputs" if any(line.startswith("outputs") for line in lines) else '{"probabilities": probabilities}'
    return PROGRAM % ("\n".join(f"    {line}" for line in lines), outputs)


@pytest.mark.slow
@pytest.mark.parametrize("engine", [pytest.param(engine, marks=skip_without(engine)) for engine in PACKAGES])
def test_the_engine_alone_gives_the_classes_of_predict(tmp_path, capsys, engine):
    pictures = photographs(tmp_path / "pictures")
    run, out = train(pictures, tmp_path / "run"), tmp_path / "out"
    assert (
        main(["export", str(run), "--out", str(out), "--format", engine, "--precision", "fp32", "--budget", "0s"]) == 0
    )
    capsys.readouterr()
    assert main(["predict", str(run), str(pictures / "val")]) == 0
    wanted = {row["path"]: row["class"] for row in csv.DictReader(io.StringIO(capsys.readouterr().out))}
    python = tmp_path / "fresh" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "fresh")], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet", PACKAGES[engine], "pillow", "numpy"]
    if (done := subprocess.run(install, capture_output=True, text=True, check=False)).returncode:
        pytest.skip(f"packages cannot be installed: {done.stderr.strip().splitlines()[-1][:120]}")
    file = tmp_path / "program.py"
    file.write_text(program(out / "1"))
    done = subprocess.run(
        [str(python), str(file), str(out / "1"), str(pictures / "val")], capture_output=True, text=True, check=True,
        cwd=tmp_path, env={},
    )  # fmt: skip
    assert json.loads(done.stdout) == wanted
    assert len(wanted) == 16
