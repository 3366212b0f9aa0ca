"""Rewrites of an OpenVINO graph: fewer axes, equal outputs."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.deploy.exporting import skip_without
from vitrail.deploy.export.layout import rewrite
from vitrail.models.registry import create_model, list_families

pytestmark = skip_without("openvino")


class Windows(nn.Module):
    """Heads of windows: split, transposed, merged into the batch, and back."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 12), nn.Linear(12, 6)

    def forward(self, x):
        windows, tokens = x.shape[1:3]
        x = self.fc2(nn.functional.gelu(self.fc1(x)) * 1.5)
        heads = x.reshape(-1, windows, tokens, 2, 3).transpose(2, 3).reshape(-1, 2, tokens, 3)
        heads = nn.functional.scaled_dot_product_attention(heads, heads, heads)
        return heads.reshape(-1, windows, 2, tokens, 3).transpose(2, 3).reshape(-1, windows, tokens, 6) + x


def convert(module, *shape):
    import openvino

    batch = torch.export.Dim("batch", min=1, max=64)
    with torch.no_grad():
        program = torch.export.export(module.eval(), (torch.zeros(2, *shape),), dynamic_shapes=({0: batch},))
    model = openvino.convert_model(program)
    model.reshape([-1, *shape])
    return model


def convert_traced(module, *shape):
    """By TorchScript, in a third of the time: the rewritten operations are the same."""
    import openvino

    model = openvino.convert_model(module.eval(), example_input=torch.zeros(2, *shape))
    model.reshape([-1, *shape])
    return model


def compute(model, *shape):
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    return [
        compiled(np.random.default_rng(batch).normal(size=(batch, *shape)).astype(np.float32))[0] for batch in (1, 3)
    ]


def kinds(model, kind):
    return [node for node in model.get_ordered_ops() if node.get_type_name() == kind]


def rank(node):
    return node.get_output_partial_shape(0).rank.get_length()


def test_layers_and_transpositions_lose_an_axis():
    torch.manual_seed(0)
    module = Windows()
    model = convert_traced(module, 4, 5, 6)
    assert {rank(node) for node in kinds(model, "MatMul")} == {4}
    wanted = compute(model, 4, 5, 6)
    rewrite(model)
    assert {rank(node) for node in (*kinds(model, "MatMul"), *kinds(model, "Gelu"))} == {3}
    assert {rank(node) for node in kinds(model, "Transpose")} == {4}
    for found, own, batch in zip(compute(model, 4, 5, 6), wanted, (1, 3), strict=True):
        np.testing.assert_allclose(found, own, rtol=0, atol=1e-6)
        x = torch.from_numpy(np.random.default_rng(batch).normal(size=(batch, 4, 5, 6)).astype(np.float32))
        np.testing.assert_allclose(found, module(x).detach().numpy(), rtol=0, atol=1e-5)


def test_operations_of_another_form_keep_their_axes():
    """A sum without a constant, and transpositions whose reshapes do not merge the leading axes."""
    from openvino import Model
    from openvino import opset13 as operations

    def constant(*values):
        return operations.constant(np.array(values, dtype=np.int64))

    x = operations.parameter([-1, 4, 5, 6], np.float32)
    weight = operations.constant(np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32))
    added = operations.add(operations.matmul(x, weight, False, True), x)
    heads = operations.reshape(added, constant(0, 4, 5, 2, 3), True)
    turned = [operations.transpose(added, constant(0, 1, 3, 2)), operations.transpose(heads, constant(0, 1, 3, 2, 4))]
    one, two = (operations.reshape(operations.relu(node), constant(0, -1), True) for node in turned)
    model = Model([operations.add(one, two)], [x])
    wanted = compute(model, 4, 5, 6)
    rewrite(model)
    assert [rank(node) for node in kinds(model, "MatMul")] == [3]
    assert sorted(rank(node) for node in kinds(model, "Transpose")) == [4, 5]
    for found, own in zip(compute(model, 4, 5, 6), wanted, strict=True):
        np.testing.assert_allclose(found, own, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "settings"), [("swin", {"depths": (2, 1)}), ("swin", {}), ("maxvit", {})])
def test_families_with_windows_compute_the_same(family, settings):
    torch.manual_seed(0)
    config = {**list_families()[family].test_config, **settings}
    module = create_model(family, **config)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    shape = (3, config["img_size"], config["img_size"])
    model = convert(module, *shape)
    wanted = compute(model, *shape)
    rewrite(model)
    layers = [node for node in kinds(model, "MatMul") if node.input_value(1).get_node().get_type_name() == "Constant"]
    assert layers
    assert max(map(rank, layers)) == 3
    for found, own in zip(compute(model, *shape), wanted, strict=True):
        np.testing.assert_allclose(found, own, rtol=0, atol=1e-5 * abs(own).max())
