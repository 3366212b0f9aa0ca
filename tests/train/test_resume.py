"""A run that goes on: what may change takes effect or is refused; a run that has ended stays as it is."""

import json
import signal
from types import SimpleNamespace

import pytest
import torch

from tests.images import make_folder, save_image
from tests.train.test_training import TINY, recipe
from vitrail.cli.main import main
from vitrail.cli.recipes import make_recipe
from vitrail.config.load import dump_recipe
from vitrail.errors import ConfigError, DataError
from vitrail.runs.input_hashes import input_hashes
from vitrail.train import train
from vitrail.train.callbacks.early_stopping import waited
from vitrail.train.module import TaskModule
from vitrail.train.supervised import SupervisedModule
from vitrail.weights.write import write_weights

WILD = {"trainer__learning_rate": 0.5, "trainer__warmup_epochs": 0.0}  # soon gets no better


def _content(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    return train(recipe(tmp_path_factory.mktemp("short") / "run", trainer__max_epochs=1))


@pytest.mark.fast_cases("changes1")
@pytest.mark.parametrize("changes", [{}, {"trainer__early_stopping_patience": 3}, {"data__loader__num_workers": 1}])
def test_a_finished_run_stays_as_it_is(short, capsys, changes):
    before = _content(short.path)
    train(recipe(short.path, trainer__max_epochs=1, **changes), resume=True)
    assert _content(short.path) == before
    assert f"{short.path} is finished: its only epoch is trained; nothing is changed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run__seed": 5}, r"run.seed = 5: it began with 0"),
        ({"run__seed": 5, "trainer__max_epochs": 3}, r"run.seed = 5: it began with 0"),
        ({"trainer__monitor": "val_loss"}, "trainer.monitor = 'val_loss': it began with 'val_accuracy'"),
        ({"trainer__early_stopping_monitor": "val_f1_macro"}, "early_stopping_monitor = 'val_f1_macro'"),
        ({"trainer__warmup_epochs": 1.0, "trainer__max_epochs": 4}, "warmup_epochs"),
        ({"data__augment": "none"}, "data.augment = 'none'"),
        ({"run__overwrite": True}, "run.overwrite true deletes it"),
        ({"data__values__statistics": "other.json"}, "data.values.statistics = 'other.json': it began with None"),
    ],
)
@pytest.mark.fast_cases("changes0-run.seed = 5: it began with 0", "changes6-run.overwrite true deletes it")
def test_what_may_not_change_is_refused(short, changes, message):
    before = _content(short.path)
    with pytest.raises(ConfigError, match=message):
        train(recipe(short.path, **{"trainer__max_epochs": 1, **changes}), resume=True)
    assert _content(short.path) == before


def test_patience_that_changes_takes_effect(tmp_path, capsys):
    settings = {"trainer__max_epochs": 6, "trainer__early_stopping_monitor": "val_accuracy", **WILD}
    run = train(recipe(tmp_path / "x", trainer__early_stopping_patience=1, **settings))
    stopped = len(run.read_metrics())
    assert stopped < 6
    before = _content(run.path)
    train(recipe(tmp_path / "x", trainer__early_stopping_patience=1, **settings), resume=True)
    assert _content(run.path) == before
    assert "val_accuracy has not improved for 1 epoch (" in capsys.readouterr().out
    train(recipe(tmp_path / "x", trainer__early_stopping_patience=2, **settings), resume=True)
    rows = run.read_metrics()
    assert len(rows) > stopped
    assert len(rows) == 6 or waited(rows["val_accuracy"], "val_accuracy") == 2
    # With none at all it goes on to the end; a run that began with none counts its earlier epochs.
    train(recipe(tmp_path / "x", trainer__early_stopping_patience=0, **settings), resume=True)
    assert len(run.read_metrics()) == 6


def test_earlier_epochs_count_for_a_new_patience(tmp_path, capsys):
    """Also where the run stops without another epoch."""
    settings = {"trainer__early_stopping_monitor": "val_loss", **WILD}
    run = train(recipe(tmp_path / "x", trainer__max_epochs=4, **settings))
    values = run.read_metrics()["val_loss"].tolist()
    run.write_json(run.environment, {k: v for k, v in run.read_json(run.environment).items() if k != "finished"})
    patience = max(waited(values, "val_loss"), 1)
    again = {"trainer__max_epochs": 5, "trainer__early_stopping_patience": patience, **settings}
    train(recipe(tmp_path / "x", **again), resume=True)
    new = run.read_metrics()["val_loss"].tolist()
    assert len(new) == (4 if waited(values, "val_loss") else 5)
    assert run.finished


