"""Conversion of programs: operations that OpenVINO computes wrongly are replaced by others that compute the same."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.deploy.exporting import skip_without
from vitrail.deploy.export import convert
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


class RolledRows(nn.Module):
    """A roll and a cross product, whose conversion takes half as long."""

    def forward(self, x):
        return torch.linalg.cross(x.roll((-1,), (1,)), x[:, :1, :1], dim=-1)


def check(model, any_size, others):
    """Faulty operations are replaced, and outputs equal, also at other sizes of the axes that may have any."""
    import openvino

    x = torch.randn(3, 6, 7, 3)
    sizes = {axis: torch.export.Dim(f"size{axis}", min=5, max=99) for axis in any_size}
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", max=64)} | sizes,))
    replaced = replace_faulty(program)
    names = {str(node.target) for node in replaced.graph.nodes}
    assert not {name for name in names if "roll" in name or "cross" in name}
    converted = openvino.convert_model(replaced)
    assert "Roll" not in {operation.get_type_name() for operation in converted.get_ops()}
    compiled = openvino.Core().compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for images in (x[:2], *(torch.randn(shape) for shape in others)):
        assert np.allclose(compiled([images.numpy()])[0], model(images).numpy(), atol=1e-6)


def test_rows_have_no_faulty_operations_and_equal_outputs_at_any_height():
    check(RolledRows(), (1,), [(1, 9, 7, 3)])


@pytest.mark.slow
@pytest.mark.parametrize("any_size", [False, True])
@pytest.mark.parametrize("shift", [(2, 2), (-1, 3), (0, -4)])
def test_programs_have_no_faulty_operations_and_equal_outputs(shift, any_size):
    check(RolledWindows(shift), (1, 2) if any_size else (), [(1, 9, 5, 3)] * any_size)


@pytest.mark.parametrize("shifts", [(2, 2), (-1, 3), (0, -4), (7, 13)])
def test_joined_slices_are_a_roll(shifts):
    x = torch.randn(2, 5, 6, 3)
    for dims in ((1, 2), (3, 1)):
        assert torch.equal(convert._joined_slices(x, shifts, dims), x.roll(shifts, dims))


def test_programs_without_them_are_kept():
    program = torch.export.export(nn.Linear(3, 4), (torch.zeros(2, 3),))
    assert replace_faulty(program) is program


@pytest.mark.parametrize("known", [False, True])
def test_stack_traces_are_left_out_where_torch_has_the_setting(monkeypatch, known):
    """torch 2.11 has none."""
    name = "do_not_emit_stack_traces"
    if known:
        monkeypatch.setattr(convert.fx_config, name, False, raising=False)
    else:
        monkeypatch.delattr(convert.fx_config, name, raising=False)
    with convert._without_stack_traces():
        assert getattr(convert.fx_config, name, None) is (True if known else None)
    assert getattr(convert.fx_config, name, None) is (False if known else None)
