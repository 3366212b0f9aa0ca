"""Deletion, insertion, ROAD, infidelity, sensitivity: against loops, dense solves and models whose truth is known."""

import math

import numpy as np
import pytest
import torch

from tests.explain.tiny_models import KnownModel, known_case, tiny_inputs, tiny_model
from vitrail.errors import ConfigError, ShapeError
from vitrail.explain import deletion, explain, infidelity, insertion, road, sensitivity
from vitrail.explain.methods.baselines import blur, make_baseline
from vitrail.explain.metrics.remove_and_debias import impute
from vitrail.explain.metrics.scoring import rank_pixels

pytestmark = pytest.mark.filterwarnings("error::UserWarning")


def _probability(model, inputs, classes):
    with torch.no_grad():
        return torch.stack([model(*[x[i : i + 1] for x in inputs])[0].softmax(0)[c] for i, c in enumerate(classes)])


@pytest.mark.fast_cases("insertion-blur-vit token")
@pytest.mark.parametrize("name", ["vit token", "swin", "hvt two streams"])
@pytest.mark.parametrize(("curve", "baseline"), [(deletion, "mean"), (insertion, "blur")])
def test_curves_equal_a_loop_over_pixels(name, curve, baseline):
    model = tiny_model(name)
    inputs = tiny_inputs(model, 3)
    maps = {s.name: torch.randn(3, *x.shape[2:]) for s, x in zip(model.streams, inputs, strict=True)}
    classes, steps = [2, 0, 3], 5
    found = curve(model, inputs, maps, classes, steps=steps, baseline=baseline, batch_size=2)
    assert torch.allclose(found.fractions, torch.tensor([0, 0.2, 0.4, 0.6, 0.8, 1.0]))
    for step in range(steps + 1):
        changed = []
        for x, relevance in zip(inputs, maps.values(), strict=True):
            empty = make_baseline(x, baseline)
            new = (x if curve is deletion else empty).clone()
            for b in range(3):
                order = sorted(range(relevance[b].numel()), key=lambda i, b=b, r=relevance: -float(r[b].flatten()[i]))
                for i in order[: round(step / steps * relevance[b].numel())]:
                    at = divmod(i, x.shape[3])
                    new[b, :, at[0], at[1]] = (empty if curve is deletion else x)[b, :, at[0], at[1]]
            changed.append(new)
        assert torch.allclose(found.scores[:, step], _probability(model, changed, classes), atol=1e-4), step
    area = sum((found.scores[:, i] + found.scores[:, i + 1]) / 2 / steps for i in range(steps))
    assert torch.allclose(found.area, area, atol=1e-6)


def test_a_stream_without_a_map_is_left_alone():
    model = tiny_model("hvt two streams")
    image, spectral = tiny_inputs(model)
    one = deletion(model, [image, spectral], {"spectral": torch.rand(2, 19, 23)}, 1, steps=2)
    expected = _probability(model, [image, torch.zeros_like(spectral)], [1, 1])
    assert torch.allclose(one.scores[:, -1], expected, atol=1e-5)


def test_the_truth_is_best_and_chance_in_the_middle():
    model, images, masks = known_case()
    generator = torch.Generator().manual_seed(3)
    truth, inverse = {"image": masks.float()}, {"image": -masks.float()}
    chance = {"image": torch.rand(masks.shape, generator=generator)}
    for measured, good in (
        (lambda m: deletion(model, images, m, 1, baseline="zero").area, False),
        (lambda m: insertion(model, images, m, 1, baseline="zero").area, True),
        (lambda m: road(model, images, m, 1, fractions=(0.1, 0.4)).gap, True),
    ):
        best, middle, worst = (float(measured(m).mean()) for m in (truth, chance, inverse))
        assert (best > middle > worst) if good else (best < middle < worst)
    # Of random orders the gap is nothing; of the truth and its opposite the same with another sign.
    assert abs(float(road(model, images, chance, 1, fractions=(0.1, 0.4)).gap.mean())) < 0.1
    assert float(road(model, images, truth, 1, fractions=(0.1, 0.4)).gap.mean()) > 0.25


def test_the_score_of_a_known_model_while_pixels_go():
    # All relevant pixels are 1 and go first: the logit falls in proportion to how many of them are gone.
    mask = torch.zeros(10, 10)
    mask[2:6, 3:8] = 1  # a fifth of the image
    model, images = KnownModel(mask, 1), mask[None, None].expand(2, 1, 10, 10)
    curve = deletion(model, images, {"image": mask.expand(2, -1, -1)}, 1, steps=10, score="logit", baseline="zero")
    assert torch.allclose(curve.scores, torch.tensor([8.0, 4.0, *[0.0] * 9]).expand(2, -1))
    assert torch.allclose(curve.area, torch.full((2,), (8 + 4) / 2 / 10 + 4 / 2 / 10))
    independent = deletion(model, images, {"image": mask.expand(2, -1, -1)}, 1, steps=1, score="independent")
    assert independent.scores[0].tolist() == pytest.approx([1 / (1 + math.exp(-8)), 0.5])


