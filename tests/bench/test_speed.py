"""How steps are timed, what they do, and what is said of them; never how long they take."""

import dataclasses
import functools
import math

import numpy as np
import pytest
import torch

import vitrail
from vitrail.bench import peers, side_by_side
from vitrail.bench.memory import peak_memory
from vitrail.bench.peers import Pair, check_counterpart, pair_up
from vitrail.bench.side_by_side import Plan, Subject, measure
from vitrail.bench.speed import Spread, Workload, alternate, make_step, matrix_peak, speedup, time_ratio
from vitrail.errors import ConfigError, RunError, VitrailError
from vitrail.extras import import_extra
from vitrail.models.family import REGISTERED
from vitrail.models.peer import Peer
from vitrail.models.profile import count_multiply_adds
from vitrail.models.registry import find_family
from vitrail.runs.folder import RunFolder

CPU = torch.device("cpu")
VIT = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 3}
HVT = {
    "patch_size": 8, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "num_classes": 3, "spectral_chans": 4,
    "spectral_patch_size": 4, "spectral_img_size": 16,
}  # fmt: skip
QUICK = Plan(rounds=2, least=0.0, batch_size=2, memory=False)


@pytest.fixture(autouse=True)
def _known_peak(monkeypatch):
    monkeypatch.setattr(side_by_side, "matrix_peak", lambda device, precision: 1e9)


def tiny():
    return vitrail.create_model("vit", img_size=16, **VIT)


def test_contenders_take_turns():
    calls = []
    steps = [functools.partial(calls.append, name) for name in "abc"]
    times = alternate(steps, rounds=3, least=0.0)
    # Twice each to warm up, then round by round, there and back.
    assert "".join(calls) == "aabbcc" + "abc" + "cba" + "abc"
    assert [len(t) for t in times] == [3, 3, 3]
    assert all(t > 0 for contender in times for t in contender)
    with pytest.raises(ConfigError, match="rounds must be at least 1, got 0"):
        alternate(steps, rounds=0)


def test_a_quick_step_runs_several_times(monkeypatch):
    ticks = iter(range(1000))
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))  # each timing seems to take a second
    calls = []
    times = alternate([lambda: calls.append(0)], rounds=2, least=3.0)
    assert len(calls) == 2 + 2 * 3
    assert times == [[1 / 3, 1 / 3]]


def test_ratios_are_those_of_rounds():
    # The machine is ten times slower in the third round; the ratio does not notice.
    assert speedup([1.0, 2.0, 10.0], [2.0, 6.0, 20.0]) == Spread(2.0, 2.0, 3.0)


def test_a_forward_step_changes_nothing():
    model = tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.rand(2, 3, 16, 16)
    out = make_step(model, [x], Workload())()
    assert not model.training
    assert torch.equal(out, model(x))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    half = make_step(tiny(), [x], Workload(precision="bf16"))()
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_a_training_step_moves_every_weight(precision):
    model = tiny()
    before = {name: value.clone() for name, value in model.named_parameters()}
    step = make_step(model, [torch.rand(2, 3, 16, 16)], Workload("train", precision))
    step()
    assert model.training
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert moved == set(before)
    assert {value.dtype for value in model.parameters()} == {torch.float32}


def test_matrix_peak_is_a_rate():
    assert matrix_peak("cpu", seconds=0.001) > 1e6


def test_rows_say_what_the_times_say(monkeypatch):
    seconds = {"forward": [0.5, 0.25, 1.0], "train": [2.0, 4.0, 1.0]}
    times = iter(seconds.values())
    monkeypatch.setattr(side_by_side, "alternate", lambda *args: [next(times)])
    plan = Plan([Workload("forward"), Workload("train")], batch_size=4, memory=False)
    forward, train = measure([Subject("vit", VIT, (16, 24))], (), plan)
    assert (forward.images_per_second, forward.images_per_second_low, forward.images_per_second_high) == (8, 4, 16)
    assert forward.milliseconds == 500
    macs = count_multiply_adds(vitrail.create_model("vit", img_size=(16, 24), **VIT), torch.empty(4, 3, 16, 24))
    assert forward.gflops == pytest.approx(2 * macs / 0.5 / 1e9)
    assert train.gflops == pytest.approx(3 * 2 * macs / 2.0 / 1e9)
    assert train.share_of_peak == pytest.approx(train.gflops)
    assert forward.cells()["img_size"] == "16x24"
    assert forward.ratio is None
    assert forward.library == "vitrail"


