"""Two processes do what one does."""

import os
import subprocess
import sys
import time

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.train.pair import free_port
from vitrail.config import DataConfig
from vitrail.data import open_data
from vitrail.runs import RunFolder
from vitrail.train.environment import is_first_process

SETTINGS = (
    "--model.name vit --model.img_size 8 --model.patch_size 4 --model.embed_dim 16 --model.depth 2 --model.num_heads 2 "
    "--data.batch_size 100 --trainer.accelerator cpu --trainer.learning_rate 0.003 "
    "--trainer.precision 32-true --run.tensorboard false"
).split()


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_each_batch(world):
    data = open_data(DataConfig(batch_size=60), (8, 8))

    def order(rank, world):
        loader = data.loader("train", shuffle_seed=4, rank=rank, world=world)
        loader.sampler.set_epoch(3)
        return [batch["index"] for batch in loader]

    alone = order(0, 1)
    shared = [torch.cat(parts) for parts in zip(*(order(rank, world) for rank in range(world)), strict=True)]
    assert len(alone) == len(shared) == 1259 // 60
    assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))
    parts = [torch.cat([b["index"] for b in data.loader("val", rank=r, world=world)]) for r in range(world)]
    assert sorted(torch.cat(parts).tolist()) == sorted(data.indices("val"))


def _train(folder, *settings, epochs=2):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    program = os.path.join(os.path.dirname(sys.executable), "vitrail")
    command = [sys.executable, program, "train", *SETTINGS, "--run.dir", str(folder), *settings,
               "--trainer.max_epochs", str(epochs)]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("best epoch") == 1
    return RunFolder(folder)


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    one = _train(tmp_path / "one")
    two = _train(tmp_path / "two", "--trainer.devices", "2")
    a, b = one.read_metrics(), two.read_metrics()
    assert a["step"].tolist() == b["step"].tolist()
    for name in ("train_loss", "val_loss", "train_accuracy", "val_accuracy", "val_f1_macro"):
        assert a[name].tolist() == pytest.approx(b[name].tolist(), abs=2e-5), name
    mine, theirs = load_file(one.weights), load_file(two.weights)
    assert all(torch.allclose(mine[key], theirs[key], atol=1e-4) for key in mine)


@pytest.mark.parametrize(
    ("told", "first"),
    [({}, True), ({"NODE_RANK": "0"}, True), ({"NODE_RANK": "1"}, False), ({"GROUP_RANK": "2"}, False)],
)
def test_the_first_process_is_that_of_the_first_machine(told, first, monkeypatch):
    for name in ("NODE_RANK", "GROUP_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert is_first_process() is first


@pytest.mark.slow
def test_two_machines_equal_one_though_the_second_comes_late(tmp_path):
    one = _train(tmp_path / "one")
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    words = [*SETTINGS, "--run.dir", str(tmp_path / "two"), "--trainer.num_nodes", "2", "--trainer.max_epochs", "2"]
    machines = []
    for rank in range(2):
        environment = {**os.environ, **told, "NODE_RANK": str(rank)}
        command = [sys.executable, "-m", "vitrail", "train", *words]
        machines.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
        deadline = time.monotonic() + 120
        while not (tmp_path / "two" / "recipe.yaml").is_file() and time.monotonic() < deadline:
            time.sleep(0.1)
    said = [machine.communicate(timeout=300)[0].decode() for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    a, b = one.read_metrics(), RunFolder(tmp_path / "two").read_metrics()
    for name in ("train_loss", "val_loss", "train_accuracy", "val_accuracy"):
        assert a[name].tolist() == pytest.approx(b[name].tolist(), abs=2e-5), name


@pytest.mark.slow
def test_two_processes_go_on_where_they_stopped(tmp_path):
    two = ("--trainer.devices", "2")
    _train(tmp_path / "x", *two)
    again = _train(tmp_path / "x", *two, "--resume", epochs=3)
    assert again.read_metrics()["epoch"].tolist() == [0, 1, 2]


@pytest.mark.slow
def test_processes_agree_on_what_the_first_has_found(tmp_path, monkeypatch):
    given = ("--data.batch_size", "100", "--trainer.learning_rate", "0.003")
    monkeypatch.setitem(globals(), "SETTINGS", [word for word in SETTINGS if word not in given])
    auto = ("--trainer.learning_rate", "auto", "--data.batch_size", "auto")
    random = ("--data.loader.sampling", "balanced", "--data.augment", "strong", "--trainer.progressive_sizes", "[4]")
    two = _train(tmp_path / "x", "--trainer.devices", "2", *auto, *random)
    assert two.read_metrics()["epoch"].tolist() == [0, 1]
    found = yaml.safe_load(two.recipe.read_text())
    assert found["data"]["batch_size"] % 2 == 0
    assert 0 < found["trainer"]["learning_rate"] < 1
