"""Suites on a Ray cluster, which one of this machine stands for; runs where ray is installed."""

import pytest

from vitrail.cli.main import main
from vitrail.compare import load_suite, plan
from vitrail.compare.execute import execute
from vitrail.compare.pools import RayPool
from vitrail.runs.suite import SuiteFolder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _cluster():
    ray = pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        RayPool("local", 1)
        yield
        ray.shutdown()


def test_a_suite_is_carried_out(place, capsys):
    path = str(place(variants={"plain": {}, "wrong": {"model.num_heads": 3}}, seeds=1))
    small = ["--trainer.max_epochs", "1", "--data.splitting.test_fraction", "0.8"]
    assert main(["compare", path, "--ray", "local", *small]) == 1
    out = capsys.readouterr().out
    assert "plain, seed 0: accuracy 0." in out
    assert "failed: wrong, seed 0: " in out
    assert "num_heads" in out.partition("failed: wrong")[2]
    assert main(["compare", path, "--plan", *small]) == 0
    assert "2 runs: 1 done, 1 to run" in capsys.readouterr().out


def test_what_ray_cannot_do_stands_in_the_log(place):
    suite = load_suite(place(variants={"plain": {}}, seeds=1))
    (failure,) = execute(plan(suite), SuiteFolder(suite.dir), RayPool("local", 1), lambda _: None,
                         python=("/no/such/program",))  # fmt: skip
    assert "No such file" in failure.error
