"""Vector neurons: the authors' numbers, and what holds for every rotation."""

import pytest
import torch
from torch import nn

from tests.clouds import random_rotation, rotate_vectors
from tests.golden_files import read_golden, relative_error
from vitrail.errors import ConfigError
from vitrail.layers.masked import MaskedBatchNorm, masked_max, masked_mean
from vitrail.layers.point_graphs import (
    VNEdgeConv,
    fading_neighbors,
    graph_features,
    nearest_points,
    squared_distances,
)
from vitrail.layers.vector_attention import VNAttention, VNBlock, VNLatentQueries, VNMlp
from vitrail.layers.vector_neurons import (
    VNBatchNorm,
    VNLayerNorm,
    VNLeakyReLU,
    VNLinear,
    VNLinearLeakyReLU,
    VNMaxPool,
    VNMeanPool,
    VNStdFeature,
    clip_along,
    invariant_products,
    orthonormal_frame,
)


def to_ours(x):
    """``(B, C, 3, N, ...)`` of the authors to ``(B, N, ..., 3, C)``."""
    return x.permute(0, *range(3, x.ndim), 2, 1)


def check(layer, golden, x, expected, *args):
    layer.load_state_dict(golden.state)
    layer.eval()
    with torch.no_grad():
        # The large files hold the outputs of their first cloud.
        assert relative_error(layer(x, *args)[: len(expected)], expected) < 1e-5


AUTHORS = {
    "vn_linear": lambda: VNLinear(6, 10),
    "vn_leaky_relu": lambda: VNLeakyReLU(6, 0.2),
    "vn_batch_norm": lambda: VNBatchNorm(6),
    "vn_max_pool": lambda: VNMaxPool(6),
    "vn_linear_leaky_relu_graph": lambda: VNLinearLeakyReLU(6, 10, 0.2),
    "vn_linear_leaky_relu_shared": lambda: VNLinearLeakyReLU(6, 10, 0.0, share_direction=True),
    "vn_linear_leaky_relu_global": lambda: VNLinearLeakyReLU(6, 10, 0.2),
}


@pytest.mark.parametrize("name", AUTHORS)
def test_layers_equal_the_authors(name):
    golden = read_golden(name)
    check(AUTHORS[name](), golden, to_ours(golden.inputs["points"]), to_ours(golden.outputs["features"]))


def test_directions_from_the_linear_output_are_a_sequence_of_layers():
    golden = read_golden("vn_linear_and_leaky_relu")
    names = {"linear": "0", "batchnorm": "1", "leaky_relu": "2"}
    golden.state = {f"{names[key.split('.')[0]]}.{key.split('.', 1)[1]}": golden.state[key] for key in golden.state}
    layers = nn.Sequential(VNLinear(6, 10), VNBatchNorm(10), VNLeakyReLU(10, 0.2))
    check(layers, golden, to_ours(golden.inputs["points"]), to_ours(golden.outputs["features"]))


@pytest.mark.parametrize("name", ["vn_std_feature", "vn_std_feature_orthonormal"])
def test_invariant_features_equal_the_authors(name):
    golden = read_golden(name)
    layer = VNStdFeature(24, 0.2, normalize_frame=name.endswith("orthonormal"))
    points = to_ours(golden.inputs["points"])
    check(layer, golden, points, to_ours(golden.outputs["features"]).transpose(-2, -1).flatten(-2))
    with torch.no_grad():
        assert relative_error(layer.frame(points)[:1], golden.outputs["frame"].permute(0, 3, 1, 2)) < 1e-5


@pytest.mark.parametrize("name", ["vn_graph", "vn_graph_cross"])
def test_graphs_equal_the_authors(name):
    golden = read_golden(name)
    points = to_ours(golden.inputs["points"])[:1]
    index = nearest_points(points.transpose(-2, -1).flatten(-2), 5)
    assert torch.equal(index.sort().values, golden.outputs["idx"].sort().values)
    features = graph_features(points, golden.outputs["idx"], cross=name.endswith("cross"))
    assert relative_error(features, to_ours(golden.outputs["features"])) < 1e-6


def as_linear(state, names):
    """Names and layout of linear layers with a bias, written from the paper by a third party."""
    out = {}
    for theirs, ours in names.items():
        out[f"{ours}.map_to_feat.weight"] = state[f"{theirs}.weight"].T
        out[f"{ours}.bias"] = state[f"{theirs}.bias"].T
    return out


def test_attention_equals_a_reading_of_the_paper():
    golden = read_golden("vnt2_attention")
    golden.state = as_linear(golden.state, {"W_q": "q", "W_k": "k", "W_z": "v", "W_o": "proj"})
    layer = VNAttention(8, 2, bias_eps=1e-6)
    check(layer, golden, to_ours(golden.inputs["points"]), to_ours(golden.outputs["features"]))


