"""Images that weights were pre-trained on are recognised by what they hold, from run to run."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image

from vitrail.cli.main import main
from vitrail.runs import RunFolder

_TINY = ["--model.name", "vit", "--model.embed_dim", "16", "--model.depth", "1", "--model.num_heads", "2",
         "--model.img_size", "16", "--model.patch_size", "8", "--data.loader.num_workers", "0",
         "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--run.tensorboard", "false"]  # fmt: skip


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(30):
            pixels = rng.integers(0, 255, (16, 16, 3), "uint8")
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


def _pretrain(source, path, run):
    return main(["pretrain", "--data.source", source, "--data.path", str(path), *_TINY, "--task.name", "simmim",
                 "--task.mask_size", "8", "--task.watch_every", "0", "--run.dir", run])  # fmt: skip


def _train(path, weights, run):
    return main(["train", "--data.source", "folder", "--data.path", str(path), *_TINY, "--model.weights", weights,
                 "--run.dir", run])  # fmt: skip


def test_test_images_that_pretraining_has_seen_are_counted(photos, tmp_path, capsys):
    # Under other names and in another folder, they are the same images.
    (tmp_path / "all").mkdir()
    for number, file in enumerate(sorted(photos.rglob("*.png"))):
        shutil.copy(file, tmp_path / "all" / f"image_{number}.png")
    assert _pretrain("unlabelled", tmp_path / "all", "pre") == 0
    assert _train(photos, "pre", "run") == 0
    told = capsys.readouterr().err
    total = len(RunFolder("run").seen.read_text().splitlines())
    assert total > 60  # its own and those of its weights
    (line,) = re.findall(
        r"(\d+) of (\d+) images of the split test are among those that the weights were pre-trained on", told
    )
    assert 0 < int(line[0]) <= int(line[1])
    assert main(["evaluate", "run"]) == 0
    told = capsys.readouterr().out
    seen = RunFolder("run").read_json(RunFolder("run").evaluation / "metrics.json")["seen_in_pretraining"]
    assert seen == int(line[0])
    assert f"{seen} of {line[1]} images of the split test are among those" in told
    # Weights of the file, and through a second run, are known as well; saved predictions keep the number.
    shutil.rmtree("pre")
    assert _train(photos, "run/model.safetensors", "again") == 0
    assert f"{seen} of {line[1]} images of the split test" in capsys.readouterr().err
    assert main(["evaluate", "run", "--from-predictions"]) == 0
    assert f"{seen} of {line[1]} images of the split test" in capsys.readouterr().out


@pytest.mark.slow
def test_pretraining_on_the_same_splits_leaves_the_test_images_out(photos, capsys):
    assert _pretrain("folder", photos, "pre") == 0
    assert _train(photos, "pre", "run") == 0
    assert main(["evaluate", "run"]) == 0
    captured = capsys.readouterr()
    assert "pre-trained on" not in captured.err + captured.out
    metrics = RunFolder("run").read_json(RunFolder("run").evaluation / "metrics.json")
    assert metrics["seen_in_pretraining"] == 0
