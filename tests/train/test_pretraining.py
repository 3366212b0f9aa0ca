"""Pre-training writes a run from which training starts; a killed one goes on as if nothing had happened."""

import functools
import json
import os
import random
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.images import make_folder, save_image
from vitrail.cli.main import main
from vitrail.cli.recipes import make_recipe
from vitrail.config.changes import apply_changes
from vitrail.config.load import dump_recipe
from vitrail.errors import ConfigError, DataError
from vitrail.runs import load_trained
from vitrail.runs.folder import RunFolder
from vitrail.train import pretrain, train
from vitrail.train.auto.resolve import resolve_from_data
from vitrail.train.callbacks import checkpoints, representation
from vitrail.train.pretraining import PretrainingBuilder, PretrainModule
from vitrail.train.resume import resume_settings

VIT = {"name": "vit", "patch_size": 2, "embed_dim": 16, "depth": 2, "num_heads": 2, "drop_path_rate": 0.1}
SWIN = {"name": "swin", "patch_size": 1, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2}
MAXVIT = {"name": "maxvit", "stem_width": 4, "embed_dim": [8], "depths": [1], "dim_head": 4, "window_size": 2}
HVT = {"name": "hvt", "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]}
# Every way of pre-training, each family and both streams among them.
WAYS = {
    "simclr": {"task": {"name": "simclr"}, "model": VIT},
    "mae": {"task": {"name": "mae", "decoder_depth": 1}, "model": VIT, "data": {"augment": "light"}},
    "simmim": {"task": {"name": "simmim"}, "model": SWIN, "data": {"augment": "standard"}},
    "maxvit": {"task": {"name": "simmim", "normalize_target": True}, "model": MAXVIT},
    "simclr_maxvit": {"task": {"name": "simclr"}, "model": MAXVIT},
    "two_streams": {"task": {"name": "simmim", "spectral_mask_ratio": 0.25}, "model": HVT,
                    "data": {"spectral": {"derive": "edges"}}, "trainer": {"accumulate": 2}},
    "one_from_the_other": {"task": {"name": "simmim", "mask_ratio": 0.0, "spectral_mask_ratio": 1.0, "loss_on": "all"},
                           "model": HVT, "data": {"spectral": {"derive": "edges"}},
                           "trainer": {"precision": "bf16-mixed"}},
    "simclr_two_streams": {"task": {"name": "simclr"}, "model": HVT, "data": {"spectral": {"derive": "edges"}}},
}  # fmt: skip


def recipe(folder, way, **changes):
    parts = {
        "data": {
            "source": "digits",
            "batch_size": 32,
            "loader": {"num_workers": 0},
            "splitting": {"val_fraction": 0.1, "test_fraction": 0.8},
        },
        "model": {"img_size": 8},
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "warmup_epochs": 1, "precision": "32-true"},
        "run": {"tensorboard": False, "dir": str(folder)},
    }
    content = {part: {**parts.get(part, {}), **WAYS[way].get(part, {})} for part in (*parts, "task")}
    layer = {name.replace("__", "."): value for name, value in changes.items()}
    return make_recipe(apply_changes(content, layer))


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """Give the run of a way that nothing stopped."""
    return functools.cache(lambda way: pretrain(recipe(tmp_path_factory.mktemp("runs") / "whole", way)))


class _Killed(BaseException):
    pass


def _same_end(run, expected):
    columns = [name for name in expected.read_metrics() if name not in ("train_images_per_second", "epoch_seconds")]
    pd.testing.assert_frame_equal(run.read_metrics()[columns], expected.read_metrics()[columns])
    mine, theirs = (torch.load(r.last_checkpoint, weights_only=True)["state_dict"] for r in (run, expected))
    assert list(mine) == list(theirs)
    for key, value in theirs.items():
        assert torch.equal(mine[key], value), key
    kept, wanted = load_file(run.weights), load_file(expected.weights)
    assert all(torch.equal(kept[key], wanted[key]) for key in wanted)


