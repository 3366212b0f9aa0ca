"""Exports of multi-label runs, of all kinds of windows: predictions and metrics of the run."""

import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.deploy.eager import eager_engines as eager_engines
from tests.deploy.exporting import QUICK, needs_openvino, record, train
from tests.tiers import fast_first
from vitrail.cli.main import main
from vitrail.engines import load_export

LABELS = ("blue", "green", "red")
MODELS = {
    "vit": "--model.name vit --model.patch_size 4 --model.embed_dim 8 --model.depth 1 --model.num_heads 2",
    "hvt, windows": "--data.spectral.derive edges --model.name hvt --model.patch_size 4 --model.embed_dim 8 "
    "--model.spectral_embed_dim 8 --model.depths [1,1] --model.num_heads [2,2] --model.attention 2",
    "swin, padded after the shift": "--model.name swin --model.patch_size 2 --model.embed_dim 8 --model.depths [2] "
    "--model.num_heads [2] --model.window_size 5 --model.mask_padding false --model.pad_after_shift true",
}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Each label lights a band of pictures of several sizes."""
    folder = tmp_path_factory.mktemp("labels")
    rng = np.random.default_rng(1)
    rows = []
    for number in range(60):
        shown = rng.random(3) < 0.45
        pixels = rng.integers(0, 60, (18 + number % 5, 20, 3)) + 140 * shown[::-1]
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
        rows.append({"path": f"{number}.png", "label": "|".join(np.array(LABELS)[shown])})
    pd.DataFrame(rows).to_csv(folder / "table.csv", index=False)
    return folder / "table.csv"


def run_of(table, name):
    """The run of a model, trained when first asked for."""
    run = table.parent / f"run {name}"
    if not run.exists():
        words = ["--data.table.label_separator", "|", "--task.loss", "bce"]
        train(table, run, *words, *MODELS[name].split(), source="table")
    return run


def check(table, run, out, capsys):
    """The export predicts and evaluates as the run."""
    capsys.readouterr()
    files = [str(table.parent / f"{number}.png") for number in range(8)]
    found = []
    for model in (run, out):
        assert main(["predict", str(model), *files, "--top-k", "3"]) == 0
        found.append(capsys.readouterr().out.splitlines()[:9])
    digits = re.compile(r"0\.\d+")
    for wanted, own in zip(*found, strict=True):
        assert digits.sub("", own) == digits.sub("", wanted)
        numbers = [[*map(float, digits.findall(line))] for line in (wanted, own)]
        assert np.allclose(*numbers, rtol=0, atol=1e-5)
    place = ["--data.path", str(table)]
    metrics = []
    for model in (run, out):
        assert (
            main(["evaluate", str(model), *place, *(["--split", "test", "--resamples", "100"] if model == run else [])])
            == 0
        )
        text = capsys.readouterr().out
        metrics.append(re.search(r"all labels right .*, mean average precision (0\.\d+|1\.0+), macro F1", text))
    assert all(metrics)


@pytest.mark.usefixtures("eager_engines")
@pytest.mark.parametrize("name", fast_first(MODELS, 1))
def test_a_multi_label_run_is_exported(table, name, tmp_path, capsys):
    run = run_of(table, name)
    words = ["--include", "heatmap", "embedding", "sets", "ood"]
    assert main(["export", str(run), "--out", str(tmp_path / "out"), *QUICK, *words]) == 0
    (candidate,) = record(tmp_path / "out")["candidates"]
    verdict = candidate["verdict"]
    assert verdict["status"] == "passed"
    assert verdict["precision_drop"] == pytest.approx(0, abs=1e-6)
    assert record(tmp_path / "out")["test"]["metric"] == "mean average precision"
    assert record(tmp_path / "out")["decisions"]["set"]["method"] == "probability of at least 0.5"
    check(table, run, tmp_path / "out", capsys)


@pytest.mark.slow
@needs_openvino
@pytest.mark.parametrize("name", MODELS)
def test_an_engine_equals_a_multi_label_run(table, name, tmp_path, capsys):
    run = run_of(table, name)
    words = ["--format", "openvino", "--precision", "fp32", "--budget", "1s", "--threads", "1", "--include", "heatmap"]
    assert main(["export", str(run), "--out", str(tmp_path / "out"), *words]) == 0
    assert record(tmp_path / "out")["check"]["differences_from_run"]["logits"] < 1e-5
    assert load_export(tmp_path / "out").check()["logits"] < 1e-5
    check(table, run, tmp_path / "out", capsys)