def test_equal_pixels_go_in_a_random_order():
    flat = torch.zeros(2, 30, 30)
    ranks = rank_pixels(flat)
    assert torch.equal(ranks.flatten(1).sort(1).values, torch.arange(900).expand(2, -1))
    first = (ranks[0] < 300).float()
    assert 60 < first[:10].sum() < 140
    assert torch.equal(rank_pixels(flat, 1), rank_pixels(flat, 1))
    assert not torch.equal(rank_pixels(flat, 1), ranks)
    x = torch.tensor([[[0.1, 0.9], [-3.0, 0.5]]])
    assert rank_pixels(x).tolist() == [[[2, 0], [3, 1]]]


def _dense_imputation(image, holes):
    """Every hole the weighted mean of the neighbours that it has, by one dense system."""
    C, H, W = image.shape
    number = {(int(r), int(c)): i for i, (r, c) in enumerate(holes.nonzero())}
    A, b = np.zeros((len(number), len(number))), np.zeros((len(number), C))
    for (r, c), i in number.items():
        for dr in (-1, 0, 1):
            for dc in (-1, 0, 1):
                at = (r + dr, c + dc)
                if (dr, dc) == (0, 0) or not (0 <= at[0] < H and 0 <= at[1] < W):
                    continue
                w = 1 / 12 if dr and dc else 1 / 6
                A[i, i] += w
                if at in number:
                    A[i, number[at]] -= w
                else:
                    b[i] += w * image[:, at[0], at[1]].numpy()
    return np.linalg.solve(A, b).T


