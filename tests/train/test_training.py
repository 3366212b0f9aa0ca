"""Training writes a whole run folder; a killed run goes on as if nothing had happened."""

import json
import random
import re
import subprocess
import sys

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.images import make_folder, save_image
from vitrail.cli.recipes import make_recipe
from vitrail.config.changes import apply_changes
from vitrail.errors import ConfigError, DataError, RunError, WeightsError
from vitrail.runs import RunFolder, load_trained
from vitrail.train import supervised, train
from vitrail.train.auto import precision
from vitrail.train.auto.trial_steps import TrialSteps
from vitrail.train.callbacks import checkpoints
from vitrail.train.module import TaskModule

TINY = {
    "data": {"source": "digits", "augment": "light", "batch_size": 128, "loader": {"num_workers": 0}},
    "model": {"name": "vit", "img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2,
              "drop_path_rate": 0.1},
    "trainer": {"max_epochs": 3, "accelerator": "cpu", "precision": "32-true"},
    "run": {"tensorboard": False},
}  # fmt: skip


def recipe(folder, **changes):
    content = {part: dict(values) for part, values in TINY.items()}
    content["run"]["dir"] = str(folder)
    layer = {name.replace("__", "."): value for name, value in changes.items()}
    return make_recipe(apply_changes(content, layer))


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    return train(recipe(tmp_path_factory.mktemp("runs") / "whole", run__tensorboard=True))


def test_the_run_folder_is_complete(whole_run):
    assert yaml.safe_load(whole_run.recipe.read_text())["model"]["embed_dim"] == 16
    environment = json.loads(whole_run.environment.read_text())
    assert environment["packages"]["torch"] == torch.__version__
    metrics = pd.read_csv(whole_run.metrics)
    assert metrics["epoch"].tolist() == [0, 1, 2]
    assert metrics[["train_loss", "val_loss", "train_accuracy", "val_accuracy"]].notna().all(axis=None)
    assert (metrics["train_images_per_second"] > 0).all()
    assert whole_run.last_checkpoint.is_file()
    assert whole_run.best_checkpoint.is_file()
    assert list((whole_run.path / "tensorboard").glob("events*"))
    card = json.loads(whole_run.card.read_text())
    assert card["classes"] == [str(i) for i in range(10)]
    assert list(card["streams"]) == ["image"]
    assert card["streams"]["image"]["bands"] == ["gray"]
    assert card["epoch"] == metrics["val_accuracy"].idxmax()
    assert not list(whole_run.path.rglob("*.tmp"))


def test_the_best_weights_are_those_of_the_best_epoch(whole_run):
    best = torch.load(whole_run.best_checkpoint, weights_only=False)["state_dict"]
    for key, value in load_file(whole_run.weights).items():
        assert torch.equal(value, best[f"task.model.{key}"])
    trained = load_trained(whole_run)
    logits, embedding = trained.classify({"image": torch.rand(3, 1, 8, 8)})
    assert logits.shape == (3, 10)
    assert embedding.shape == (3, 16)


class _Killed(BaseException):
    pass


@pytest.mark.fast_cases("after metrics")
@pytest.mark.parametrize("moment", ["after metrics", "after weights", "before last.ckpt", "after last.ckpt"])
def test_a_run_that_stopped_anywhere_ends_the_same(tmp_path, whole_run, monkeypatch, moment):
    folder = tmp_path / "stopped"
    epoch = random.Random(moment).randrange(3)
    written = {"after metrics": RunFolder, "after weights": checkpoints, "last": checkpoints.WholeCheckpoints}

    def stop_in(owner, name, wanted, before=False):
        original = getattr(owner, name)
        calls = [0]

        def replacement(*args, **kwargs):
            matches = wanted is None or any(str(a).endswith(wanted) for a in args)
            calls[0] += matches
            if matches and before and calls[0] == epoch + 1:
                raise _Killed
            result = original(*args, **kwargs)
            if matches and not before and calls[0] == epoch + 1:
                raise _Killed
            return result

        monkeypatch.setattr(owner, name, replacement)

    if moment == "after metrics":
        stop_in(written[moment], "write_metrics", None)
    elif moment == "after weights":
        epoch = 0  # the first epoch always improves
        stop_in(written[moment], "write_trained", None)
    else:
        stop_in(written["last"], "save_checkpoint", "last.ckpt", before=moment.startswith("before"))
    with pytest.raises(_Killed):
        train(recipe(folder))
    monkeypatch.undo()
    run = train(recipe(folder), resume=True)
    _assert_same_end(run, whole_run)


