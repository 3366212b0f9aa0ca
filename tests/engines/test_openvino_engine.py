"""Engine of OpenVINO: the precision that it computes in is the one asked for."""

import importlib

import numpy as np
import pytest

from tests.deploy.exporting import needs_openvino
from tests.engines.test_signal_stack import doubled
from vitrail.engines.openvino import OpenVINOEngine
from vitrail.engines.split import few_sizes, split_batch
from vitrail.errors import ConfigError

pytestmark = needs_openvino


def _has_bf16():
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def mixed(factor):
    """A model of two inputs, of which one may be empty: products of all rows, and the sum of each."""
    import openvino

    operations = importlib.import_module("openvino.opset13")
    inputs = [operations.parameter([-1, 4], np.float32, name=name) for name in ("x", "y")]
    for own, name in zip(inputs, "xy", strict=True):
        own.output(0).set_names({name})
    rows = operations.concat(inputs, axis=0)
    product = operations.matmul(rows, operations.constant(factor), False, False)
    total = operations.reduce_sum(product, operations.constant(np.array([1])))
    product.output(0).set_names({"product"})
    total.output(0).set_names({"total"})
    return openvino.Model([product, total], inputs, "mixed")


@pytest.mark.fast_cases("1-2", "3-3", "7-2", "8-1", "8-3")
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 8])
def test_batches_that_are_split_over_streams_keep_their_order(threads, count):
    generator = np.random.default_rng(threads * 10 + count)
    factor = generator.standard_normal((4, 5)).astype(np.float32)
    engine = OpenVINOEngine(mixed(factor), threads=threads)
    x = generator.standard_normal((count, 4)).astype(np.float32)
    for inputs in ({"x": x, "y": x[:0]}, {"x": x[:0], "y": x}):
        for _ in range(2):
            outputs = engine.run(inputs)
            np.testing.assert_allclose(outputs["product"], x @ factor, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(outputs["total"], (x @ factor).sum(1), rtol=1e-4, atol=1e-5)
    hints = {hint for hint, _ in engine._compiled}
    assert ("THROUGHPUT" in hints) == (1 < threads <= count)


@pytest.mark.parametrize(
    ("count", "most", "sizes"),
    [(1, 1, [1]), (3, 3, [1, 1, 1]), (8, 8, [4, 4]), (8, 4, [4, 4]), (8, 3, [1] * 8), (23, 12, [4] * 5 + [1] * 3),
     (33, 17, [16, 16, 1]), (64, 32, [16] * 4)],
)  # fmt: skip
def test_parts_have_few_sizes(count, most, sizes):
    assert few_sizes(count, most) == sizes
    x = np.arange(count)[:, None]
    parts = split_batch({"x": x, "y": x[:0]}, sizes)
    assert [len(part["x"]) for part in parts] == sizes
    assert {len(part["y"]) for part in parts} == {0}
    assert (np.concatenate([part["x"] for part in parts]) == x).all()


@pytest.mark.parametrize("limit", [0, 1 << 20])
@pytest.mark.parametrize("fixed", [False, True])
def test_small_models_alone_are_compiled_for_fixed_sizes(monkeypatch, limit, fixed):
    monkeypatch.setattr("vitrail.engines.openvino._SMALL", limit)
    engine = OpenVINOEngine(mixed(np.eye(4, dtype=np.float32)), threads=2, fixed_sizes=fixed)
    x = np.random.default_rng(0).standard_normal((37, 4)).astype(np.float32)
    for count in (1, 2, 3, 9, 37):
        assert (engine.run({"x": x[:count], "y": x[:0]})["product"] == x[:count]).all()
    sizes = {size for _, size in engine._compiled}
    assert sizes == ({(1, 0), (4, 0), (16, 0)} if limit and fixed else {None})


@pytest.mark.parametrize("fixed", [False, True])
def test_an_empty_batch_has_empty_outputs(fixed):
    engine = OpenVINOEngine(mixed(np.ones((4, 3), np.float32)), threads=2, fixed_sizes=fixed)
    none = np.zeros((0, 4), np.float32)
    assert engine.run({"x": none, "y": none})["product"].shape == (0, 3)
    # One image is compiled for its size alone.
    single = OpenVINOEngine(mixed(np.ones((4, 3), np.float32)), fixed_sizes=fixed)
    single.run({"x": np.ones((1, 4), np.float32), "y": none})
    assert len(single._compiled) == 1


def test_a_batch_after_one_that_failed():
    engine = OpenVINOEngine(mixed(np.ones((4, 2), np.float32)), threads=2)
    x = np.ones((4, 4), np.float32)
    for _ in range(3):
        with pytest.raises(RuntimeError):
            engine.run({"x": x[:, :3], "y": x[:0, :3]})
        assert (engine.run({"x": x, "y": x[:0]})["product"] == 4).all()


def test_bf16_is_computed_where_the_processor_can():
    if _has_bf16():
        engine = OpenVINOEngine(doubled(), "bf16", threads=1)
        assert engine.precision == "bf16"
        assert engine.run({"x": np.ones((3, 4), np.float32)})["doubled"].tolist() == [[2.0] * 4] * 3
    else:
        with pytest.raises(ConfigError, match="precision bf16 is not supported by OpenVINO on"):
            OpenVINOEngine(doubled(), "bf16", threads=1)


def test_a_precision_that_the_processor_lacks_is_not_replaced(monkeypatch):
    monkeypatch.setattr("vitrail.engines.openvino._HINTS", {"fp32": "f32", "bf16": "f32"})
    with pytest.raises(ConfigError, match=r"bf16 is not supported by OpenVINO on .*, which computes in fp32"):
        OpenVINOEngine(doubled(), "bf16", threads=1)
