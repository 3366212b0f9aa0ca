"""``vitrail compare`` and ``vitrail report`` of a suite, as they are called."""

import csv
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from tests.compare.runs import finish
from vitrail.cli.main import main
from vitrail.compare import load_suite, plan
from vitrail.runs.folder import RunFolder

RECIPE = {
    "data": {"source": "digits", "splitting": {"test_fraction": 0.5}, "batch_size": 128, "loader": {"num_workers": 0}},
    "model": {"name": "vit", "img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2},
    "trainer": {"max_epochs": 3, "accelerator": "cpu"},
    "run": {"tensorboard": False},
}


@pytest.fixture
def suite(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(RECIPE))
    content = {"recipe": "base.yaml", "variants": {"thin": {}, "wide": {"model.embed_dim": 32}}, "seeds": 2}
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return str(tmp_path / "suite.yaml")


def test_the_plan_is_shown_and_nothing_else_happens(suite, capsys, tmp_path):
    finish(plan(load_suite(suite))[0], seconds=100.0)
    assert main(["compare", suite, "--plan", "--jobs", "3"]) == 0
    out = capsys.readouterr().out
    assert "4 runs: 1 done, 3 to run; expected time: about 5 min of training, from 1 finished run; start and" in out
    assert not (tmp_path / "runs" / "suites").exists()


def test_commands_for_a_scheduler_are_commands(suite, capsys):
    finish(plan(load_suite(suite))[0])
    assert main(["compare", suite, "--list", "--trainer.max_epochs", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert main([*lines[0].split()[1:], "--print_config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["run"]["dir"].startswith("runs/compare/")
    assert printed["run"]["seed"] == 1


@pytest.mark.slow
def test_a_suite_that_is_done_is_reported_again(suite, capsys, tmp_path):
    for run in plan(load_suite(suite)):
        finish(run)
    assert main(["compare", suite]) == 0
    out = capsys.readouterr().out
    assert "nothing to train" in out
    assert "Not shown" in out
    page = tmp_path / "runs" / "suites" / "suite" / "report.html"
    page.unlink()
    assert main(["report", "runs/suites/suite"]) == 0
    assert "Not shown" in page.read_text()
    assert main(["report", "runs/suites/suite", "runs/compare"]) == 2
    assert "a page of its own" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--jobs", "0"], "--jobs must be at least 1"),
        (["--job", "2"], "unknown option '--job'; did you mean '--jobs'"),
        (["--size", "quick"], "unknown size 'quick'; it has none"),
        (["--trainer.max_epoch", "2"], "did you mean '--trainer.max_epochs'"),
        (["--trainer.max_epochs"], "--trainer.max_epochs lacks its value"),
        (["--data.leaves.seed=1", "--data.leaves.seed", "2"], "--data.leaves.seed is given twice"),
        (["--run.dir", "x"], "run.dir is set by the suite"),
    ],
)  # fmt: skip
def test_misuse(suite, capsys, words, message):
    assert main(["compare", suite, *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_suite_goes_on_from_wherever_it_was_killed(suite, tmp_path):
    """Killed twice, it ends with the results of one that was not; a failed run leaves the others alone."""
    content = yaml.safe_load((tmp_path / "suite.yaml").read_text())
    content |= {"variants": {**content["variants"], "broken": {"trainer.monitor": "val_map"}}, "seeds": 1}
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(content, sort_keys=False))

    def start(*words):
        command = [sys.executable, "-m", "vitrail", "compare", suite, *words]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                start_new_session=True)  # fmt: skip

    def progress():
        runs = [RunFolder(p) for p in (tmp_path / "runs" / "compare").glob("*") if p.is_dir()]
        return sum(run.trained_epochs() for run in runs)

    for wanted in (1, 4):
        process = start()
        for _ in range(3000):
            if progress() >= wanted or process.poll() is not None:
                break
            time.sleep(0.05)
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    finished = {p: p.stat().st_mtime for p in (tmp_path / "runs" / "compare").glob("*/predictions/test.parquet")}
    process = start("--jobs", "2")
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 1
    assert "failed: broken, seed 0: trainer.monitor 'val_map' is not measured" in out
    assert all(path.stat().st_mtime == before for path, before in finished.items())  # not done again
    whole = start("--runs-dir", "elsewhere", "--dir", "whole")
    whole.communicate(timeout=600)
    rows = [list(csv.DictReader((tmp_path / f).open())) for f in ("runs/suites/suite/results.csv", "whole/results.csv")]
    values = [[(r["variant"], r["seed"], r["accuracy"], r["nll"]) for r in table] for table in rows]
    assert values[0] == values[1]
    assert len(values[0]) == 2