@pytest.mark.slow
@pytest.mark.parametrize("way", [w if w == "simclr" else pytest.param(w, marks=pytest.mark.slow) for w in WAYS])
def test_a_killed_run_ends_the_same(tmp_path, monkeypatch, whole_run, way):
    whole = whole_run(way)
    rows = whole.read_metrics()
    assert rows["epoch"].tolist() == [0, 1]
    wanted = ["train_loss", "val_loss", *representation.MEASURES]
    wanted += ["val_partner_accuracy"] if "simclr" in way else []
    wanted += ["train_loss_image", "val_loss_spectral"] if way == "two_streams" else []
    assert rows[wanted].notna().all(axis=None)
    # What is kept is the last epoch's encoder, without a head.
    state = torch.load(whole.last_checkpoint, weights_only=True)["state_dict"]
    kept = load_file(whole.weights)
    assert all(torch.equal(value, state[f"task.model.{key}"]) for key, value in kept.items())
    assert not any(key.startswith(("head.fc", "decoder", "mask_token")) or key == "head.weight" for key in kept)
    card = json.loads(whole.card.read_text())
    assert (card["classes"], card["settings"]["num_classes"], card["epoch"]) == ([], 0, 1)

    steps = int(rows["step"].iloc[-1]) * (2 if way == "two_streams" else 1)
    at, done = random.Random(way).randrange(1, steps), [0]
    step = PretrainModule.training_step

    def stop(self, batch, batch_idx):
        done[0] += 1
        if done[0] == at:
            raise _Killed
        return step(self, batch, batch_idx)

    monkeypatch.setattr(PretrainModule, "training_step", stop)
    with pytest.raises(_Killed):
        pretrain(recipe(tmp_path / "killed", way))
    monkeypatch.undo()
    torch.rand(7)
    _same_end(pretrain(recipe(tmp_path / "killed", way), resume=True), whole)


@pytest.mark.parametrize("way", ["simclr", "mae", "simmim"])
def test_a_resumed_run_keeps_what_its_start_resolved(tmp_path, way):
    asked = recipe(tmp_path, way)
    begun = resolve_from_data(asked, PretrainingBuilder().open_images(asked, None), ())
    run = RunFolder(tmp_path)
    run.recipe.write_text(dump_recipe(begun))
    assert resume_settings(asked, run, resume=True) == begun


def test_killed_while_writing(tmp_path, monkeypatch, whole_run):
    whole = whole_run("simclr")
    original, calls = checkpoints.write_trained, []

    def stop(*args):
        original(*args)
        calls.append(1)
        if len(calls) == 2:
            raise _Killed

    monkeypatch.setattr(checkpoints, "write_trained", stop)
    with pytest.raises(_Killed):
        pretrain(recipe(tmp_path / "killed", "simclr"))
    monkeypatch.undo()
    _same_end(pretrain(recipe(tmp_path / "killed", "simclr"), resume=True), whole)


@pytest.mark.slow
def test_watching_changes_nothing_but_the_table(tmp_path):
    watched = pretrain(recipe(tmp_path / "a", "simclr_maxvit"))
    alone = pretrain(recipe(tmp_path / "b", "simclr_maxvit", task__watch_every=0))
    some = pretrain(recipe(tmp_path / "c", "simclr_maxvit", trainer__max_epochs=3, task__watch_every=2))
    weights = load_file(watched.weights)
    assert all(torch.equal(weights[key], value) for key, value in load_file(alone.weights).items())
    assert not set(representation.MEASURES) & set(alone.read_metrics())
    assert some.read_metrics()["rank_me"].notna().tolist() == [False, True, True]


@pytest.mark.slow  # tests/tasks/test_mae.py shows the same on one batch
def test_it_learns(tmp_path):
    run = pretrain(
        recipe(
            tmp_path / "x",
            "mae",
            trainer__max_epochs=12,
            trainer__learning_rate=4e-3,
            task__normalize_target=False,
            task__watch_every=0,
        )
    )
    losses = run.read_metrics()["val_loss"]
    assert losses.iloc[-1] < 0.9 * losses.iloc[0]


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory):
    """Images in any folders, of any sizes, and one that nobody should look at."""
    root = tmp_path_factory.mktemp("unlabelled")
    rng = random.Random(0)
    for i, folder in enumerate(["", "a", "a/b", "c/d/e"] * 5):
        save_image(root / folder / f"{i}.png", (rng.randint(9, 30), rng.randint(9, 30)), seed=i)
    (root / ".hidden.txt").write_text("no image")
    return root


