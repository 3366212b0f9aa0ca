"""Outputs: never over an input or a file of somebody else, and never a failure of an encoding."""

import io
import os
import subprocess
import sys

import pytest

from tests.images import make_folder, save_image
from vitrail.cli.main import main
from vitrail.cli.outputs import (
    PAGE,
    PICTURE,
    PREDICTIONS,
    SPEEDS,
    SPLIT_TABLE,
    STATISTICS,
    STEPS,
    output_file,
    output_folder,
)
from vitrail.data.workers import translate_worker_error
from vitrail.errors import ConfigError
from vitrail.files import write_text
from vitrail.outputs import FIGURE_MARK

EARLIER = {
    PREDICTIONS: b"path,class,probability,class_2\na.png,x,0.5,y\n",
    SPLIT_TABLE: b"path,label,split\na.png,x,train\n",
    STATISTICS: b'{\n  "kind": "vitrail statistics",\n',
    PAGE: b'<!doctype html>\n<meta name="generator" content="vitrail">\n',
    PICTURE: b"\x89PNG\r\n\x1a\n...tEXt" + FIGURE_MARK,
    STEPS: b"step,kind,output_shape,parameters,multiply_adds,share_of_time,what\n",
    SPEEDS: b"model,mode,precision,images\n",
}
FOREIGN = [b"dear diary\n", b"\x89PNG\r\n\x1a\n of a camera", b"name,class\nx,y\n", b"<!doctype html>\n", b'{"a": 1}']


@pytest.mark.parametrize("kind", EARLIER, ids=lambda kind: kind.name)
def test_only_an_earlier_output_is_replaced(tmp_path, kind):
    file = tmp_path / "out"
    assert output_file(str(file), kind) == file
    for content in (b"", EARLIER[kind]):
        file.write_bytes(content)
        assert output_file(str(file), kind) == file
    for content in [*FOREIGN, *(other for k, other in EARLIER.items() if k is not kind)]:
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=f"--out .*out is there already and is not {kind.name}"):
            output_file(str(file), kind)
        assert file.read_bytes() == content


def test_an_input_is_never_an_output(tmp_path, monkeypatch):
    table, link = tmp_path / "table.csv", tmp_path / "link.csv"
    table.write_bytes(EARLIER[SPLIT_TABLE])
    link.symlink_to(table)
    monkeypatch.chdir(tmp_path)
    for name in (str(table), "table.csv", "./table.csv", str(link)):
        with pytest.raises(ConfigError, match="is one of the inputs and would be lost"):
            output_file(name, SPLIT_TABLE, [None, tmp_path / "none", table])
    with pytest.raises(ConfigError, match="is a folder; name a file in it"):
        output_file(str(tmp_path), PAGE)
    with pytest.raises(ConfigError, match="is one of the inputs; name another folder"):
        output_folder(str(tmp_path), [tmp_path])
    assert output_file(os.devnull, PAGE) == type(tmp_path)(os.devnull)


def test_home_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert output_file("~/x.csv", PREDICTIONS) == tmp_path / "x.csv"
    assert output_folder("~/x") == tmp_path / "x"
    with pytest.raises(ConfigError, match=r"--csv '~nobody_here/x' begins with '~nobody_here'"):
        output_file("~nobody_here/x", STEPS, option="--csv")


@pytest.mark.parametrize("words", [["stats"], ["split"], ["audit"], ["show"]])
def test_verbs_of_the_data_lose_nothing(capsys, tmp_path, words):
    images = make_folder(tmp_path / "images", per_class=2)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"data: {{source: folder, path: {images}}}\nmodel: {{name: vit, img_size: 8, patch_size: 4}}\n")
    image = save_image(tmp_path / "mine.png")
    for victim in (recipe, image):
        before = victim.read_bytes()
        assert main(["data", *words, str(recipe), "--out", str(victim)]) == 2
        assert "--out" in capsys.readouterr().err
        assert victim.read_bytes() == before


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_output_takes_every_character(encoding, tmp_path, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stderr", stream)
    assert main(["train", str(tmp_path / "naïve 日本 \udcff.yaml")]) == 2
    stream.flush()
    told = stream.buffer.getvalue().decode(encoding)
    assert "cannot read the recipe" in told
    assert "\\udcff" in told


def test_a_terminal_of_ascii_in_a_process_of_its_own(tmp_path):
    environment = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"}
    command = [sys.executable, "-m", "vitrail", "train", "naïve.yaml"]
    done = subprocess.run(command, capture_output=True, env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert b"cannot read the recipe na\\xefve.yaml" in done.stderr


def test_files_take_names_that_are_not_utf_8(tmp_path):
    write_text(tmp_path / "x.json", '{"command": "\udcff"}')
    assert (tmp_path / "x.json").read_text(encoding="utf-8") == '{"command": "\\udcff"}'
    assert translate_worker_error(UnicodeError("x")) is None
