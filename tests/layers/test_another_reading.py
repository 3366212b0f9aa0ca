"""A third party's reading of the VN-Transformer paper (lucidrains/VN-transformer): ours with its departures put in.

What ours leaves out: the activation that takes ``<q, k / |k|> k`` away instead of the projection ``<q, k> k / |k|^2``
(arXiv:2104.12229, equation 3); the bias whose number is the same on all axes, of unit length over the channels instead
of the axes (arXiv:2206.04176, section 7); attention by distances, which is not in the paper. The feed-forward, the
invariant layer, the encoder and the models are made of these.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.golden_files import read_golden, relative_error
from vitrail.layers.vector_attention import VNAttention
from vitrail.layers.vector_neurons import VNLeakyReLU, VNLinear

THEIRS = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out": "proj"}


class Linear(VNLinear):
    """Our linear layer, and their bias."""

    def __init__(self, state, name, eps):
        weight = state[f"{name}weight"]
        super().__init__(weight.shape[1], weight.shape[0])
        self.map_to_feat.weight = nn.Parameter(weight)
        self.added = eps * F.normalize(state[f"{name}bias"], dim=-1) if eps else 0.0

    def forward(self, x):
        return super().forward(x) + self.added


def relu(x, state, name=""):
    """Their activation of vectors ``(..., S, C)``."""
    q, k = x @ state[f"{name}W"].T, x @ state[f"{name}U"].T
    along = (q * k).sum(-2, keepdim=True)
    return torch.where(along >= 0, q, q - along / k.norm(dim=-2, keepdim=True) * k)


def norm(x, state, name):
    """Our layer norm, but with lengths of at least 1e-6 where ours adds that: 2e-5 of the outputs of vnt_model."""
    layer = nn.LayerNorm(x.shape[-1])
    layer.load_state_dict({"weight": state[f"{name}ln.gamma"], "bias": state[f"{name}ln.beta"]})
    length = x.norm(dim=-2, keepdim=True)
    return x / length.clamp_min(1e-6) * layer(length)


def attention(x, mask, state, name, eps=0.0, heads=2):
    layer = VNAttention(x.shape[-1], heads, num_coords=x.shape[-2])
    for theirs, ours in THEIRS.items():
        setattr(layer, ours, Linear(state, f"{name}{theirs}.", eps))
    return layer(x, mask)


def feed_forward(x, state, name="", eps=0.0):
    hidden = relu(Linear(state, f"{name}0.", eps)(x), state, f"{name}1.")
    return Linear(state, f"{name}2.", eps)(hidden)


def encoder(x, mask, state, depth, name="", eps=0.0):
    for i in range(depth):
        block = f"{name}layers.{i}."
        x = norm(attention(x, mask, state, f"{block}0.", eps), state, f"{block}1.") + x
        x = norm(feed_forward(x, state, f"{block}2.", eps), state, f"{block}3.") + x
    return x


def model(x, mask, state, depth, eps=0.0):
    x = Linear(state, "vn_proj_in.1.", eps)(x.unsqueeze(-1))
    x = norm(encoder(x, mask, state, depth, "encoder.", eps), state, "vn_proj_out.0.")
    return Linear(state, "vn_proj_out.1.", eps)(x).squeeze(-1)


def by_distance(x, state):
    """Attention by the distances of keys from scaled queries, by our heads."""
    layer = VNAttention(x.shape[-1], 2)
    for theirs, ours in THEIRS.items():
        setattr(layer, ours, Linear(state, f"{theirs}.", 0.0))
    q, k, v = (layer.split_heads(part(x)) for part in (layer.q, layer.k, layer.v))
    weights = (-torch.cdist(q * q.shape[-1] ** -0.5, k).square()).softmax(-1)
    return layer.proj(layer.merge_heads(weights @ v, 3))


READINGS = {
    "vnt_relu": lambda x, mask, state: relu(x, state),
    "vnt_feed_forward": lambda x, mask, state: feed_forward(x, state),
    "vnt_linear_bias": lambda x, mask, state: Linear(state, "", 0.01)(x),
    "vnt_attention_l2": lambda x, mask, state: by_distance(x, state),
    "vnt_invariant": lambda x, mask, state: torch.einsum(
        "bnsc,bnso->bno", x, relu(x @ state["mlp.0.weight"].T, state, "mlp.1.")
    ),
    "vnt_encoder": lambda x, mask, state: norm(encoder(x, mask, state, 2, eps=1e-3), state, "norm."),
    "vnt_model": lambda x, mask, state: model(x, mask, state, 2),
}


@pytest.mark.parametrize("name", READINGS)
def test_layers_equal_another_reading_but_for_its_departures(name):
    golden = read_golden(name)
    points, expected = golden.inputs["points"], golden.outputs["features"]
    x = points.mT if points.ndim == 4 else points
    with torch.no_grad():
        found = READINGS[name](x, golden.inputs.get("mask"), golden.state)[: len(expected)]
    assert relative_error(found.mT if found.ndim == 4 else found, expected) < 1e-5


def test_attributes_are_further_numbers_of_a_vector():
    golden = read_golden("vnt_model_feats")
    with torch.no_grad():
        joined = torch.cat([golden.inputs["points"], golden.inputs["feats"]], dim=-1)
        found = model(joined, None, golden.state, 1, 1e-6)[:1]
    for name, own in (("features", found[..., :3]), ("feats", found[..., 3:])):
        assert relative_error(own, golden.outputs[name]) < 1e-5


def test_our_activation_projects_and_theirs_does_not():
    golden = read_golden("vnt_relu")
    x = golden.inputs["points"].mT
    layer = VNLeakyReLU(8, 0.0)
    layer.load_state_dict({"map_to_dir.weight": golden.state["U"] @ torch.linalg.inv(golden.state["W"])})
    with torch.no_grad():
        q, k = x @ golden.state["W"].T, x @ golden.state["U"].T
        ours, theirs = layer(q), relu(x, golden.state)
    behind = (q * k).sum(-2) < 0
    direction = F.normalize(k, dim=-2)
    along = [(own * direction).sum(-2)[behind].abs().max() / q.abs().max() for own in (ours, theirs)]
    assert along[0] < 1e-4 < 0.1 < along[1]