def test_a_plain_folder_of_images_will_do(tmp_path, unlabelled):
    folder = {"data__source": "unlabelled", "data__path": str(unlabelled), "data__batch_size": 5,
              "data__split": "exact"}  # fmt: skip
    run = pretrain(recipe(tmp_path / "x", "simmim", trainer__max_epochs=1, **folder))
    row = run.read_metrics().iloc[0]
    assert row["step"] == 18 // 5  # a tenth of 20 is held out, exactly
    assert {"rank_me", "alignment", "uniformity"} <= set(row.index)
    assert not [name for name in row.index if name.startswith(("knn", "probe"))]
    environment = json.loads(run.environment.read_text())
    assert environment["images"]["number"] == 20
    # Without any image held out what is measured is what is trained on.
    run = pretrain(recipe(tmp_path / "y", "mae", trainer__max_epochs=1, data__splitting__val_fraction=0.0, **folder))
    assert "val_loss" not in run.read_metrics()
    assert run.read_metrics()["rank_me"].notna().all()
    with pytest.raises(ConfigError, match="unlabelled has no labels"):
        train(make_recipe({"data": {"source": "unlabelled", "path": str(unlabelled)}, "model": {"img_size": 32}}))


def test_images_set_apart_are_not_taken_in_unseen(tmp_path):
    root = make_folder(tmp_path / "images", per_class=2)
    with pytest.raises(DataError, match="has the folder test, whose images look set apart"):
        pretrain(recipe(tmp_path / "x", "mae", data__source="unlabelled", data__path=str(root)))


@pytest.mark.slow
def test_labels_left_out_are_trained_on_and_not_judged_by(tmp_path, monkeypatch):
    seen, known = [], []
    step = PretrainModule.training_step

    def look(self, batch, batch_idx):
        seen.extend(batch["index"].tolist())
        return step(self, batch, batch_idx)

    original = representation._judge

    def judge(train_features, labels, *rest):
        known.append(np.bincount(labels).tolist())
        return original(train_features, labels, *rest)

    monkeypatch.setattr(PretrainModule, "training_step", look)
    monkeypatch.setattr(representation, "_judge", judge)
    pretrain(recipe(tmp_path / "x", "mae", data__classes__label_fraction=0.05))
    assert len(set(seen)) > 150
    assert known[0] == [1] * 10  # a twentieth of about 18 each


def test_training_starts_from_it(tmp_path, capsys):
    run = pretrain(recipe(tmp_path / "pre", "two_streams", trainer__max_epochs=1))
    settings = ("--data.spectral.derive edges --data.classes.label_fraction 0.1 --data.batch_size 32 "
                "--trainer.max_epochs 1 --trainer.accelerator cpu --run.tensorboard false").split()  # fmt: skip
    capsys.readouterr()
    assert main(["train", "--model.weights", str(run), *settings, "--run.dir", str(tmp_path / "fine")]) == 0
    said = capsys.readouterr().out
    assert "0 missing" in said
    assert "new head: the model keeps its own head.weight" in said
    loaded = len(load_file(run.weights))
    assert f"{loaded} loaded" in said
    model = load_trained(tmp_path / "fine").model
    assert (model.num_classes, model.config.embed_dim, model.config.spectral_chans) == (10, 8, 2)
    # What is said on the command line or in the recipe goes before what the weights come from.
    words = ["train", f"--model.weights={run}", *settings, "--model.drop_path_rate", "0.3", "--print_config"]
    assert main(words) == 0
    printed = yaml.safe_load(capsys.readouterr().out)["model"]
    assert (printed["name"], printed["embed_dim"], printed["drop_path_rate"]) == ("hvt", 8, 0.3)
    file = tmp_path / "recipe.yaml"
    file.write_text(f"model: {{name: vit, weights: {run}}}")
    assert main(["train", str(file), "--print_config"]) == 0
    assert "embed_dim" not in yaml.safe_load(capsys.readouterr().out)["model"]
    # The same weights, before any step of training, are what training starts from.
    state = load_file(run.weights)
    report_model = load_trained(run).model
    assert all(torch.equal(report_model.state_dict()[key], value) for key, value in state.items())
    for words in (["evaluate", str(run)], ["predict", str(run), str(tmp_path)]):
        assert main(words) == 1
        assert "was pre-trained without labels" in capsys.readouterr().err


