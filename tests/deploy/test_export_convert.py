"""Conversion of programs: operations that OpenVINO computes wrongly are replaced by others that compute the same."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.deploy.exporting import skip_without
from vitrail.deploy.export.convert import replace_faulty

pytestmark = [skip_without("openvino"), pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")]


class RolledWindows(nn.Module):
    """Weights of windows that are rolled, padded and summed, as a rollout of shifted windows does."""

    def __init__(self, shift):
        super().__init__()
        self.shift = shift

    def forward(self, x):
        rolled = nn.functional.pad(x.roll(self.shift, (1, 2)), (0, 0, 0, 2, 0, 2))
        crossed = torch.linalg.cross(rolled, x.roll(1, -1).mean((1, 2), keepdim=True), dim=-1)
        return crossed.roll((-self.shift[0],), (1,))


@pytest.mark.parametrize("shift", [(2, 2), (-1, 3), (0, -4)])
def test_programs_have_no_faulty_operations_and_equal_outputs(shift):
    import openvino

    x = torch.randn(3, 6, 7, 3)
    model = RolledWindows(shift)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", max=64)},))
    replaced = replace_faulty(program)
    names = {str(node.target) for node in replaced.graph.nodes}
    assert not {name for name in names if "roll" in name or "cross" in name}
    converted = openvino.convert_model(replaced)
    assert "Roll" not in {operation.get_type_name() for operation in converted.get_ops()}
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    found = openvino.Core().compile_model(converted, "CPU", settings)([x[:2].numpy()])[0]
    assert np.allclose(found, model(x[:2]).numpy(), atol=1e-6)


def test_programs_without_them_are_kept():
    program = torch.export.export(nn.Linear(3, 4), (torch.zeros(2, 3),))
    assert replace_faulty(program) is program
