"""What is done is known from the folders, whoever made them and however they ended."""

import dataclasses
import errno
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

import vitrail
from tests.compare.runs import finish
from vitrail.compare import load_suite, plan
from vitrail.compare.execute import write_recipes
from vitrail.compare.plan import commands, expect, identity
from vitrail.config.data_groups import PointsConfig
from vitrail.config.load import load_recipe, read_yaml
from vitrail.errors import RunError
from vitrail.models.registry import find_family
from vitrail.runs.lock import lock_holder, lock_run_folder
from vitrail.runs.suite import SuiteFolder

RECIPES = Path(vitrail.__file__).parent / "recipes" / "digits"


def _states(runs):
    return [run.state() for run in runs]


def test_states_are_read_from_the_folders(place):
    runs = plan(load_suite(place()))
    assert _states(runs) == ["run"] * 6
    finish(runs[0])
    finish(runs[1], evaluated=False)
    finish(runs[2], finished=False)
    runs[3].folder.path.mkdir()  # killed before it wrote anything
    (runs[3].folder.path / ".recipe.yaml.abcdefgh.tmp").write_text("half")
    with lock_run_folder(runs[4].folder.path):
        assert _states(runs) == ["done", "evaluate", "resume", "run", "elsewhere", "run"]
    assert _states(runs)[4] == "run"


def test_predictions_that_are_gone_are_made_again(place):
    run = plan(load_suite(place(seeds=1)))[0]
    finish(run)
    run.folder.predictions("test").unlink()
    assert run.state() == "evaluate"


def test_another_evaluation_of_a_run_is_missing_on_its_own(place):
    one, views = plan(load_suite(place(variants={"one": {}, "views": {"evaluate.tta": "flips"}}, seeds=1)))
    finish(one)
    assert (one.state(), views.state()) == ("done", "evaluate")


def test_the_expected_time_comes_from_what_was_recorded(place):
    runs = plan(load_suite(place()))
    states = lambda: {run.task: run.state() for run in runs}  # noqa: E731
    assert expect(runs, states()).seconds is None
    finish(runs[0], seconds=10.0)  # 4 epochs
    assert expect(runs, states()).seconds == pytest.approx(5 * 40)
    finish(runs[2], seconds=30.0)
    finish(runs[3], finished=False)  # one epoch of four, of the variant of runs[2]
    assert expect(runs, states()).seconds == pytest.approx(40 + 0.75 * 120 + 2 * (40 + 120) / 2)
    assert expect(runs, states()).basis == 2


def test_a_run_without_labels_tells_nothing_of_the_time_of_others(place):
    first, *rest = plan(load_suite(place()))
    task = dataclasses.replace(first.recipe.task, name="simmim")
    first = dataclasses.replace(first, variant="pre-training", recipe=dataclasses.replace(first.recipe, task=task))
    assert first.is_pretraining
    finish(first, seconds=1000.0)
    states = {first.task: "done", **{run.task: "run" for run in rest}}
    assert expect([first, *rest], states).seconds is None
    finish(rest[0], seconds=10.0)
    states[rest[0].task] = "done"
    assert expect([first, *rest], states).seconds == pytest.approx((len(rest) - 1) * 40)


def test_commands_for_a_scheduler(place):
    suite = load_suite(place())
    runs = plan(suite)
    finish(runs[0])
    finish(runs[1], evaluated=False)
    finish(runs[2], finished=False)
    listed = commands(runs, write_recipes(runs, SuiteFolder(suite.dir)))
    words = [" ".join(command) for _, command in listed]
    folder = "vitrail train runs/suites/suite/recipes/"
    assert words == [f"{folder}{runs[2].identity}.yaml --resume", *(f"{folder}{r.identity}.yaml" for r in runs[3:])]