def test_a_counterpart_is_measured_in_turn(monkeypatch):
    def pair(library, name, settings):
        return Pair(vitrail.create_model(name, **settings), vitrail.create_model(name, **settings), 2e-6)

    monkeypatch.setattr(side_by_side, "pair_up", pair)
    monkeypatch.setattr(side_by_side, "check_counterpart", lambda *args: None)
    monkeypatch.setattr(side_by_side, "alternate", lambda *args: [[1.0, 1.0, 2.0], [1.0, 1.5, 4.0]])
    ours, theirs = measure([Subject("vit", VIT, (16, 16))], ["timm"], QUICK)
    assert (ours.library, ours.against, theirs.library, theirs.against) == ("vitrail", "timm", "timm", "vitrail")
    assert (ours.ratio, ours.ratio_low, ours.ratio_high, ours.difference) == (1.5, 1.0, 2.0, 2e-6)
    assert theirs.ratio is None


@pytest.mark.slow
def test_two_streams():
    subject = Subject("hvt", HVT, (32, 48))
    model = subject.build()
    assert [tuple(x.shape) for x in subject.inputs(model, 2)] == [(2, 3, 32, 48), (2, 4, 16, 16)]
    rows = list(measure([subject], (), Plan([Workload(), Workload("train")], 2, rounds=1, least=0.0, memory=False)))
    assert [row.mode for row in rows] == ["forward", "train"]
    at_run_time = Subject("x", img_size=(64, 96))
    assert [tuple(x.shape[1:]) for x in at_run_time.inputs(model, 1)] == [(3, 64, 96), (4, 16, 16)]
    equal = vitrail.create_model("hvt", **HVT | {"spectral_img_size": None}, img_size=32)
    assert [tuple(x.shape[1:]) for x in at_run_time.inputs(equal, 1)] == [(3, 64, 96), (4, 64, 96)]


@pytest.mark.slow
def test_memory_of_a_process_of_its_own():
    plain = peak_memory(functools.partial(_allocating, 0), CPU)
    large = peak_memory(functools.partial(_allocating, 100 * 2**20), CPU)
    if plain is None:
        pytest.skip("the memory of a process cannot be read on this system")
    assert large.peak - plain.peak > 80 * 2**20
    assert large.peak >= large.before
    assert abs(large.before - plain.before) < 40 * 2**20


def _allocating(size):
    return functools.partial(torch.ones, size, dtype=torch.uint8)


@pytest.mark.slow
def test_memory_of_a_process_that_dies():
    with pytest.raises(VitrailError, match="was killed"):
        peak_memory(_dying, CPU)


def _dying():
    import os

    os._exit(9)


@pytest.mark.slow
def test_memory_is_in_the_rows():
    (row,) = measure([Subject("vit", VIT, (16, 16))], (), Plan(rounds=1, least=0.0, batch_size=1))
    assert row.memory_peak_mb is None or row.memory_peak_mb >= row.memory_before_mb > 50


@pytest.mark.parametrize(
    ("library", "name", "settings", "message"),
    [
        ("timm", "hvt_small", {}, "timm has no counterpart of hvt_small .no hvt.; leave out --against timm"),
        ("timm", "vit_small_patch16_224", {"token_learner": {}}, "no TokenLearner"),
        ("timm", "maxvit_tiny_tf_224", {"flavour": "torchvision"}, "no flavour 'torchvision'"),
        ("torchvision", "swin_tiny_patch4_window7_224", {"in_chans": 4}, "3 bands only, not 4"),
        ("torchvision", "vit", {"img_size": (224, 192)}, "img_size .224, 192. is not square"),
        ("torchvision", "vit", {"class_token": False, "global_pool": "avg"}, "no mean over tokens"),
        ("torchvision", "swin", {"qkv_bias": False}, "always a bias"),
        ("keras", "vit", {}, "against timm and torchvision, not against 'keras'"),
    ],
)
def test_what_has_no_counterpart(library, name, settings, message):
    with pytest.raises(ConfigError, match=message):
        check_counterpart(library, name, settings)
    with pytest.raises(ConfigError, match=message):
        pair_up(library, name, settings)