def _assert_same_end(run, expected):
    columns = ["epoch", "step", "train_loss", "val_loss", "train_accuracy", "val_accuracy", "learning_rate"]
    pd.testing.assert_frame_equal(run.read_metrics()[columns], expected.read_metrics()[columns])
    theirs = load_file(expected.weights)
    for key, value in load_file(run.weights).items():
        assert torch.equal(value, theirs[key]), key
    last = [torch.load(r.last_checkpoint, weights_only=False)["state_dict"] for r in (run, expected)]
    assert all(torch.equal(last[0][key], last[1][key]) for key in last[1])


LITTLE_SPACE = """
import resource, sys
from vitrail.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), -1))
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no limit to the size of files")
@pytest.mark.parametrize("size", [90_000, pytest.param(30_000, marks=pytest.mark.slow)])
def test_a_disk_that_is_full_is_said_and_nothing_is_left_in_half(tmp_path, size):
    """A checkpoint (about 150 kB here) or the weights (about 50 kB) do not fit; with room again the run goes on."""
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe(tmp_path / "run", trainer__max_epochs=1).to_dict()))
    command = [sys.executable, "-c", LITTLE_SPACE, str(size), "train", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert re.search(r"vitrail: error: cannot write \S+", done.stderr.splitlines()[-1])
    left = {path.name for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert "recipe.yaml" in left
    assert not [name for name in left if name.endswith(".tmp")]
    again = train(recipe(tmp_path / "run", trainer__max_epochs=1), resume=True)
    assert again.weights.is_file()


def test_a_run_folder_is_not_overwritten_unasked(whole_run, tmp_path):
    before = whole_run.weights.read_bytes()
    with pytest.raises(RunError, match="holds a run"):
        train(recipe(whole_run.path))
    assert whole_run.weights.read_bytes() == before
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "to_keep.txt").write_text("dear")
    with pytest.raises(RunError, match=r"no recipe\.yaml"):
        train(recipe(tmp_path / "letters", run__overwrite=True))
    assert (tmp_path / "letters" / "to_keep.txt").exists()


def test_resume_refuses_another_recipe(whole_run):
    with pytest.raises(ConfigError, match=r"model.embed_dim = 32: it began with 16"):
        train(recipe(whole_run.path, model__embed_dim=32), resume=True)


def test_resume_refuses_a_damaged_checkpoint(tmp_path):
    run = train(recipe(tmp_path / "x", trainer__max_epochs=1))
    content = run.last_checkpoint.read_bytes()
    foreign = tmp_path / "foreign.ckpt"
    torch.save({"state_dict": {"w": torch.zeros(3)}, "epoch": 3}, foreign)
    for damaged in (content[: len(content) // 2], b"not a checkpoint", b"", foreign.read_bytes()):
        run.last_checkpoint.write_bytes(damaged)
        with pytest.raises(RunError, match=r"cannot resume from .*last.ckpt"):
            train(recipe(tmp_path / "x", trainer__max_epochs=2), resume=True)
    assert run.weights.is_file()


def test_resume_needs_a_run_and_the_same_images(tmp_path, whole_run):
    with pytest.raises(RunError, match="no run folder"):
        train(recipe(tmp_path / "none"), resume=True)
    images = make_folder(tmp_path / "images", per_class=4)
    changes = {"data__source": "folder", "data__path": str(images), "data__batch_size": 4, "trainer__max_epochs": 1}
    run = train(recipe(tmp_path / "x", **changes))
    save_image(images / "train" / "dark" / "new.png")
    with pytest.raises(DataError, match="images, classes or splits have changed"):
        train(recipe(tmp_path / "x", **{**changes, "trainer__max_epochs": 2}), resume=True)
    with pytest.raises(ConfigError, match="3 epochs are trained"):
        train(recipe(whole_run.path, trainer__max_epochs=2), resume=True)
    assert run.weights.is_file()


def test_nothing_of_others_is_deleted(tmp_path):
    home = tmp_path / "home"
    (home / "docs").mkdir(parents=True)
    for name in (".draft.tmp", ".a.abcdefgh.tmp", "docs/.draft.tmp", "docs/.a.abcdefgh.tmp"):
        (home / name).write_text("precious")
    with pytest.raises(RunError, match="holds a run or other files"):
        train(recipe(home))
    assert len([p for p in home.rglob("*") if p.is_file()]) == 4


def test_precision_is_what_was_asked_for_or_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"'16-mixed' cannot be used here"):
        train(recipe(tmp_path / "x", trainer__precision="16-mixed"))
    run = train(recipe(tmp_path / "y", trainer__precision="bf16-mixed", trainer__max_epochs=1))
    assert run.read_metrics()["val_loss"].notna().all()


@pytest.mark.slow
def test_more_epochs_can_be_asked_for(tmp_path):
    train(recipe(tmp_path / "x", trainer__max_epochs=1))
    run = train(recipe(tmp_path / "x", trainer__max_epochs=2), resume=True)
    assert run.read_metrics()["epoch"].tolist() == [0, 1]
    assert yaml.safe_load(run.recipe.read_text())["trainer"]["max_epochs"] == 2


def test_faults_are_found_before_the_run_folder_is_made(tmp_path):
    cases = [
        ({"model__num_classes": 7}, ConfigError, r"model.num_classes is 7, the data has 10"),
        ({"model__in_chans": 3}, ConfigError, r"model.in_chans is 3, the data has 1"),
        ({"model__weights": str(tmp_path / "no.safetensors")}, WeightsError, "no file of weights"),
        ({"data__source": "folder", "data__path": str(tmp_path / "none")}, DataError, "no folder of images"),
        ({"data__splitting__val_fraction": 0.0}, DataError, "'val' split"),
        ({"model__patch_size": 16}, ConfigError, "smaller than one patch"),
    ]
    for changes, kind, message in cases:
        with pytest.raises(kind, match=message):
            train(recipe(tmp_path / "x", **changes))
        assert not (tmp_path / "x").exists()


def test_fine_tuning_starts_from_a_run(whole_run, tmp_path, capsys):
    run = train(recipe(tmp_path / "x", model__weights=str(whole_run.path), trainer__max_epochs=1))
    assert "loaded" in capsys.readouterr().out
    assert run.read_metrics()["val_loss"][0] < whole_run.read_metrics()["val_loss"][0]


def test_a_diverging_loss_stops_the_run(tmp_path):
    with pytest.raises(RunError, match=r"training loss became (nan|inf) in epoch \d+, step \d+.*learning_rate"):
        train(
            recipe(
                tmp_path / "x",
                trainer__learning_rate=1e30,
                trainer__gradient_clip=0.0,
                trainer__warmup_epochs=0.0,
            )
        )

    batch = load_file(tmp_path / "x" / "diverged_batch.safetensors")
    assert batch["image"].shape == (128, 1, 8, 8)
    assert batch["target"].shape == batch["index"].shape == (128,)


@pytest.mark.slow
def test_early_stopping(tmp_path):
    run = train(recipe(tmp_path / "x", trainer__max_epochs=30, trainer__early_stopping_patience=1, data__batch_size=400,
                       trainer__learning_rate=0.5, trainer__warmup_epochs=0.0))  # fmt: skip
    assert len(run.read_metrics()) < 30


def test_every_way_of_training_resumes_exactly(tmp_path, monkeypatch):
    settings = {
        "trainer__ema_decay": 0.9, "trainer__accumulate": 3, "trainer__layer_decay": 0.8,
        "trainer__grad_checkpointing": True, "task__loss": "focal", "task__class_weights": "balanced",
        "model__name": "hvt", "model__depths": [1, 1], "model__num_heads": [1, 2], "data__spectral__derive": "edges",
        "data__augment": "standard", "trainer__max_epochs": 2,
    }  # fmt: skip

    def made(folder):
        content = {part: dict(values) for part, values in TINY.items()}
        del content["model"]["depth"]
        content["run"]["dir"] = str(folder)
        layer = {name.replace("__", "."): value for name, value in settings.items()}
        return make_recipe(apply_changes(content, layer))

    whole = train(made(tmp_path / "whole"))
    original, calls = checkpoints.WholeCheckpoints.save_checkpoint, []

    def stop(self, checkpoint, path, *args, **kwargs):
        original(self, checkpoint, path, *args, **kwargs)
        calls.append(path)
        if str(path).endswith("last.ckpt") and sum(str(p).endswith("last.ckpt") for p in calls) == 1:
            raise _Killed

    monkeypatch.setattr(checkpoints.WholeCheckpoints, "save_checkpoint", stop)
    with pytest.raises(_Killed):
        train(made(tmp_path / "stopped"))
    monkeypatch.undo()
    _assert_same_end(train(made(tmp_path / "stopped"), resume=True), whole)


def test_the_kept_weights_are_the_moving_average(tmp_path, monkeypatch):
    seen = []

    def keep(self, *args):
        seen.append({k: v.detach().clone() for k, v in self.task.model.named_parameters()})

    monkeypatch.setattr(TaskModule, "on_train_batch_end", keep)
    run = train(recipe(tmp_path / "x", trainer__ema_decay=0.8, trainer__max_epochs=1, trainer__learning_rate=0.02))
    average = seen[0]
    for number, weights in enumerate(seen[1:], start=1):
        decay = min(0.8, (1 + number) / (10 + number))
        average = {k: decay * average[k] + (1 - decay) * v for k, v in weights.items()}
    kept = load_file(run.weights)
    assert any(not torch.allclose(kept[k], seen[-1][k], atol=1e-3) for k in average)
    for key, value in average.items():
        assert torch.allclose(kept[key], value, atol=1e-5), key


def test_accumulated_steps_are_one_large_batch(tmp_path):
    """Without chance in the model or the images, three batches of 209 whose gradients add up are one of 627."""
    fixed = {"model__drop_path_rate": 0.0, "data__augment": "none", "trainer__max_epochs": 2,
             "trainer__precision": "32-true"}  # fmt: skip
    small = train(recipe(tmp_path / "s", data__batch_size=209, trainer__accumulate=3, **fixed))
    large = train(recipe(tmp_path / "l", data__batch_size=627, **fixed))
    assert small.read_metrics()["step"].tolist() == large.read_metrics()["step"].tolist() == [2, 4]
    a, b = load_file(small.weights), load_file(large.weights)
    assert all(torch.allclose(a[k], b[k], atol=1e-4) for k in a)


@pytest.mark.slow
@pytest.mark.parametrize(
    "features", [{"amx_bf16": True}, *(pytest.param(f, marks=pytest.mark.slow) for f in ({}, {"avx512_bf16": True}))]
)
def test_precision_follows_the_hardware_and_stays(tmp_path, monkeypatch, features):
    monkeypatch.setattr(precision, "_capabilities", lambda: features)
    # This model is too small to gain by bfloat16 anywhere.
    monkeypatch.setattr(TrialSteps, "seconds", lambda self, batch, bfloat16: 1.0 if bfloat16 else 2.0)
    run = train(recipe(tmp_path / "x", trainer__max_epochs=1, trainer__precision="auto"))
    wanted = "bf16-mixed" if features else "32-true"
    assert yaml.safe_load(run.recipe.read_text())["trainer"]["precision"] == wanted
    assert json.loads(run.environment.read_text())["precision"].startswith(wanted)
    why = "faster than float32 on this processor" if features else "multiplies bfloat16 in software"
    assert why in json.loads(run.environment.read_text())["precision"]
    monkeypatch.setattr(precision, "_capabilities", lambda: {} if features else {"bf16": True})
    run = train(recipe(tmp_path / "x", trainer__max_epochs=2, trainer__precision="auto"), resume=True)
    assert yaml.safe_load(run.recipe.read_text())["trainer"]["precision"] == wanted


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({**TINY["model"], "num_heads": 7}, "must divide the width"),
        ({**TINY["model"], "img_size": 3}, "smaller than one patch"),
        ({"name": "hvt", "spectral_patch_size": 8, "num_heads": (5, 5, 5, 5)}, "must divide"),
    ],
    ids=["heads", "size", "second stream"],
)
def test_what_contradicts_itself_is_refused_before_images_are_opened(tmp_path, monkeypatch, model, message):
    def opened(*_):
        raise AssertionError("the images were opened")

    monkeypatch.setattr(supervised, "open_data", opened)
    with pytest.raises(ConfigError, match=message):
        train(make_recipe({**TINY, "model": model, "run": {"dir": str(tmp_path / "x")}}))
    assert not (tmp_path / "x").exists()