@pytest.mark.parametrize("name", ["vnt_attention", "vnt_attention_latents"])
def test_masked_attention_equals_another_reading_of_the_paper(name):
    golden = read_golden(name)
    points, mask = golden.inputs["points"].transpose(-2, -1), golden.inputs["mask"]
    names = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out": "proj"}
    attention = VNAttention(8, 2)
    attention.load_state_dict({f"{ours}.map_to_feat.weight": golden.state[f"{k}.weight"] for k, ours in names.items()})
    queries = None
    if name.endswith("latents"):
        latents = VNLatentQueries(8, 3)
        latents.load_state_dict({"weight": golden.state["to_q_input.weight"].transpose(1, 2)})
        queries = latents(points, mask)
    with torch.no_grad():
        out = attention(points, mask, queries)
    assert relative_error(out, golden.outputs["features"].transpose(-2, -1)) < 1e-5


def test_latent_queries_equal_a_weighted_pool():
    golden = read_golden("vnt_weighted_pool")
    golden.state = {"weight": golden.state["weight"].transpose(1, 2)}
    points, expected = golden.inputs["points"], golden.outputs["features"]
    check(VNLatentQueries(8, 2, 9), golden, points.mT, expected.mT, golden.inputs["mask"])


def test_layer_norm_equals_a_reading_of_the_paper():
    golden = read_golden("vnt_layer_norm")
    golden.state = {"norm.weight": golden.state["ln.gamma"], "norm.bias": golden.state["ln.beta"]}
    check(VNLayerNorm(8), golden, golden.inputs["points"].mT, golden.outputs["features"].mT)


EQUIVARIANT = {
    "linear": lambda: VNLinear(8, 6),
    "leaky_relu": lambda: VNLeakyReLU(8, 0.2),
    "relu_shared": lambda: VNLeakyReLU(8, 0.0, share_direction=True),
    "linear_leaky_relu": lambda: VNLinearLeakyReLU(8, 6),
    "batch_norm": lambda: VNBatchNorm(8),
    "layer_norm": lambda: VNLayerNorm(8),
    "max_pool": lambda: VNMaxPool(8),
    "mean_pool": lambda: VNMeanPool(),
    "attention": lambda: VNAttention(8, 2),
    "latents": lambda: VNLatentQueries(8, 4),
    "mlp": lambda: VNMlp(8, 12),
    "block": lambda: VNBlock(8, 4),
}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", EQUIVARIANT)
@pytest.mark.fast_cases(
    "linear_leaky_relu-False-dtype0",
    "max_pool-True-dtype0",
    "mean_pool-False-dtype1",
    "latents-False-dtype0",
    "block-False-dtype0",
)
def test_layers_are_equivariant(name, training, dtype):
    torch.manual_seed(3)
    layer = EQUIVARIANT[name]().to(dtype).train(training)
    for batch in (1, 3):
        x = torch.randn(batch, 10, 3, 8, dtype=dtype)
        rotation = random_rotation(dtype)
        turned = layer(rotate_vectors(x, rotation))
        assert relative_error(turned, rotate_vectors(layer(x), rotation)) < TOLERANCE[dtype]
        mirrored = layer(-x)
        assert relative_error(mirrored, -layer(x)) < TOLERANCE[dtype]


@pytest.mark.parametrize("normalize_frame", [False, True])
def test_invariant_features_do_not_turn(normalize_frame):
    torch.manual_seed(4)
    layer = VNStdFeature(24, normalize_frame=normalize_frame).double().eval()
    x = torch.randn(3, 10, 3, 24, dtype=torch.float64)
    for _ in range(3):
        assert relative_error(layer(rotate_vectors(x, random_rotation(x.dtype))), layer(x)) < 1e-10
    mirrored = relative_error(layer(-x), layer(x))
    assert mirrored > 1e-3 if normalize_frame else mirrored < 1e-10


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_frames_are_right_handed_for_any_batch(batch):
    frame = orthonormal_frame(torch.randn(batch, 3, 2, dtype=torch.float64))
    assert torch.allclose(frame.mT @ frame, torch.eye(3, dtype=torch.float64).expand(batch, 3, 3), atol=1e-4)
    assert torch.allclose(torch.linalg.det(frame), torch.ones(batch, dtype=torch.float64), atol=1e-4)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_edges_turn_with_the_cloud(pooling, cross, batch):
    torch.manual_seed(5)
    layer = VNEdgeConv(2, 5, pooling, cross=cross).double().eval()
    x = torch.randn(batch, 12, 3, 2, dtype=torch.float64)
    index = nearest_points(x.flatten(2), 4)
    out = layer(x, index)
    rotation = random_rotation(x.dtype)
    assert relative_error(layer(rotate_vectors(x, rotation), index), rotate_vectors(out, rotation)) < 1e-10
    mirrored = relative_error(layer(-x, index), -out)
    assert mirrored > 1e-3 if cross else mirrored < 1e-10