def test_a_lock_is_one_processs(tmp_path):
    assert lock_holder(tmp_path / "run") is None
    with lock_run_folder(tmp_path / "run"):
        assert f"process {os.getpid()} on" in lock_holder(tmp_path / "run")
        with (
            pytest.raises(RunError, match=r"is being trained by process \d+ on .* since"),
            lock_run_folder(tmp_path / "run"),
        ):
            pass
        assert lock_holder(tmp_path / "run") is not None  # the one turned away took nothing along
    assert lock_holder(tmp_path / "run") is None
    assert list(tmp_path.iterdir()) == []


def _hold(path):
    with lock_run_folder(path):
        time.sleep(60)


def test_the_lock_of_a_killed_process_hinders_nobody(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=_hold, args=(tmp_path / "run",))
    process.start()
    for _ in range(500):
        if lock_holder(tmp_path / "run") is not None:
            break
        time.sleep(0.01)
    assert lock_holder(tmp_path / "run") is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert lock_holder(tmp_path / "run") is None
    with lock_run_folder(tmp_path / "run"):
        pass


def test_a_full_disk_names_the_lock_and_leaves_none(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with (
        pytest.raises(RunError, match=r"cannot write the lock .*run.*No space left"),
        lock_run_folder(tmp_path / "run"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("recipe", "of_an_earlier_version"),
    [
        ("hvt", "6ebc933c42d5"),
        ("maxvit", "983462b19394"),
        ("swin", "04d102aec94a"),
        ("vit", "ac81eb2b69fc"),
        ("vit_token_learner", "27d58557a75e"),
    ],
)
def test_settings_added_later_leave_identities_as_they_were(recipe, of_an_earlier_version):
    """The identities were recorded before families had dropout rates, norms by name and the like.

    With other identities the trained runs of a suite would not be found again.
    """
    path = RECIPES / f"{recipe}.yaml"
    assert identity(load_recipe(path, settings_of=lambda name: find_family(name)[0].config)) == of_an_earlier_version
    changed = load_recipe(path, ["--model.drop_rate", "0.1"], settings_of=lambda name: find_family(name)[0].config)
    assert identity(changed) != of_an_earlier_version


@pytest.mark.fast_cases("vit_token_learner")
@pytest.mark.parametrize("recipe", ["hvt", "maxvit", "swin", "vit", "vit_token_learner"])
def test_defaults_that_are_written_out_leave_identities_as_they_are(recipe):
    """Each setting of the family alone, and all together; those of a part too."""
    content = read_yaml(RECIPES / f"{recipe}.yaml")
    family, _ = find_family(content["model"]["name"])
    defaults = {field.name: field.default for field in dataclasses.fields(family.config)}
    of_data = ("num_classes", "in_chans", "spectral_chans", "img_size")
    left_out = {key: value for key, value in defaults.items() if key not in (*content["model"], *of_data)}
    if "token_learner" in content["model"]:
        left_out["token_learner"] = {"dropout_rate": 0.0, **content["model"]["token_learner"]}
    assert left_out["drop_rate"] == 0.0

    def identity_with(**settings):
        changed = {**content, "model": {**content["model"], **settings}}
        return identity(load_recipe(changed, settings_of=lambda _: family.config))

    plain = identity_with()
    assert {key: identity_with(**{key: value}) for key, value in left_out.items()} == dict.fromkeys(left_out, plain)
    assert identity_with(**left_out) == plain
    assert identity_with(drop_rate=0.1) != plain


@pytest.mark.parametrize(("name", "value"), [("num_points", 64), ("zoom", (0.5, 1.5)), ("turn", "so3")])
def test_a_setting_of_an_added_group_counts_beside_its_default(name, value):
    plain = load_recipe(RECIPES / "vit.yaml", settings_of=lambda name: find_family(name)[0].config)
    default = getattr(plain.data.points, name)
    written, changed = (
        dataclasses.replace(plain, data=dataclasses.replace(plain.data, points=PointsConfig(**{name: one})))
        for one in (default, value)
    )
    assert identity(written) == identity(plain) != identity(changed)
