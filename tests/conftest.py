import copy
import functools
import gc
import os

# Tests run several processes side by side; more threads than cores only slows them down.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest

from tests.probes import probes as probes


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session):
    """Before the first test is imported, and never in the process that only hands tests out: it needs no torch."""
    config = session.config
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return
    import torch

    from tests.peers import define_missing_operators
    from vitrail.extras import send_no_usage_reports

    send_no_usage_reports()
    # Importing the tests makes millions of objects that stay; to look through them again and again takes seconds.
    gc.disable()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    # At each seed of a random generator, devices that are missing store it with a stack trace, which takes a while.
    for device in (torch.cuda, torch.mtia, torch.xpu):
        if not device.is_available():
            device.manual_seed_all = lambda seed: None
    define_missing_operators()


def pytest_collection_finish():
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)
    gc.enable()


def pytest_itemcollected(item):
    """Mark cases as slow: those of ``slow_cases``, those that ``fast_cases`` does not have."""
    if not hasattr(item, "callspec") or item.get_closest_marker("peers"):
        return
    for mark, named_is_slow in (("slow_cases", True), ("fast_cases", False)):
        found = item.get_closest_marker(mark)
        if found and (item.callspec.id in found.args) == named_is_slow:
            item.add_marker("slow")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Refuse names of cases that no longer exist: their tests would change tiers unnoticed."""
    if any("::" in arg for arg in config.args):
        return
    cases, named = {}, {}
    for item in items:
        if not hasattr(item, "callspec"):
            continue
        test = item.nodeid.partition("[")[0]
        cases.setdefault(test, set()).add(item.callspec.id)
        for mark in item.iter_markers():
            if mark.name in ("slow_cases", "fast_cases"):
                named.setdefault(test, set()).update(mark.args)
    unknown = [f"{test}[{case}]" for test, names in named.items() for case in names - cases[test]]
    if unknown:
        raise pytest.UsageError("slow_cases and fast_cases name cases that do not exist: " + ", ".join(unknown))


@pytest.fixture(autouse=True)
def _seeded():
    import torch

    torch.manual_seed(1234)


@pytest.fixture(autouse=True, scope="session")
def _own_counts(tmp_path_factory):
    """Counted frames of the tests' videos stay out of the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitrail.data.video.counts.cache_folder", lambda: folder)
        yield


@pytest.fixture(autouse=True, scope="session")
def _measured_once():
    """Computed once: copies among the digits, the hash of the code, cost and speed of a model, by few passes."""
    from vitrail.bench import efficiency, side_by_side
    from vitrail.evaluate import run
    from vitrail.train import environment, start_run
    from vitrail.train.auto import precision

    known = {}
    usual = start_run.describe_copies

    def describe_copies(data, recipe):
        if data.config.source != "digits":
            return usual(data, recipe)
        key = repr((data.splits, data.config.splitting.check_copies))
        if key not in known:
            known[key] = usual(data, recipe)
        return known[key]

    counts = {}
    count = efficiency.count_multiply_adds

    def count_multiply_adds(model):
        key = f"{model.config} {model}"
        if key not in counts:
            counts[key] = count(model)
        return counts[key]

    speeds = {}
    measure = functools.partial(run.measure_efficiency, batch_size=4, seconds=0.0)

    def measure_efficiency(trained, memory_of=None):
        key = f"{trained.model.config} {trained.model} {trained.device} {memory_of is None}"
        if key not in speeds:
            speeds[key] = measure(trained, memory_of=memory_of)
        return copy.deepcopy(speeds[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(efficiency, "count_multiply_adds", count_multiply_adds)
        patch.setattr(run, "measure_efficiency", measure_efficiency)
        patch.setattr(precision, "_STEPS", 2)
        patch.setattr(efficiency, "latency", functools.partial(efficiency.latency, passes=2))
        patch.setattr(efficiency, "_ROUNDS", 1)
        alternate = side_by_side.alternate
        patch.setattr(side_by_side, "alternate", lambda steps, device, rounds, _: alternate(steps, device, rounds, 0.0))
        patch.setattr(start_run, "describe_copies", describe_copies)
        patch.setattr(environment, "_code", functools.cache(environment._code))
        patch.setattr(environment, "_checkout", functools.cache(environment._checkout))
        yield