def test_numbers_are_clipped_as_vectors_of_one_coordinate():
    x, direction = torch.randn(50, 1, 4, dtype=torch.float64), torch.randn(50, 1, 4, dtype=torch.float64)
    as_vectors = [nn.functional.pad(part, (0, 0, 0, 2)) for part in (x, direction)]
    for slope in (0.0, 0.2):
        assert torch.allclose(clip_along(x, direction, slope), clip_along(*as_vectors, slope)[:, :1], atol=1e-12)


def test_bias_breaks_equivariance_by_its_length():
    torch.manual_seed(6)
    x = torch.randn(2, 10, 3, 8, dtype=torch.float64)
    rotation = random_rotation(x.dtype)
    for eps in (1e-6, 1e-3):
        layer = VNLinear(8, 6, bias_eps=eps).double()
        deviation = (layer(rotate_vectors(x, rotation)) - rotate_vectors(layer(x), rotation)).norm(dim=-2)
        assert 0.1 * eps < deviation.max() <= 2.0 * eps


def test_further_coordinates_do_not_turn():
    torch.manual_seed(7)
    layers = nn.Sequential(VNLinear(4, 8), VNLeakyReLU(8), VNBlock(8, 2, num_coords=5)).double().eval()
    x = torch.randn(2, 10, 5, 4, dtype=torch.float64)
    rotation = torch.block_diag(random_rotation(x.dtype), torch.eye(2, dtype=torch.float64))
    assert relative_error(layers(rotate_vectors(x, rotation)), rotate_vectors(layers(x), rotation)) < 1e-10


@pytest.mark.parametrize("name", ["max_pool", "mean_pool", "attention", "latents", "block", "batch_norm"])
@pytest.mark.parametrize("training", [False, True])
def test_masked_points_change_nothing(name, training):
    torch.manual_seed(8)
    layer = EQUIVARIANT[name]().double().train(training)
    x = torch.randn(2, 10, 3, 8, dtype=torch.float64)
    mask = torch.arange(10) < torch.tensor([[6], [6]])
    masked = x.masked_fill(~mask[..., None, None], 7.0)
    masked[:, 6:] += torch.randn(2, 4, 3, 8)
    alone, among = layer(x[:, :6]), layer(masked, mask)
    if among.shape[1] == 10:
        among = among[:, :6]
    assert relative_error(among, alone) < 1e-12


def test_masked_points_are_no_neighbours():
    x = torch.randn(2, 9, 3)
    mask = torch.arange(9) < torch.tensor([[9], [4]])
    index = nearest_points(x, 6, mask)
    assert torch.equal(index[0], nearest_points(x[:1], 6)[0])
    assert index[1, :4].max() < 4
    # Two of six neighbours are lacking: the point itself again.
    assert torch.equal(index[1, :4, 4:], torch.arange(4)[:, None].expand(-1, 2))


@pytest.mark.parametrize("k", [1, 5, 30])
@pytest.mark.parametrize("width", [3, 12])
def test_neighbours_are_the_nearest(k, width):
    x = torch.randn(2, 20, width, dtype=torch.float64)
    index = nearest_points(x, k)
    distances = torch.cdist(x, x)
    assert torch.allclose(squared_distances(x).clamp_min(0).sqrt(), distances, atol=1e-6)
    assert index.shape == (2, 20, min(k, 20))
    assert torch.equal(index.sort().values, distances.argsort()[..., :k].sort().values)


def test_weights_of_neighbours_fall_to_zero_at_the_next_point():
    x = torch.randn(2, 20, 3, dtype=torch.float64)
    index, weights = fading_neighbors(x, 5)
    assert torch.equal(index, nearest_points(x, 5))
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").sort().values
    expected = (16 - 16 * (distances[..., :5] / distances[..., 5:6]).square()).clamp(max=1)
    assert torch.allclose(weights, expected / expected.sum(-1, keepdim=True))


@pytest.mark.parametrize(("k", "number"), [(4, 4), (4, 9), (6, 4)])
def test_weights_of_neighbours_that_lack_or_repeat(k, number):
    x = torch.randn(1, number, 3)
    padded = torch.cat([x, torch.zeros(1, 5, 3)], dim=1)
    alone, among = fading_neighbors(x, k), fading_neighbors(padded, k, torch.arange(number + 5)[None] < number)
    found = min(k, number)
    assert torch.equal(among[0][:, :number, :found], alone[0])
    assert torch.allclose(among[1][:, :number, :found], alone[1])
    assert among[1][:, :number, found:].eq(0).all()
    repeated = fading_neighbors(x[:, :1].expand(-1, number, -1), k)[1]
    assert torch.allclose(repeated, torch.full_like(repeated, 1 / found))