@pytest.mark.parametrize(("values", "monitor", "count"), [
    ([], "val_loss", 0), ([3, 2, 1], "val_loss", 0), ([1, 2, 3], "val_loss", 2), ([1, 1], "val_accuracy", 1),
    ([0.1, 0.3, 0.2, 0.3], "val_accuracy", 2),
])  # fmt: skip
def test_epochs_since_the_best(values, monitor, count):
    assert waited(values, monitor) == count


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(1, 3)])
def test_the_learning_rate_does_not_rise_in_a_longer_run(tmp_path, capsys, first, then):
    settings = {"trainer__warmup_epochs": 0.5, "trainer__min_learning_rate": 1e-5}
    run = train(recipe(tmp_path / "x", trainer__max_epochs=first, **settings))
    reached = run.read_metrics()["learning_rate"].iloc[-1]
    train(recipe(tmp_path / "x", trainer__max_epochs=then, **settings), resume=True)
    rates = run.read_metrics()["learning_rate"]
    assert len(rates) == then
    assert (rates[first:] <= reached * (1 + 1e-6)).all()
    assert (rates > 0).all()
    assert f"with trainer.max_epochs {then} the schedule is another one" in capsys.readouterr().err
    # The bound stays when the longer run is itself resumed.
    train(recipe(tmp_path / "x", trainer__max_epochs=then + 1, **settings), resume=True)
    assert run.read_metrics()["learning_rate"].iloc[-1] <= reached * (1 + 1e-6)


def test_sizes_that_grow_over_the_epochs_keep_their_number(tmp_path):
    train(recipe(tmp_path / "x", trainer__max_epochs=2, trainer__progressive_sizes=[4]))
    with pytest.raises(ConfigError, match=r"max_epochs = 3: it began with 2, over which trainer.progressive_sizes"):
        train(recipe(tmp_path / "x", trainer__max_epochs=3, trainer__progressive_sizes=[4]), resume=True)


def test_files_count_by_what_they_hold(tmp_path, capsys):
    """A moved file is the same; another content under the same name is refused, and the run stays as it is."""
    from vitrail.cli.main import main

    images = make_folder(tmp_path / "images", per_class=4)
    where = ["--data.source", "folder", "--data.path", str(images), "--model.name", "vit", "--model.img_size", "8"]
    statistics = tmp_path / "stats.json"
    assert main(["data", "stats", *where, "--out", str(statistics)]) == 0
    folder = {"data__source": "folder", "data__path": str(images), "data__batch_size": 4}
    run = train(recipe(tmp_path / "x", trainer__max_epochs=1, data__values__statistics=str(statistics), **folder))
    recorded = json.loads(run.environment.read_text())["inputs"]
    assert set(recorded) == {"data.path", "data.values.statistics"}
    before = _content(run.path)
    moved = tmp_path / "moved.json"
    content = json.loads(statistics.read_text())
    statistics.rename(moved)
    content["streams"]["image"][0]["mean"] += 0.1
    statistics.write_text(json.dumps(content))
    again = {"trainer__max_epochs": 2, **folder}
    with pytest.raises(
        DataError, match=r"what data.values.statistics names holds something else than when the run began"
    ):
        train(recipe(tmp_path / "x", data__values__statistics=str(statistics), **again), resume=True)
    image = images / "train" / "dark" / next((images / "train" / "dark").iterdir()).name
    pixels = image.read_bytes()
    save_image(image, (9, 9), seed=77)
    with pytest.raises(DataError, match=r"its images, classes or splits have changed since it began"):
        train(recipe(tmp_path / "x", data__values__statistics=str(moved), **again), resume=True)
    assert _content(run.path) == before
    image.write_bytes(pixels)
    images.rename(tmp_path / "elsewhere")
    again["data__path"] = str(tmp_path / "elsewhere")
    assert (
        len(train(recipe(tmp_path / "x", data__values__statistics=str(moved), **again), resume=True).read_metrics())
        == 2
    )


def test_codes_of_inputs(tmp_path):
    images = make_folder(tmp_path / "images", per_class=2)
    data = make_recipe({"data": {"source": "folder", "path": str(images)}}).data
    first = input_hashes(data)
    assert input_hashes(data) == first
    save_image(images / "train" / "dark" / "new.png")
    assert input_hashes(data) != first
    # Weights count by their values: the same under another name and with other metadata.
    paths = [tmp_path / name for name in ("a.safetensors", "b.safetensors", "c.safetensors")]
    for path, value, depth in zip(paths, (0.0, 0.0, 1.0), (1, 2, 1), strict=True):
        write_weights(path, {"w": torch.full((3,), value)}, "vit", {"depth": depth})
    a, b, c = (input_hashes(data, str(path))["model.weights"] for path in paths)
    assert a == b != c