def test_a_collapse_is_said_aloud(tmp_path, monkeypatch):
    monkeypatch.setattr(representation, "collapse", lambda features, first: "all is one")
    with pytest.warns(representation.CollapseWarning, match="may have collapsed: all is one"):
        pretrain(recipe(tmp_path / "x", "mae", trainer__max_epochs=1))
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error", representation.CollapseWarning)
        pretrain(recipe(tmp_path / "y", "mae", trainer__max_epochs=1))


@pytest.mark.slow_cases("simmim-changes19-multiple of the model's first stride 2 x 2, got 3")
@pytest.mark.parametrize(
    ("way", "changes", "message"),
    [
        ("mae", {"task__name": "classification", "task__decoder_depth": None}, "not pre-training; choose --task.name"),
        ("mae", {"task__temperature": 0.1}, "task.temperature belongs to simclr and distill, and task.name is mae"),
        ("mae", {"task__label_smoothing": 0.2}, "task.label_smoothing belongs to classification"),
        ("mae", {"task__mask_ratio": 1.5}, "task.mask_ratio must be from 0 to 1, got 1.5"),
        ("mae", {"task__mask_ratio": 1.0}, "above 0 and below 1 for mae"),
        ("mae", {"task__decoder_dim": 40}, "task.decoder_dim must be a multiple of 32, got 40"),
        ("mae", {"trainer__ema_decay": 0.9}, "trainer.ema_decay 0.9 does not apply to pre-training"),
        ("mae", {"trainer__monitor": "val_loss"}, "trainer.monitor 'val_loss' does not apply"),
        ("mae", {"trainer__early_stopping_monitor": "val_accuracy"}, "trainer.early_stopping_monitor 'val_accuracy'"),
        ("mae", {"trainer__progressive_sizes": [4]}, r"trainer.progressive_sizes \[4\] is not supported"),
        ("mae", {"trainer__compile": True}, "trainer.compile true is not supported"),
        ("mae", {"data__loader__sampling": "balanced"}, "data.loader.sampling 'balanced' goes by labels"),
        ("mae", {"data__augment": "strong"}, "data.augment 'strong' mixes images and their labels"),
        ("simmim", {"data__augmentation": {"cutmix": 1.0}}, "mixes images and their labels"),
        ("simclr", {"data__augment": "light"}, "simclr draws views of its own"),
        ("simclr", {"data__augmentation": {"rotate": 10}}, "simclr draws views of its own"),
        ("simclr", {"data__batch_size": "auto"}, "at least 2 for simclr, .*, got auto"),
        ("simclr", {"task__temperature": 0.0}, "task.temperature must be above 0"),
        ("simclr", {"data__batch_size": 1}, "at least 2 for simclr"),
        ("simmim", {"task__mask_size": 3, "model__patch_size": 2}, "multiple of the model's first stride 2 x 2, got 3"),
        ("simmim", {"task__spectral_mask_ratio": 0.5}, "needs a second stream"),
        ("two_streams", {"task__mask_ratio": 1.0, "task__spectral_mask_ratio": 1.0}, "visible and masked patches"),
        ("simmim", {"task__name": "mae"}, "mae needs a model that runs on visible patches"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_before_a_folder_is_made(tmp_path, way, changes, message):
    with pytest.raises(ConfigError, match=message):
        pretrain(recipe(tmp_path / "x", way, **changes))
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_what_is_auto_is_found_once(tmp_path, unlabelled):
    """Of files, whose pixels come as bytes, and with random changes; the decoder's gradients are part of a step."""
    folder = {"data__source": "unlabelled", "data__path": str(unlabelled), "data__augment": "leaf"}
    auto = {"data__batch_size": "auto", "trainer__learning_rate": "auto"}
    run = pretrain(recipe(tmp_path / "x", "mae", **folder, **auto))
    settled = yaml.safe_load(run.recipe.read_text())
    assert settled["data"]["batch_size"] == 4  # the smallest: it leaves few steps an epoch as it is
    assert 1e-6 < settled["trainer"]["learning_rate"] < 1
    environment = json.loads(run.environment.read_text())
    assert {"data.batch_size", "trainer.learning_rate", "precision"} <= set(environment)
    again = pretrain(recipe(tmp_path / "x", "mae", **folder, **auto, trainer__max_epochs=3), resume=True)
    assert again.read_metrics()["epoch"].tolist() == [0, 1, 2]
    assert yaml.safe_load(again.recipe.read_text())["trainer"]["learning_rate"] == settled["trainer"]["learning_rate"]


@pytest.mark.slow
def test_several_labels_are_not_judged_by(tmp_path):
    rng = np.random.default_rng(0)
    lines = ["path,label"]
    for i in range(80):
        save_image(tmp_path / f"{i}.png", (9, 9), seed=i)
        lines.append(f"{i}.png,{';'.join(name for name in 'xyz' if rng.random() < 0.5)}")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    table = {"data__source": "table", "data__path": str(tmp_path / "table.csv"), "data__table__label_separator": ";"}
    changes = {"data__batch_size": 8, "data__splitting__test_fraction": 0.1, "data__classes__label_fraction": 0.5}
    run = pretrain(recipe(tmp_path / "x", "simmim", trainer__max_epochs=1, **table, **changes))
    rows = run.read_metrics()
    assert rows["rank_me"].notna().all()
    assert not [name for name in rows if name.startswith(("knn", "probe"))]
    assert json.loads(run.card.read_text())["label_separator"] is None


@pytest.mark.slow
def test_a_killed_run_with_workers_ends_the_same(tmp_path, monkeypatch):
    settings = {"task__watch_every": 0, "trainer__max_epochs": 3, "data__loader__num_workers": 1}
    whole = pretrain(recipe(tmp_path / "whole", "mae", **settings))
    step = PretrainModule.training_step

    def stop(self, batch, batch_idx):
        if (self.current_epoch, batch_idx) == (1, 2):
            raise _Killed
        return step(self, batch, batch_idx)

    monkeypatch.setattr(PretrainModule, "training_step", stop)
    with pytest.raises(_Killed):
        pretrain(recipe(tmp_path / "killed", "mae", **settings))
    monkeypatch.setattr(PretrainModule, "training_step", step)
    _same_end(pretrain(recipe(tmp_path / "killed", "mae", **settings), resume=True), whole)


def test_each_verb_refuses_the_others_task(tmp_path):
    with pytest.raises(ConfigError, match="`vitrail pretrain` does it, not train"):
        train(recipe(tmp_path / "x", "mae"))
    assert not (tmp_path / "x").exists()


def test_defaults_are_in_the_resolved_recipe(tmp_path):
    task = recipe(tmp_path, "simclr").to_dict()["task"]
    assert (task["temperature"], task["projection_dim"], task["mask_ratio"]) == (0.2, 128, None)
    assert recipe(tmp_path, "simmim").task.mask_ratio == 0.6


@pytest.mark.slow
@pytest.mark.parametrize("way", ["simclr", "two_streams"])
def test_two_processes(tmp_path, way):
    """Together they take the steps that one would, agree on the weights, and go on where they stopped."""
    file = tmp_path / "recipe.yaml"
    content = recipe(tmp_path / "two", way, trainer__devices=2, trainer__max_epochs=2).to_dict()
    file.write_text(yaml.safe_dump(content))
    program = os.path.join(os.path.dirname(sys.executable), "vitrail")
    command = [sys.executable, program, "pretrain", str(file)]
    for words in ([], ["--resume", "--trainer.max_epochs", "3"]):
        done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=500, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("epochs of") == 1
    rows = pd.read_csv(tmp_path / "two" / "metrics.csv")
    assert rows["epoch"].tolist() == [0, 1, 2]
    assert rows[["train_loss", "val_loss", "knn_accuracy", "rank_me"]].notna().all(axis=None)
    one = pretrain(recipe(tmp_path / "one", way, trainer__max_epochs=1))
    assert one.read_metrics()["step"].tolist() == rows["step"].tolist()[:1]