def test_weighted_edges():
    torch.manual_seed(12)
    layer = VNEdgeConv(2, 5, cross=True).double().eval()
    x = torch.randn(2, 9, 3, 2, dtype=torch.float64)
    index, weights = fading_neighbors(x[..., 0], 4)
    expected = sum(layer(x, index[..., i : i + 1]) * weights[:, :, i, None, None] for i in range(4))
    assert relative_error(layer(x, index, None, weights), expected) < 1e-12
    with torch.no_grad():
        assert relative_error(layer(x, index, None, weights), expected) < 1e-12
    of_all = VNEdgeConv(2, 5, "max").double().eval()
    weights[..., 2:] = 0.0
    assert torch.equal(of_all(x, index, None, weights), of_all(x, index[..., :2]))


def test_distances_of_coordinates_are_exact_far_from_the_origin():
    x = torch.randn(1, 50, 3)
    expected = nearest_points(x.double(), 5)
    assert torch.equal(nearest_points((x.double() + 100).float(), 1)[..., 0], expected[..., 0])


def test_repeated_points_leave_gradients_finite():
    torch.manual_seed(9)
    points = torch.randn(2, 5, 3)[:, [0, 1, 2, 3, 4, 0, 0, 0]].unsqueeze(-1).requires_grad_()
    layer = VNEdgeConv(1, 6, cross=True)
    layer(points, nearest_points(points.squeeze(-1), 4)).square().sum().backward()
    assert points.grad.isfinite().all()
    zeros = torch.zeros(2, 4, 3, 6, requires_grad=True)
    VNLayerNorm(6)(VNBatchNorm(6)(zeros)).sum().backward()
    assert zeros.grad.isfinite().all()


def test_max_pool_takes_the_first_of_equal_points():
    layer = VNMaxPool(4)
    x = torch.randn(1, 3, 3, 4)
    twice = torch.cat([x, x], dim=1).requires_grad_()
    out = layer(twice)
    assert torch.equal(out, layer(x))
    out.sum().backward()
    assert twice.grad[:, 3:].eq(0).all()


GRADIENTS = {
    "leaky_relu": lambda: VNLeakyReLU(4, 0.2),
    "linear_leaky_relu": lambda: VNLinearLeakyReLU(4, 3),
    "layer_norm": lambda: VNLayerNorm(4),
    "max_pool": lambda: VNMaxPool(4),
    "attention": lambda: VNAttention(4, 2),
    "block": lambda: VNBlock(4, 2),
    "invariant": lambda: VNStdFeature(4, normalize_frame=True),
}


@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.fast_cases("max_pool", "block", "invariant")
def test_gradients(name):
    torch.manual_seed(10)
    layer = GRADIENTS[name]().double()
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_gradients_of_edges(pooling, cross):
    torch.manual_seed(11)
    layer = VNEdgeConv(2, 3, pooling, cross=cross).double()
    x = torch.randn(1, 5, 3, 2, dtype=torch.float64, requires_grad=True)
    index = nearest_points(x.flatten(2), 3)
    assert torch.autograd.gradcheck(lambda x: layer(x, index), (x,))


def test_invariant_products_are_inner_products():
    x, frame = torch.randn(2, 4, 3, 6), torch.randn(2, 4, 3, 3)
    assert torch.allclose(invariant_products(x, frame)[1, 2, 4, 0], (x[1, 2, :, 4] * frame[1, 2, :, 0]).sum())


@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_norm_without_masked_rows(momentum):
    torch.manual_seed(12)
    layer, expected = (MaskedBatchNorm(4, momentum=momentum).double() for _ in range(2))
    x = torch.randn(3, 6, 2, 4, dtype=torch.float64)
    mask = torch.rand(3, 6) < 0.6
    for _ in range(2):
        out = layer(x, mask)
        assert torch.allclose(out[mask], expected(x[mask]))
    for name, value in expected.state_dict().items():
        assert torch.allclose(layer.state_dict()[name], value), name


def test_masked_means_and_maxima():
    x = torch.randn(2, 5, 3)
    mask = torch.tensor([[True, True, False, False, False], [False] * 5])
    assert torch.allclose(masked_mean(x, mask)[0], x[0, :2].mean(0))
    assert torch.equal(masked_max(x, mask)[0], x[0, :2].amax(0))
    assert masked_mean(x, mask)[1].eq(0).all()
    assert masked_max(x, mask)[1].eq(0).all()


def test_unknown_settings():
    with pytest.raises(ConfigError, match="pooling must be 'mean' or 'max', got 'median'"):
        VNEdgeConv(1, 3, "median")
    with pytest.raises(ConfigError, match="num_heads must divide the width 8, got 3"):
        VNAttention(8, 3)
