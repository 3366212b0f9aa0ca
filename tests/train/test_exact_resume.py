"""Interrupted in the middle of an epoch, in every mode of training, a resumed run ends bit for bit as a whole one."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from vitrail.cli.recipes import make_recipe
from vitrail.runs import RunFolder
from vitrail.train import train
from vitrail.train.supervised import SupervisedModule

VIT = {
    "name": "vit",
    "img_size": 8,
    "patch_size": 4,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "drop_path_rate": 0.1,
}
HVT = {"name": "hvt", "img_size": 16, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2]}
MAXVIT = {"name": "maxvit", "img_size": 16, "stem_width": 8, "embed_dim": [8, 16], "depths": [1, 1], "dim_head": 8,
          "window_size": 2}  # fmt: skip
EVERYTHING = {"band_dropout": 0.1, "stream_dropout": 0.2, "blur": 0.3, "quarter_turns": 0.5, "rotate": 20}
MODES = {
    "strong, balanced, progressive, unfreezing, average": {
        "model": HVT,
        "data": {"augment": "strong", "augmentation": EVERYTHING, "spectral": {"derive": "edges"},
                 "loader": {"num_workers": 0, "sampling": "balanced"}},
        "trainer": {"progressive_sizes": [8, 12], "freeze_epochs": 1, "ema_decay": 0.9, "accumulate": 2},
    },
    "trivialaugment, found batch size, focal": {
        "model": MAXVIT,
        "data": {"augment": "leaf", "augmentation": {"auto": "trivialaugment", "cutmix": 1}, "batch_size": "auto"},
        "task": {"loss": "focal", "class_weights": "balanced"},
        "trainer": {"precision": "bf16-mixed"},
    },
    "several labels, workers": {
        "model": VIT,
        "data": {"source": "table", "table": {"label_separator": ";"}, "augment": "standard",
                 "augmentation": {"mixup": 0.4}, "batch_size": 16, "loader": {"num_workers": 2}},
        "task": {"loss": "bce", "class_weights": "balanced"},
        "trainer": {"monitor": "val_map"},
    },
    "compiled, found rate": {
        "model": VIT,
        "data": {"augment": "light"},
        "trainer": {"compile": True, "ema_decay": 0.9, "learning_rate": "auto"},
    },
}  # fmt: skip


class _Killed(BaseException):
    pass


def _table(folder):
    rng = np.random.default_rng(3)
    rows = []
    folder.mkdir(parents=True)
    for i in range(60):
        labels = [name for name in "abc" if rng.random() < 0.5]
        Image.fromarray(rng.integers(0, 255, (10, 12, 3)).astype(np.uint8)).save(folder / f"{i}.png")
        rows.append({"path": f"{i}.png", "label": ";".join(labels)})
    pd.DataFrame(rows).to_csv(folder / "table.csv", index=False)
    return str(folder / "table.csv")


def _recipe(mode, folder, table):
    content = {
        "data": {"batch_size": 157, "loader": {"num_workers": 0}, **mode.get("data", {})},
        "model": dict(mode["model"]),
        "task": mode.get("task", {}),
        # The precision that is found by timing may be another one in another run.
        "trainer": {"max_epochs": 3, "accelerator": "cpu", "precision": "32-true", **mode["trainer"]},
        "run": {"dir": str(folder), "tensorboard": False, "seed": 7},
    }
    if content["data"].get("source") == "table":
        content["data"]["path"] = table
    return make_recipe(content)


def _interrupted(recipe, monkeypatch, epoch, step):
    original = SupervisedModule.training_step

    def stop(self, batch, batch_idx):
        if (self.current_epoch, batch_idx) == (epoch, step):
            raise _Killed
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patched:
        patched.setattr(SupervisedModule, "training_step", stop)
        with pytest.raises(_Killed):
            train(recipe)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODES)
def test_interrupted_in_the_middle(name, tmp_path, monkeypatch):
    mode = MODES[name]
    table = _table(tmp_path / "table")
    whole_recipe = _recipe(mode, tmp_path / "whole", table)
    part_recipe = _recipe(mode, tmp_path / "part", table)
    whole = train(whole_recipe)
    if "auto" in (whole_recipe.data.batch_size, whole_recipe.trainer.learning_rate):
        # The batch size depends on the clock: the second run is given what the first has found.
        content = {**yaml.safe_load(whole.recipe.read_text()), "run": part_recipe.to_dict()["run"]}
        part_recipe = make_recipe(content)
    _interrupted(part_recipe, monkeypatch, epoch=1, step=1)
    assert len(RunFolder(tmp_path / "part").read_metrics()) == 1
    torch.rand(5)  # whatever has been drawn in between
    again = train(_recipe(mode, tmp_path / "part", table), resume=True)
    assert_same_end(again, whole)


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory):
    """Uninterrupted runs by mode, each made once, and their recipes with all that was settled."""
    made = {}

    def get(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("whole")
            mode = MODES[name]
            if mode.get("data", {}).get("batch_size") == "auto":  # which depends on how busy the machine is
                mode = {**mode, "data": {**mode["data"], "batch_size": 64}}
            run = train(_recipe(mode, folder / "run", _table(folder / "table")))
            made[name] = run, yaml.safe_load(run.recipe.read_text())
        return made[name]

    return get


def _seconds(run):
    """From the first file of a run to its last."""
    return max(file.stat().st_mtime for file in run.path.rglob("*")) - run.recipe.stat().st_mtime


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_killed_at_any_moment(seed, tmp_path, whole_runs):
    """kill -9 at a random moment of the process's life: no file is left in half, and the end is the same."""
    random = np.random.default_rng(seed)
    whole, content = whole_runs(list(MODES)[seed % len(MODES)])
    content = {**content, "run": {**content["run"], "dir": str(tmp_path / "killed")}}
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(content))
    command = [sys.executable, "-m", "vitrail", "train", str(file)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    run = RunFolder(tmp_path / "killed")
    while not run.recipe.exists() and process.poll() is None:
        time.sleep(0.001)
    time.sleep(random.uniform(0, _seconds(whole)))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for name in run.path.rglob("*"):
        if name.suffix == ".json":
            json.loads(name.read_text())
        elif name.suffix == ".ckpt":
            torch.load(name, weights_only=True)
        elif name.suffix == ".safetensors":
            load_file(name)
    subprocess.run([*command, "--resume"], check=True, env=environment)
    assert_same_end(run, whole)


@pytest.mark.slow
def test_interrupted_quickly(tmp_path, monkeypatch):
    """One mode in the fast tier: everything that is random in a batch, and a size that changes."""
    mode = {
        "model": VIT,
        "data": {
            "augment": "strong",
            "augmentation": EVERYTHING,
            "loader": {"num_workers": 0, "sampling": "balanced"},
            "batch_size": 400,
        },
        "trainer": {"progressive_sizes": [4], "max_epochs": 2, "freeze_epochs": 1},
    }
    whole = train(_recipe(mode, tmp_path / "whole", None))
    _interrupted(_recipe(mode, tmp_path / "part", None), monkeypatch, epoch=1, step=2)
    assert_same_end(train(_recipe(mode, tmp_path / "part", None), resume=True), whole)


def assert_same_end(run, expected):
    mine, theirs = (
        r.read_metrics().drop(columns=["train_images_per_second", "epoch_seconds"]) for r in (run, expected)
    )
    pd.testing.assert_frame_equal(mine, theirs)
    for read in (
        lambda r: load_file(r.weights),
        lambda r: torch.load(r.last_checkpoint, weights_only=True)["state_dict"],
    ):
        a, b = read(run), read(expected)
        assert a.keys() == b.keys()
        for key in a:
            assert torch.equal(a[key], b[key]), key