def test_other_code_is_reported(short, tmp_path, capsys):
    environment = json.loads(short.environment.read_text())
    assert len(environment["code"]) == 16
    environment.update(code="another", git_commit="0" * 40, git_changes=["src/vitrail/tasks/losses.py"])
    short.environment.write_text(json.dumps(environment))
    train(recipe(short.path, trainer__max_epochs=2), resume=True)
    told = capsys.readouterr().err
    assert "began with other code of vitrail (version 0" in told
    assert "commit 000000000000 with changes) than it goes on with" in told


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainer__accumulate": 200}, r"trainer.accumulate 200 is more than the 9 batches of an epoch.* at most 9"),
        ({"data__loader__sampling": "balanced", "task__class_weights": "balanced"}, "correct for rare classes twice"),
    ],
)
def test_settings_that_would_be_taken_in_another_way_are_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        train(recipe(tmp_path / "x", **changes))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("batches", "accumulate"), [(7, 5), (7, 7), (8, 3), (6, 3), (5, 1)])
def test_the_last_steps_of_an_epoch_take_the_mean_of_their_batches(batches, accumulate):
    """Lightning divides each loss by ``accumulate`` and adds up; its last group may hold fewer."""
    module = SimpleNamespace(
        config=SimpleNamespace(accumulate=accumulate), trainer=SimpleNamespace(num_training_batches=batches)
    )
    losses = torch.arange(1.0, batches + 1)
    taken = torch.stack([TaskModule.scale_to_group(module, loss, i) / accumulate for i, loss in enumerate(losses)])
    for start in range(0, batches, accumulate):
        group = slice(start, start + accumulate)
        torch.testing.assert_close(taken[group].sum(), losses[group].mean())


@pytest.mark.slow_cases("32-2-False")
@pytest.mark.parametrize(("size", "batch", "refused"), [(32, 1, True), (32, 2, False), (64, 1, False)])
def test_a_batch_norm_of_one_value_is_refused(tmp_path, size, batch, refused):
    model = {"name": "maxvit", "img_size": size, "stem_width": 8, "embed_dim": [8, 8, 16, 16], "depths": [1, 1, 1, 1],
             "dim_head": 8, "window_size": 1}  # fmt: skip
    content = {**TINY, "model": model, "run": {"dir": str(tmp_path / "x"), "tensorboard": False}}
    content["data"] = {"source": "synthetic_leaves", "leaves": {"num_images": 30}, "spectral": {"use": []},
                       "batch_size": batch, "loader": {"num_workers": 0}}  # fmt: skip
    content["trainer"] = {"max_epochs": 1, "accelerator": "cpu", "precision": "32-true"}
    if refused:
        with pytest.raises(ConfigError, match=r"data.batch_size 1 gives each of 1 process one image a step: BatchNorm"):
            train(make_recipe(content))
        assert not (tmp_path / "x").exists()
    else:
        assert len(train(make_recipe(content)).read_metrics()) == 1


@pytest.mark.parametrize("epochs", [0, 2])
def test_an_interruption_names_the_command_that_resumes(tmp_path, capsys, monkeypatch, epochs):
    folder = tmp_path / "run"
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe(folder, trainer__max_epochs=3)))
    step, handler = SupervisedModule.training_step, signal.getsignal(signal.SIGINT)

    def stop(module, *rest):
        if module.current_epoch == epochs:
            raise KeyboardInterrupt
        return step(module, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(SupervisedModule, "training_step", stop)
        assert main(["train", str(tmp_path / "recipe.yaml")]) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    command = f"vitrail train {folder}/recipe.yaml --resume"
    if epochs:
        assert last == f"vitrail: interrupted after epoch 2 of 3; continue with `{command}`"
    else:
        assert last == "vitrail: interrupted before the first checkpoint; nothing to resume"
    assert signal.getsignal(signal.SIGINT) is handler
    assert main(command.split()[1:]) == 0
    assert ("training starts from epoch 1" in capsys.readouterr().err) == (epochs == 0)


def test_an_interruption_while_images_are_opened_says_so(tmp_path, capsys, monkeypatch):
    def stop(*rest):
        raise KeyboardInterrupt

    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe(tmp_path / "run")))
    monkeypatch.setattr("vitrail.train.supervised.SupervisedBuilder.open_images", stop)
    assert main(["train", str(tmp_path / "recipe.yaml")]) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("vitrail: interrupted while the images were opened, before training; nothing is lost")
    assert not (tmp_path / "run").exists()
