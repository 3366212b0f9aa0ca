"""``vitrail bench`` on tiny models: what it prints, writes and refuses; never how quick anything is."""

import csv
import json
import re

import pytest

from tests.images import make_folder
from vitrail.bench import side_by_side
from vitrail.cli.main import main

TINY = [
    "--img-size", "16", "--set", "patch_size=8", "--set", "embed_dim=16", "--set", "depth=1", "--set", "num_heads=2",
]  # fmt: skip
QUICK = ["--batch", "2", "--rounds", "1", "--device", "cpu", "--no-memory"]
TWO_STREAMS = [
    "--img-size", "16", "--set", "patch_size=8", "--set", "embed_dim=16", "--set", "depths=[1,1]", "--set",
    "num_heads=[1,2]", "--set", "spectral_chans=5",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _known_peak(monkeypatch):
    monkeypatch.setattr(side_by_side, "matrix_peak", lambda device, precision: 123e9)


def run(capsys, *words):
    code = main(["bench", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def fails(capsys, words, code, message):
    got, _, err = run(capsys, *words)
    assert got == code
    assert len(err.strip().splitlines()) == 1, err
    assert re.search(message, err), err


def test_table_and_csv(capsys, tmp_path):
    file = tmp_path / "rows.csv"
    words = ["vit", *TINY, *QUICK, "--mode", "forward", "train", "--precision", "32", "bf16", "--csv", file]
    code, out, err = run(capsys, *words)
    assert (code, err) == (0, "")
    assert "matrix product, 32: 123 GFLOP/s" in out
    assert "matrix product, bf16: 123 GFLOP/s" in out
    assert "batches of 2, 1 rounds" in out
    lines = [line.split() for line in out.splitlines() if line.startswith("vit ")]
    assert [line[5:7] for line in lines] == [[m, p] for m in ("forward", "train") for p in ("32", "bf16")]
    rows = list(csv.DictReader(file.open()))
    assert [(row["mode"], row["precision"]) for row in rows] == [
        ("forward", "32"), ("forward", "bf16"), ("train", "32"), ("train", "bf16"),
    ]  # fmt: skip
    assert {row["img_size"] for row in rows} == {"16x16"}
    assert all(float(row["images_per_second"]) > 0 for row in rows)
    assert all(row["ratio"] == row["memory_peak_mb"] == "" for row in rows)


@pytest.mark.slow
def test_json_and_memory(capsys):
    code, out, _ = run(capsys, "vit", *TINY, "--batch", 1, "--rounds", 1, "--device", "cpu", "--json")
    (row,) = json.loads(out)["rows"]
    assert code == 0
    assert (row["model"], row["library"], row["compiled"], row["peak_gflops"]) == ("vit", "vitrail", False, 123)
    assert row["memory_peak_mb"] is None or row["memory_peak_mb"] > 50


@pytest.mark.slow
def test_two_streams(capsys):
    code, out, _ = run(capsys, "hvt", *TWO_STREAMS, *QUICK, "--mode", "train")
    assert code == 0
    assert re.search(r"^hvt +16 x 16 +vitrail +train", out, re.MULTILINE)


def test_a_trained_run(capsys, tmp_path):
    images = make_folder(tmp_path / "images", splits=("train", "val"), per_class=2)
    folder = tmp_path / "x"
    words = (
        f"train --data.source folder --data.path {images} --model.name vit --model.img_size 16 --model.patch_size 8 "
        f"--model.embed_dim 16 --model.depth 1 --model.num_heads 2 --trainer.max_epochs 1 --trainer.accelerator cpu "
        f"--data.batch_size 4 --data.loader.num_workers 0 --run.tensorboard false --run.dir {folder}"
    )
    assert main(words.split()) == 0
    capsys.readouterr()
    code, out, _ = run(capsys, folder, "--img-size", 24, 32, *QUICK)
    assert code == 0
    assert re.search(rf"^{folder} +24 x 32 +vitrail +forward", out, re.MULTILINE)
    fails(capsys, [folder, "--set", "depth=2"], 2, "settings are fixed; leave out --set")


def test_what_was_measured_before_a_failure_is_given(capsys, monkeypatch, tmp_path):
    file = tmp_path / "rows.csv"
    real = side_by_side.alternate
    outcomes = iter([real, real])

    def alternate(*args):
        try:
            return next(outcomes)(*args)
        except StopIteration:
            raise RuntimeError("no memory left") from None

    monkeypatch.setattr(side_by_side, "alternate", alternate)
    code, out, err = run(capsys, "vit", *TINY, *QUICK, "--precision", "32", "bf16", "--mode", "forward", "train",
                         "--csv", file)  # fmt: skip
    assert code == 1
    assert "vit (train, 32, batch 2) cannot run here: no memory left" in err
    assert len(list(csv.DictReader(file.open()))) == 2
    assert len([line for line in out.splitlines() if line.startswith("vit ")]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "required: NAME"),
        (["vit_tinny_patch16_224"], "did you mean 'vit_tiny_patch16_224'"),
        (["vit", "--mode", "backward"], "invalid choice: 'backward'"),
        (["vit", "--precision", "16"], "invalid choice: '16'"),
        (["vit", "--against", "keras"], "not against 'keras'"),
        (["vit", "--btach", "2"], "unknown option '--btach'; did you mean '--batch'"),
        (["vit", "--batch", "0"], "batch size must be at least 1, got 0"),
        (["vit", "--batch", "many"], "invalid int value: 'many'"),
        (["vit", "--rounds", "0"], "number of rounds must be at least 1, got 0"),
        (["vit", "--img-size", "8", "8", "8"], "--img-size must be a positive whole number or a pair"),
        (["vit", "--img-size", "-4"], "--img-size must be a positive whole number or a pair"),
        (["vit", "--set", "img_size=16"], "give the size of the images as --img-size"),
        (["vit", "--set", "dept=2"], "did you mean 'depth'"),
        (["vit", "--device", "abacus"], "device 'abacus' cannot be used here"),
        (["hvt_small", "--against", "timm"], "timm has no counterpart of hvt_small"),
    ],
)
def test_wrong_usage(capsys, words, message):
    fails(capsys, words, 2, message)


def test_what_failed(capsys, tmp_path, monkeypatch):
    fails(capsys, [tmp_path / "none"], 1, "no run folder at")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = r"timm is not installed; install it with `pip install 'vitrail\[peers\]'`"
    fails(capsys, ["vit", "--against", "timm"], 1, message)


def test_help_lists_it(capsys):
    assert main(["--help"]) == 0
    assert re.search(r"^  bench ", capsys.readouterr().out, re.MULTILINE)
    with pytest.raises(SystemExit) as stop:
        main(["bench", "--help"])
    assert stop.value.code == 0
    assert "--against" in capsys.readouterr().out
