"""MBConv and GELU: against their definitions, and the inference route against the plain one."""

import copy
import math
import random

import pytest
import torch
import torch.nn.functional as F

from tests.tiers import fast_first
from vitrail.layers.activations import gelu, make_activation
from vitrail.layers.fast import mbconv
from vitrail.layers.mbconv import TENSORFLOW, TORCHVISION, Conv3x3, MBConv, Stem

FLAVOURS = pytest.mark.parametrize("flavour", [TENSORFLOW, TORCHVISION], ids=["tf", "torchvision"])


def randomise(module):
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.3)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0)
    return module


def tensorflow_padding(length, kernel, stride):
    total = max((math.ceil(length / stride) - 1) * stride + kernel - length, 0)
    return total // 2, total - total // 2


def convolve_slowly(x, conv, same):
    """The 3 x 3 convolution as a sum over the kernel's places, on a map padded by the written rule."""
    stride = conv.stride[0]
    sides = [tensorflow_padding(n, 3, stride) if same else (1, 1) for n in x.shape[2:]]
    rows, columns = (-(-n // stride) for n in x.shape[2:])
    padded = F.pad(x, (*sides[1], *sides[0]))
    out = 0.0
    for i in range(3):
        for j in range(3):
            piece = padded[:, :, i : i + stride * rows : stride, j : j + stride * columns : stride]
            piece = piece[:, :, :rows, :columns]
            if conv.groups == 1:
                out = out + torch.einsum("bchw,oc->bohw", piece, conv.weight[:, :, i, j])
            else:
                out = out + piece * conv.weight[None, :, 0, i, j, None, None]
    return out if conv.bias is None else out + conv.bias[:, None, None]


def mbconv_slowly(m, x):
    """Figure 2 of the paper with the running statistics, each step written out."""
    flavour = m.flavour
    act = make_activation(flavour.act_layer)

    def norm(bn, y):
        scale = bn.weight / (bn.running_var + flavour.norm_eps).sqrt()
        return (y - bn.running_mean[:, None, None]) * scale[:, None, None] + bn.bias[:, None, None]

    def dense(conv, y):
        out = torch.einsum("bchw,oc->bohw", y, conv.weight[:, :, 0, 0])
        return out if conv.bias is None else out + conv.bias[:, None, None]

    y = act(norm(m.norm1, dense(m.conv1_1x1, norm(m.pre_norm, x))))
    y = act(norm(m.norm2, convolve_slowly(y, m.conv2_kxk, flavour.same_padding)))
    squeezed = dense(m.se.fc2, F.silu(dense(m.se.fc1, y.mean((2, 3), keepdim=True))))
    y = dense(m.conv3_1x1, y * torch.sigmoid(squeezed))
    if m.stride == 1:
        return x + y
    if flavour.same_padding:
        H, W = x.shape[2:]
        shortcut = F.pad(x, (0, W % 2, 0, H % 2)).unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))
    else:
        shortcut = F.pad(x, (1, 1, 1, 1)).unfold(2, 3, 2).unfold(3, 3, 2).mean((4, 5))
    if isinstance(m.shortcut.expand, torch.nn.Conv2d):
        shortcut = dense(m.shortcut.expand, shortcut)
    return shortcut + y