def test_a_family_brings_its_own_peer(monkeypatch):
    build = functools.partial(vitrail.create_model, "vit", img_size=16, **VIT)
    missing = {3: "", 4: "no fourth class"}
    peer = Peer(lambda settings: build(), lambda settings: missing[settings["num_classes"]])
    family = dataclasses.replace(find_family("vit")[0], peers={"json": peer})
    monkeypatch.setitem(REGISTERED, "vit", family)
    monkeypatch.setattr(peers, "load_weights", lambda model, state, source: model.load_state_dict(state))
    check_counterpart("json", "vit", VIT)
    pair = pair_up("json", "vit", VIT | {"img_size": 16})
    assert pair.difference == 0
    assert pair.theirs is not pair.ours
    with pytest.raises(ConfigError, match=r"json has no counterpart of vit \(no fourth class\)"):
        check_counterpart("json", "vit", VIT | {"num_classes": 4})
    with pytest.raises(ConfigError, match=r"json has no counterpart of swin \(no swin\)"):
        check_counterpart("json", "swin", {})


def test_what_cannot_be_measured():
    for subject, plan, kind, message in (
        (Subject("swin_tinny_patch4_window7_224"), QUICK, ConfigError, "did you mean 'swin_tiny_patch4_window7_224'"),
        (Subject("vit", {"dept": 3}), QUICK, ConfigError, "did you mean 'depth'"),
        (Subject("no/run/here"), QUICK, RunError, "no run folder at no/run/here"),
        (Subject("no/run/here", {"depth": 3}), QUICK, ConfigError, "a trained run, whose settings are fixed"),
        (Subject("vit"), Plan(batch_size=0), ConfigError, "batch size must be at least 1, got 0"),
        (Subject("vit"), Plan(rounds=0), ConfigError, "number of rounds must be at least 1, got 0"),
    ):
        with pytest.raises(kind, match=message):
            list(measure([subject], (), plan))


def test_a_step_that_fails_is_named(monkeypatch):
    def fail(*args):
        raise torch.OutOfMemoryError("no room\nfor all this")

    monkeypatch.setattr(side_by_side, "alternate", fail)
    with pytest.raises(VitrailError, match=r"vit \(train, bf16, batch 2\) cannot run here: no room$"):
        list(measure([Subject("vit", VIT, (16, 16))], (), Plan([Workload("train", "bf16")], 2, memory=False)))


def test_a_missing_package_names_its_extra(monkeypatch):
    with pytest.raises(VitrailError, match=r"no_such_package is not installed; .* 'vitrail\[peers\]'"):
        import_extra("no_such_package.models", "peers")
    assert import_extra("json.decoder", "peers").__name__ == "json.decoder"


def test_a_package_that_cannot_be_imported(tmp_path, monkeypatch):
    (tmp_path / "half_a_package.py").write_text("raise RuntimeError('operator nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(VitrailError, match="half_a_package is installed but cannot be imported here: operator nms"):
        import_extra("half_a_package", "peers")


def test_names_of_models_come_before_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("vit", "hvt_small", "mine"):
        RunFolder.create(tmp_path / name)
    assert [Subject(name).is_run for name in ("vit", "hvt_small", "mine", "other", "./vit")] == [
        False, False, True, False, True,
    ]  # fmt: skip


def test_a_time_ratio_is_paired_by_round_and_covers():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        slow = rng.lognormal(0, 0.5, 9)  # a machine that slows down slows both
        ours, theirs = (slow * seconds * rng.lognormal(0, 0.02, 9) for seconds in (1.0, 2.5))
        found = time_ratio(ours, theirs)
        held += found.low <= 0.4 <= found.high
        assert found.high / found.low < 1.15
    assert 0.92 <= held / 400 <= 0.98
    assert math.isnan(time_ratio([1.0], [2.0]).low)
    assert time_ratio([1.0], [2.0]).ratio == pytest.approx(0.5)