@pytest.mark.parametrize("seed", range(4))
def test_imputation_equals_a_dense_solve(seed):
    torch.manual_seed(seed)
    H, W = 5 + 2 * seed, 11 - seed
    images = torch.randn(2, 3, H, W, dtype=torch.float64)
    removed = torch.rand(2, H, W) < (0.2, 0.5, 0.8, 0.95)[seed]
    removed[:, H // 2, W // 2] = False
    filled = impute(images, removed, noise=0.0)
    for x, holes, out in zip(images, removed, filled, strict=True):
        assert torch.equal(out[:, ~holes], x[:, ~holes])
        assert np.allclose(out[:, holes].numpy(), _dense_imputation(x, holes))
        # Values between the smallest and the largest that are known: nothing is invented.
        assert out.amin() >= x[:, ~holes].amin() - 1e-9


def test_imputation_noise_and_limits():
    x = torch.zeros(2, 1, 40, 40)
    removed = torch.rand(1, 40, 40).expand(2, -1, -1) < 0.5
    filled = impute(x, removed, noise=0.5, seed=2)
    assert float(filled[0, :, removed[0]].std()) == pytest.approx(0.5, rel=0.15)
    assert torch.equal(filled[0], filled[1])
    assert torch.equal(impute(x, torch.zeros(2, 40, 40, dtype=torch.bool)), x)
    with pytest.raises(ConfigError, match="all pixels of an image are removed"):
        impute(x, torch.ones(2, 40, 40, dtype=torch.bool))
    with pytest.raises(ConfigError, match=r"noise must be .* at least 0, got -0.1"):
        impute(x, removed, noise=-0.1)
    with pytest.raises(ShapeError, match="removed must be"):
        impute(x, removed[:, :3])


@pytest.mark.parametrize("sigma", [0, -1.0, float("nan"), float("inf"), True])
def test_blur_needs_a_positive_sigma(sigma):
    with pytest.raises(ConfigError, match=r"sigma must be a finite number above 0, got"):
        blur(torch.zeros(1, 1, 8, 8), sigma)


def test_road_equals_the_loop_by_hand():
    model = tiny_model("swin")
    (x,) = tiny_inputs(model, 3)
    relevance = torch.randn(3, 21, 18)
    found = road(model, x, {"image": relevance}, [1, 0, 3], fractions=(0.2, 0.6), batch_size=2, seed=4)
    for values, sign in ((found.most, 1), (found.least, -1)):
        for number, fraction in enumerate((0.2, 0.6)):
            flat = (sign * relevance).flatten(1)
            threshold = flat.sort(1, descending=True).values[:, round(fraction * flat.shape[1]) - 1]
            removed = (flat >= threshold[:, None]).reshape(relevance.shape)
            expected = _probability(model, [impute(x, removed, 0.01, 4)], [1, 0, 3])
            assert torch.allclose(values[:, number], expected, atol=1e-5)
    assert torch.allclose(found.gap, (found.least - found.most).mean(1))


def test_infidelity_of_the_truth_is_nothing():
    # The logit is linear: input times gradient predicts what covering costs exactly, whatever its unit.
    model, images, masks = known_case(batch=3)
    truth = explain(model, images, "input_x_gradient", 1).map
    exact = infidelity(model, images, {"image": truth}, 1, score="logit", samples=24)
    scaled = infidelity(model, images, {"image": 7 * truth}, 1, score="logit", samples=24, batch_size=5)
    assert exact.max() < 1e-4
    assert scaled.max() < 1e-4
    chance = infidelity(model, images, explain(model, images, "random"), 1, score="logit", samples=24)
    opposite = infidelity(model, images, {"image": (~masks).float()}, 1, score="logit", samples=24)
    assert chance.min() > 0.1
    assert opposite.min() > 0.1


def test_infidelity_equals_the_definition():
    model = tiny_model("hvt two streams")
    inputs = tiny_inputs(model)
    maps = {s.name: torch.randn(2, *x.shape[2:]) for s, x in zip(model.streams, inputs, strict=True)}
    found = infidelity(model, inputs, maps, [1, 2], samples=6, baseline="mean", score="logit", batch_size=6, seed=3)
    drawn = torch.rand(6, 2, 2, generator=torch.Generator().manual_seed(3))
    for b, target in enumerate((1, 2)):
        own = [x[b : b + 1] for x in inputs]
        whole, said, lost = model(*own)[0, target].item(), [], []
        for side, middle in drawn:
            covered, total = [], 0.0
            for x, relevance in zip(own, maps.values(), strict=True):
                new = x.clone()
                for i in range(x.shape[2]):
                    for j in range(x.shape[3]):
                        inside = True
                        for place, length, axis in ((i, x.shape[2], 0), (j, x.shape[3], 1)):
                            width = (0.125 + 0.375 * float(side[axis])) * length
                            start = float(middle[axis]) * (length - width)
                            inside &= start <= place + 0.5 < start + width
                        if inside:
                            new[0, :, i, j] = x[0].mean((1, 2))
                            total += float(relevance[b, i, j])
                covered.append(new)
            said.append(total)
            lost.append(whole - model(*covered)[0, target].item())
        said, lost = np.array(said), np.array(lost)
        beta = (said * lost).mean() / (said**2).mean()
        assert float(found[b]) == pytest.approx(((beta * said - lost) ** 2).mean(), rel=1e-2, abs=1e-5)


def test_sensitivity_is_the_largest_change_over_the_size():
    model = tiny_model("vit mean")
    (x,) = tiny_inputs(model)
    found = sensitivity(model, x, "layercam", [1, 2], radius=0.1, samples=5, seed=2, batch_size=5)
    noise = torch.rand(5, *x.shape[1:], generator=torch.Generator().manual_seed(2))
    for b, target in enumerate((1, 2)):
        original = explain(model, x[b : b + 1], "layercam", target).map
        moved = explain(model, x[b : b + 1] + 0.1 * (2 * noise - 1), "layercam", target).map
        change = (moved - original).flatten(1).norm(dim=1) / original.norm()
        assert float(found[b]) == pytest.approx(float(change.max()), rel=1e-3)
    assert float(sensitivity(model, x, "centre", samples=2).max()) == 0
    assert float(sensitivity(model, x, "gradcam", samples=2, settings={"layer": 0}).min()) > 0


def test_sensitivity_of_two_streams_and_of_gradients():
    model = tiny_model("hvt two streams")
    inputs = tiny_inputs(model)
    small = sensitivity(model, inputs, "input_x_gradient", radius=0.001, samples=3, batch_size=2)
    large = sensitivity(model, inputs, "input_x_gradient", radius=0.5, samples=3, batch_size=2)
    assert (0 < small).all()
    assert (small < large).all()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m, x, a: deletion(m, x, {"image": a[:, :3]}), ShapeError, "expected"),
        (lambda m, x, a: deletion(m, x, {"thermal": a}), ConfigError, "thermal"),
        (lambda m, x, a: deletion(m, x, {}), ConfigError, "no map"),
        (lambda m, x, a: deletion(m, x, {"image": a * math.nan}), ConfigError, "not finite"),
        (lambda m, x, a: deletion(m, x, {"image": a}, steps=0), ConfigError, "steps"),
        (lambda m, x, a: deletion(m, x, {"image": a}, score="softmax"), ConfigError, "probability, independent, logit"),
        (lambda m, x, a: road(m, x, {"image": a}, fractions=(0.5, 1.0)), ConfigError, "below 1"),
        (lambda m, x, a: infidelity(m, x, {"image": a}, samples=0), ConfigError, "samples"),
        (lambda m, x, a: sensitivity(m, x, "gradcam", radius=0), ConfigError, "radius"),
        (lambda m, x, a: sensitivity(m, x, "gradcan"), ConfigError, "did you mean 'gradcam'"),
    ],
)
def test_bad_input(call, error, words):
    model = tiny_model("vit mean")
    (x,) = tiny_inputs(model)
    with pytest.raises(error, match=words):
        call(model, x, torch.rand(2, 21, 18))