@pytest.mark.parametrize("seed", fast_first(range(6), 2))
@pytest.mark.parametrize("stride", [1, 2])
@FLAVOURS
@pytest.mark.fast_cases("tf-2-1", "torchvision-2-0")
def test_mbconv_is_its_definition(seed, stride, flavour, monkeypatch):
    rng = random.Random(seed)
    dim = 4 * rng.randint(1, 3)
    out_dim = dim if stride == 1 else 4 * rng.randint(1, 4)
    m = randomise(MBConv(dim, out_dim, stride, flavour)).eval()
    for _ in range(3):
        x = torch.randn(rng.randint(1, 5), dim, rng.randint(1, 21), rng.randint(1, 21))
        expected = mbconv_slowly(m, x)
        assert expected.shape == (x.shape[0], out_dim, -(-x.shape[2] // stride), -(-x.shape[3] // stride))
        torch.testing.assert_close(m(x), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
        for working_set in (1, 500, 5_000, 1 << 21):
            # From single rows to the whole batch at once.
            monkeypatch.setattr(mbconv, "_WORKING_SET", working_set)
            with torch.no_grad():
                x = x.contiguous(memory_format=rng.choice([torch.channels_last, torch.contiguous_format]))
                torch.testing.assert_close(m(x), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.fast_cases("torchvision-1")
@pytest.mark.parametrize("stride", [1, 2])
@FLAVOURS
def test_padding_of_any_size(stride, flavour):
    same = flavour.same_padding
    conv = Conv3x3(3, 3, stride, same, groups=3, bias=False)
    full = Conv3x3(3, 5, stride, same)
    for H in range(1, 8):
        for W in range(1, 8):
            x = torch.randn(2, 3, H, W)
            for layer in (conv, full):
                torch.testing.assert_close(layer(x), convolve_slowly(x, layer, same))


@FLAVOURS
def test_stem(flavour):
    stem = randomise(Stem(3, 8, flavour, first_bias=flavour is TENSORFLOW)).eval()
    for size in ((32, 32), (17, 30), (1, 1)):
        x = torch.randn(2, 3, *size)
        y = make_activation(flavour.act_layer)(stem.norm1(convolve_slowly(x, stem.conv1, flavour.same_padding)))
        expected = convolve_slowly(y, stem.conv2, flavour.same_padding)
        torch.testing.assert_close(stem(x), expected, rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            torch.testing.assert_close(stem(x), expected, rtol=1e-4, atol=1e-4)


def test_inference_sees_every_change_at_once():
    m = randomise(MBConv(8, 8)).eval()
    x = torch.randn(2, 8, 24, 24)
    other = randomise(copy.deepcopy(m))
    with torch.no_grad():
        before = m(x)
        m.norm1.running_mean.data.add_(1.0)
        changed = m(x)
        assert not torch.allclose(before, changed)
        m.conv1_1x1.weight.data.mul_(2.0)
        assert not torch.allclose(m(x), changed)
        m.load_state_dict(other.state_dict())
        torch.testing.assert_close(m(x), other(x))


def forget_statistics(norm):
    norm.track_running_stats, norm.running_mean, norm.running_var, norm.num_batches_tracked = False, None, None, None


def forget_scale(norm):
    norm.affine, norm.weight, norm.bias = False, None, None


NORM_CHANGES = {
    "in training": lambda norm: norm.train(),
    "by the mean over all batches": lambda norm: setattr(norm.train(), "momentum", None),
    "without statistics": forget_statistics,
    "without statistics, in training": lambda norm: forget_statistics(norm.train()),
    "statistics kept as they are": lambda norm: setattr(norm.train(), "track_running_stats", False),
    "without scale": forget_scale,
}


@pytest.mark.parametrize("change", NORM_CHANGES.values(), ids=NORM_CHANGES)
@pytest.mark.parametrize("layer", fast_first(["stem", "stride 1", "stride 2"], 1))
@FLAVOURS
@pytest.mark.fast_cases("tf-stem-without statistics", "torchvision-stem-without scale")
def test_each_norm_follows_its_own_mode(layer, change, flavour, monkeypatch):
    rng = random.Random(f"{layer}{flavour}")
    for limit in (1 << 24, 400):
        monkeypatch.setattr(mbconv, "_WIDE_MAP", limit)
        for _ in range(4):
            start = Stem(8, 8, flavour, True) if layer == "stem" else MBConv(8, 8, int(layer[-1]), flavour)
            start = randomise(start).train(rng.random() < 0.3)
            norms = [m for m in start.modules() if isinstance(m, torch.nn.BatchNorm2d)]
            for norm in norms:
                norm.eval()
            for norm in rng.sample(norms, rng.randint(1, len(norms))):
                change(norm)
            # With a hook each layer is called in turn, as torch has it.
            plain, ours = copy.deepcopy(start), copy.deepcopy(start)
            for module in plain.modules():
                module.register_forward_hook(lambda *_: None)
            x = torch.randn(rng.randint(2, 4), 8, rng.randint(5, 20), rng.randint(5, 20))
            with torch.set_grad_enabled(rng.random() < 0.3):
                torch.testing.assert_close(ours(x), plain(x), rtol=1e-4, atol=1e-4)
            for buffer, expected in zip(ours.buffers(), plain.buffers(), strict=True):
                torch.testing.assert_close(buffer, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.fast_cases("tf-2-False", "torchvision-1-False")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
@FLAVOURS
def test_channels_in_groups_change_nothing(training, stride, flavour, monkeypatch):
    start = randomise(MBConv(8, 12 if stride == 2 else 8, stride, flavour)).train(training)
    for size in ((6, 8), (7, 6), (5, 3)):
        x = torch.randn(3, 8, *size)
        results = []
        for limit in (1 << 24, 3_000, 400):
            monkeypatch.setattr(mbconv, "_WIDE_MAP", limit)
            m, y = copy.deepcopy(start), x.clone().requires_grad_()
            out = m(y)
            out.square().sum().backward()
            results.append([out, y.grad, *(p.grad for p in m.parameters()), *m.buffers()])
        for other in results[1:]:
            for plain, grouped in zip(results[0], other, strict=True):
                scale = max(1.0, plain.abs().max().item())
                torch.testing.assert_close(grouped, plain, rtol=1e-4, atol=1e-4 * scale)


def test_hooks_inside_fire_in_inference():
    m = randomise(MBConv(8, 8)).eval()
    x = torch.randn(2, 8, 24, 24)
    with torch.no_grad():
        expected = m(x)
        seen = []
        m.norm2.register_forward_hook(lambda _m, _args, out: seen.append(out.shape))
        torch.testing.assert_close(m(x), expected, rtol=1e-4, atol=1e-4)
    assert seen == [(2, 32, 24, 24)]


def test_channels_last_stays():
    m = randomise(MBConv(8, 16, 2)).to(memory_format=torch.channels_last)
    x = torch.randn(3, 8, 30, 30).contiguous(memory_format=torch.channels_last)
    for training in (True, False):
        m.train(training)
        assert m(x).permute(0, 2, 3, 1).is_contiguous()
        with torch.no_grad():
            assert m(x).permute(0, 2, 3, 1).is_contiguous()


@pytest.mark.fast_cases("tf-True")
@pytest.mark.parametrize("training", [True, False])
@FLAVOURS
def test_gradients(training, flavour):
    for stride, size in ((1, (3, 4)), (2, (5, 4))):
        m = randomise(MBConv(4, 4, stride, flavour)).double().train(training)
        for norm in (m.pre_norm, m.norm1, m.norm2):
            norm.momentum = 0.0  # gradcheck calls the function many times; it should be one function
        x = torch.randn(2, 4, *size, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(m, (x,), fast_mode=True)
        for name in ("conv1_1x1", "conv2_kxk", "conv3_1x1", "norm1"):
            weight = m.get_submodule(name).weight

            def run(value, name=name, m=m, x=x):
                return torch.func.functional_call(m, {f"{name}.weight": value}, (x.detach(),))

            assert torch.autograd.gradcheck(run, (weight.detach().clone().requires_grad_(),), fast_mode=True)


@pytest.mark.parametrize("seed", range(4))
def test_stride_two_reports_its_parents_and_stride_one_nothing(seed):
    rng = random.Random(seed)
    H, W = rng.randint(1, 9), rng.randint(1, 9)
    seen = []
    for stride in (1, 2):
        m = MBConv(4, 4, stride).eval()
        x = torch.randn(2, 4, H, W)
        expected = m(x)
        m.tap.consumer = lambda weights, layout: seen.append((weights, layout))
        torch.testing.assert_close(m(x), expected)
    ((weights, layout),) = seen
    rows, columns = -(-H // 2), -(-W // 2)
    assert (layout.kind, layout.key_grid, layout.query_grid) == ("merge", (H, W), (rows, columns))
    assert weights.shape == (2, rows * columns, 4)
    exist = [(min(H - 2 * (q // columns), 2)) * (min(W - 2 * (q % columns), 2)) for q in range(rows * columns)]
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, rows * columns))
    torch.testing.assert_close(weights.max(-1).values, (1 / torch.tensor(exist)).expand(2, -1))


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_everywhere(approximate):
    special = [0.0, -0.0, 1e-30, -1e-30, 5.0, -5.0, 1e4, -1e4, 1e13, -1e13, math.inf, -math.inf, math.nan]
    for x in (torch.linspace(-20, 20, 100_001), torch.tensor(special), torch.randn(3, 5, 7).transpose(0, 2)):
        before = x.clone()
        with torch.no_grad():
            ours = gelu(x, approximate)
        torch.testing.assert_close(ours, F.gelu(x, approximate=approximate), rtol=1e-6, atol=1e-6, equal_nan=True)
        assert torch.equal(x.nan_to_num(), before.nan_to_num())
