"""Engine of OpenVINO: the precision that it computes in is the one asked for."""

import numpy as np
import pytest

from tests.deploy.exporting import needs_openvino
from tests.engines.test_signal_stack import doubled
from vitrail.engines.openvino import OpenVINOEngine
from vitrail.errors import ConfigError

pytestmark = needs_openvino


def _has_bf16():
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


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
