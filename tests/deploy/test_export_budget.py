"""The budget of an export bounds conversions, quantisation and comparisons, by an artificial clock."""

import importlib
from types import SimpleNamespace

import pytest

from tests.deploy.eager import eager_engines as eager_engines
from tests.deploy.exporting import export, record
from vitrail.deploy.export import budget as of_budget
from vitrail.deploy.export import calibrate, candidates
from vitrail.deploy.export.budget import BUILDING, Budget, conversion
from vitrail.deploy.export.quantize import Change, QuantizeSettings, _Quantization, _Variant
from vitrail.errors import ConfigError

RUNS = ("openvino fp32", "onnx fp32", "torch fp32")


class Clock:
    """Seconds that pass only where a test says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_a_step_fits_if_it_ends_within_its_share(clock):
    budget = Budget(100, clock)
    clock.now = 30
    assert budget.left(BUILDING) == pytest.approx(30)
    assert budget.fits(29.9, BUILDING)
    assert not budget.fits(30, BUILDING)
    assert budget.fits()
    clock.now = 100
    assert not budget.fits()
    assert budget.left() == 0
    assert not Budget(0, clock).fits()


@pytest.mark.parametrize(
    ("seen", "engine", "expected"),
    [
        ({}, "onnx", None),
        ({"openvino": 10}, "onnx", 25),
        ({"openvino": 10, "onnx": 70}, "onnx", 70),
        ({"onnx": 50}, "openvino", 20),
        ({"openvino": 10, "onnx": 50}, "torch", 4),
    ],
)
def test_a_conversion_is_expected_to_take_what_those_seen_took(clock, seen, engine, expected):
    budget = Budget(100, clock)
    for other, seconds in seen.items():
        with budget.step(conversion(other)):
            clock.now += seconds
    assert budget.of_conversion(engine) == (None if expected is None else pytest.approx(expected))


def test_what_is_left_out_is_named_with_its_time_and_an_overrun_with_its_step(clock):
    budget = Budget(60, clock)
    assert budget.leave_out("conversion to onnx", 75.0) == budget.leave_out("conversion to onnx", 75.0)
    assert budget.leave_out("the rest", None).endswith("--budget 60 s is spent: the rest")
    assert [*map(str, budget.left_out)] == ["conversion to onnx (about 75 s)", "the rest"]
    assert budget.overrun() == ""
    with budget.step("conversion to openvino"):
        clock.now = 80
    assert budget.overrun().startswith("the export took 80 s of --budget 60 s")
    assert budget.overrun().endswith("the longest was conversion to openvino (80 s)")
    assert budget.to_json()["left_out"][0] == {"what": "conversion to onnx", "seconds": 75.0}


def _export(run, out, clock, monkeypatch, seconds, conversions, comparison=1.0, words=()):
    """Export by an artificial clock, by engines that are the graph itself; return the record."""
    module = importlib.import_module("vitrail.deploy.export.export")
    monkeypatch.setattr(of_budget.time, "monotonic", clock)
    monkeypatch.setattr(module, "Budget", lambda seconds: Budget(seconds, clock))
    convert, judge, outputs = candidates.convert, module.judge, module.original_outputs

    def slow_convert(program, graph, engine, *more):
        clock.now += conversions.get(engine, 0)
        convert(program, graph, engine, *more)

    def slow_judge(*args):
        clock.now += comparison
        return judge(*args)

    def slow_outputs(*args):
        clock.now += comparison
        return outputs(*args)

    monkeypatch.setattr(candidates, "convert", slow_convert)
    monkeypatch.setattr(module, "judge", slow_judge)
    monkeypatch.setattr(module, "original_outputs", slow_outputs)
    assert export(run, out, "--budget", f"{seconds}s", *words) == 0
    return record(out)


@pytest.mark.usefixtures("eager_engines")
@pytest.mark.slow_cases("200-conversions1-1-tested1-left_out1", "0-conversions4-0-tested4-left_out4")
@pytest.mark.parametrize(
    ("seconds", "conversions", "comparison", "tested", "left_out"),
    [
        # ONNX is expected to take 2.5 times as long as OpenVINO.
        (100, {"openvino": 20}, 1, RUNS[:1] + RUNS[2:], [("conversion to onnx", 50)]),
        (200, {"openvino": 20, "onnx": 60}, 1, RUNS, []),
        # The first candidate is completed, though its conversion is longer than the budget.
        (10, {"openvino": 50}, 1, RUNS[:1], [("conversion to onnx", 125), ("conversion to torch", 10)]),
        # No time for comparisons.
        (100, {}, 40, RUNS[:1], [("comparison with the run of onnx fp32", 40)]),
        (0, {}, 0, RUNS[:1], [("conversion to onnx", 0), ("conversion to torch", 0)]),
    ],
)
def test_what_does_not_fit_is_left_out(
    run, tmp_path, clock, monkeypatch, capsys, seconds, conversions, comparison, tested, left_out
):
    found = _export(run, tmp_path / "out", clock, monkeypatch, seconds, conversions, comparison)
    rows = {row["name"]: row["verdict"] for row in found["candidates"]}
    for name in RUNS:
        assert (rows[name]["status"] == "passed") == (name in tested), name
    recorded = [(one["what"], one["seconds"]) for one in found["budget"]["left_out"]]
    assert [(what, pytest.approx(expected, abs=1e-6)) for what, expected in left_out] == [
        one for one in recorded if one[0] in dict(left_out)
    ]
    lines = capsys.readouterr().out
    for what, _ in left_out:
        assert f"{what} (about" in lines
    overrun = [line for line in lines.splitlines() if line.startswith("the export took")]
    assert bool(overrun) == (found["budget"]["spent"] > seconds)


@pytest.mark.usefixtures("eager_engines")
def test_merged_tokens_are_left_out_without_a_trace(run, tmp_path, clock, monkeypatch, capsys):
    words = ["--precision", "fp32", "--format", "openvino", "--shrink", "1", "2"]
    found = _export(run, tmp_path / "out", clock, monkeypatch, 50, {"openvino": 20}, 1, words)
    rows = {row["name"]: row["verdict"]["status"] for row in found["candidates"]}
    assert rows == {"openvino fp32": "passed", "openvino fp32 r=1": "not built", "openvino fp32 r=2": "not built"}
    assert [one["what"] for one in found["budget"]["left_out"]] == [
        "conversion to openvino with r=1", "conversion to openvino with r=2"
    ]  # fmt: skip
    capsys.readouterr()


def test_a_quantiser_has_what_conversions_have_left(clock, monkeypatch, tmp_path):
    budget = Budget(100, clock)
    quantizer = calibrate.Quantizer(SimpleNamespace(splits={}), 0.99, False, QuantizeSettings(budget=50), budget=budget)
    clock.now = 31
    with pytest.raises(ConfigError, match="has 29 s of --budget, at most a half, and needs at least 30 s"):
        quantizer(tmp_path / "model.xml", tmp_path / "int8.xml", None, {})
    assert [*map(str, budget.left_out)] == ["quantisation to int8 (about 30 s)"]


def test_the_onnx_model_is_quantised_if_there_is_time_and_again_in_any_case(clock, monkeypatch, tmp_path):
    budget, made = Budget(100, clock), []
    onnx = SimpleNamespace(load=str, save_model=lambda *args: made.append(args))
    monkeypatch.setattr(calibrate, "import_extra", lambda *_: onnx)
    monkeypatch.setattr(calibrate, "quantize_onnx", lambda *_: "model")
    monkeypatch.setattr(calibrate, "OnnxEngine", lambda *_: SimpleNamespace(operations=lambda: {"int8": 9}))
    quantizer = calibrate.Quantizer(SimpleNamespace(splits={}), 0.99, False, QuantizeSettings(budget=50), budget=budget)
    quantizer._loaded = {}, {}
    files = tmp_path / "model.onnx", tmp_path / "int8.onnx"
    clock.now = 31  # 29 s of the building's 60 are left, 30 are expected
    with pytest.raises(ConfigError, match=r"quantisation of the ONNX model \(about 30 s\)"):
        quantizer(*files, None, {})
    clock.now = 29
    quantizer(*files, None, {})
    clock.now = 99
    quantizer(*files, None, {})
    assert len(made) == 2


@pytest.mark.parametrize(
    ("seconds", "variant", "tried", "left_out"),
    [
        (1000, 10, 4, []),
        # Three variants, and no full correction, which takes four times as long.
        (60, 10, 3, [("SmoothQuant 0.95, full bias correction", 40)]),
        (15, 10, 1, [("SmoothQuant 0.5, fast bias correction", 10), ("no SmoothQuant, fast bias correction", 10)]),
    ],
)
def test_variants_of_int8_that_do_not_fit_are_named(clock, monkeypatch, seconds, variant, tried, left_out):
    quantize = importlib.import_module("vitrail.deploy.export.quantize")
    monkeypatch.setattr(quantize, "time", SimpleNamespace(monotonic=clock))
    made = _Quantization.__new__(_Quantization)
    made.settings, made.report, made.empty, made.start = QuantizeSettings(budget=seconds), lambda line: None, [], 0.0
    made.enough, made.tried, made.left_out = (lambda change: True), [], []

    def build(scheme, restored=()):
        clock.now += variant
        change = Change(10, 0.1 if scheme.smooth == 0.95 else 0.2, 0.5, 0)
        made.tried.append((scheme.name, change))
        return _Variant(scheme, restored, None, change, None, {"int8": 1}, variant)

    made._variant = build
    found = made.run()
    assert len(found.tried) == tried
    assert list(found.left_out) == left_out
    assert found.scheme.smooth == 0.95
