"""Explanations of point clouds: values of points, turntables, an interactive page, and a report."""

import json

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

import vitrail
from vitrail.cli.main import main
from vitrail.errors import ConfigError
from vitrail.evaluate.parts import PointLabels
from vitrail.explain import explain
from vitrail.figures.clouds import (
    cloud_picture,
    interactive_clouds,
    part_colors,
    parts_figure,
    point_ranks,
    turntable_figure,
)
from vitrail.models import list_families

METHODS = ("rollout", "gradient_rollout", "gradcam", "gradcam++", "layercam", "eigencam")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return vitrail.create_model("vnt", **list_families()["vnt"].test_config).eval()


@pytest.mark.parametrize("method", METHODS)
def test_values_of_points_turn_and_pad_with_the_cloud(model, method):
    points = torch.randn(2, 24, 3)
    values = explain(model, points, method).map
    assert values.shape == (2, 24)
    assert torch.allclose(explain(model, points[..., [1, 2, 0]], method).map, values, atol=1e-4 * values.abs().max())
    padded = torch.cat([points, torch.full((2, 3, 3), float("nan"))], dim=1)
    found = explain(model, padded, method).map
    assert found.isfinite().all()
    if method == "rollout":
        assert torch.allclose(found[:, :24], values, atol=1e-5)
        assert found[:, 24:].eq(0).all()


def test_occlusion_is_what_removing_costs(model):
    points = torch.randn(1, 9, 3)
    target = torch.tensor([2])
    found = explain(model, points, "neighborhood_occlusion", target, num_points=3, batch_size=4).map[0]
    distances = torch.cdist(points[0], points[0])
    total, held = torch.zeros(9), torch.zeros(9)
    with torch.no_grad():
        whole = model(points)[0, 2]
        for index in range(9):
            near = distances[index].argsort()[:3]
            left = [i for i in range(9) if i not in near.tolist()]
            total[near] += whole - model(points[:, left])[0, 2]
            held[near] += 1
    assert torch.allclose(found, total / held, atol=1e-5)
    padded = torch.cat([torch.full((1, 2, 3), float("nan")), points], dim=1)
    again = explain(model, padded, "neighborhood_occlusion", target, num_points=3).map[0]
    assert torch.allclose(again[2:], found, atol=1e-5)
    assert again[:2].eq(0).all()


def mixed(model, points):
    """Features of a cloud, and the attention of each block, averaged over heads."""
    matrices = []
    for block in model.blocks:
        block.attn.tap.consumer = lambda weights, layout: matrices.append(weights.mean(1)[0])
    with torch.no_grad():
        features = model.forward_features(points)
    for block in model.blocks:
        block.attn.tap.consumer = None
    return features, matrices


def pooling_of(features):
    """Weight of each of 20 points in the pooling: half of it is a mean, half the share of maxima that the point has."""
    return 0.5 / 20 + 0.5 * torch.bincount(features[0].argmax(0), minlength=20) / features.shape[2]


def carried(row, matrices):
    """A row of the last points as one of the first."""
    for matrix in reversed(matrices):
        row = row @ (matrix + torch.eye(20)) / 2
    return row


def test_rollout_equals_the_product_of_the_matrices(model):
    points = torch.randn(1, 20, 3)
    features, matrices = mixed(model, points)
    row = carried(pooling_of(features), matrices)
    assert torch.allclose(explain(model, points, "rollout").map[0], row, atol=1e-5)


def test_a_point_that_is_partly_nan_is_refused(model):
    points = torch.randn(1, 20, 3)
    points[0, 3, 1] = float("nan")
    with pytest.raises(ConfigError, match="values that are not finite"):
        explain(model, points, "rollout")


def test_ranks():
    values, real = np.array([3.0, 1.0, 9.0, 2.0]), np.array([True, True, False, True])
    assert point_ranks(values, real).tolist() == [1.0, 0.0, 0.0, 0.5]


def test_pictures():
    points = np.array([[0.0, 0, -1], [0, 0, 1], [np.nan] * 3])
    picture = cloud_picture(points, np.array([0.0, 1.0, 0.5]), side=60)
    drawn = np.argwhere((picture < 1).any(axis=2))
    assert picture.shape == (60, 60, 3)
    assert drawn[:, 0].min() < 20
    assert drawn[:, 0].max() > 40
    # The upper point has the colormap's bright end.
    assert picture[drawn[:, 0].min(), drawn[0, 1]].sum() > picture[drawn[:, 0].max(), drawn[-1, 1]].sum()
    assert (cloud_picture(points[2:]) == 1).all()
    assert len(turntable_figure([points], None, ["a"], views=4).axes) == 4


@pytest.mark.slow
def test_written_and_reported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = {
        "data.source": "solids", "data.points.num_clouds": 60, "data.batch_size": 12, "trainer.max_epochs": 1,
        "model.name": "vnt", "model.num_points": 24, "model.num_neighbors": 4, "model.embed_dim": 8, "model.depth": 1,
        "model.num_heads": 2, "model.head_hidden_size": 8, "run.dir": "run",
    }  # fmt: skip
    assert main(["train", *(word for name, value in small.items() for word in (f"--{name}", str(value)))]) == 0
    assert main(["explain", "run", "--method", "rollout", "gradcam", "--number", "2", "--out", "found"]) == 0
    content = json.loads((tmp_path / "found" / "explanations.json").read_text())
    assert len(content["images"]) == 2
    for entry in content["images"]:
        assert (tmp_path / "found" / entry["panel"]).is_file()
        for method in ("rollout", "gradcam"):
            assert np.load(tmp_path / "found" / entry["methods"][method]["streams"]["points"]["map"]).shape == (24,)
    page = (tmp_path / "found" / "clouds.html").read_text(encoding="utf-8")
    assert "scatter3d" in page
    assert "https://cdn" not in page.split("<script")[0]
    assert main(["evaluate", "run"]) == 0
    assert main(["report", "run"]) == 0


OF_PARTS = ("part_rollout", "rollout", "gradient_rollout", "gradcam", "gradcam++", "layercam", "eigencam")


@pytest.fixture
def labeller():
    torch.manual_seed(0)
    model = vitrail.create_model("vnt", **list_families()["vnt"].test_config, per_point=True).eval()
    with torch.no_grad():  # a random head gives all points one part
        model.head.bias -= model(torch.randn(8, 24, 3)).mean(dim=(0, 1))
    return model


@pytest.mark.parametrize("method", OF_PARTS)
def test_values_for_a_part_turn_and_pad_with_the_cloud(labeller, method):
    points = torch.randn(2, 24, 3)
    found = explain(labeller, points, method)
    assert found.map.shape == (2, 24)
    if found.target is not None:
        with torch.no_grad():
            predicted = labeller(points).argmax(-1)
        assert found.target.tolist() == [int(own.bincount().argmax()) for own in predicted]
    again = explain(labeller, points[..., [1, 2, 0]], method).map
    assert torch.allclose(again, found.map, atol=1e-4 * float(found.map.abs().max()))
    padded = explain(labeller, torch.cat([points, torch.full((2, 3, 3), float("nan"))], dim=1), method).map
    assert padded.isfinite().all()
    if method.endswith("rollout"):
        assert torch.allclose(padded[:, :24], found.map, atol=1e-5)


def test_gradcam_follows_the_logits_of_the_points_of_a_part(labeller):
    points = torch.randn(1, 24, 3)
    part = int(labeller(points).argmax(-1).mode().values)
    held = {}
    module = labeller.level_module(len(labeller.feature_info) - 1)
    handle = module.register_forward_hook(lambda module, args, output: held.setdefault("x", output))
    logits = labeller(points)[0]
    handle.remove()
    own = logits.argmax(-1) == part
    assert 0 < own.sum() < 24
    (gradient,) = torch.autograd.grad(logits[own, part].sum(), held["x"])
    values, gradient = held["x"].detach()[0].flatten(1), gradient[0].flatten(1)
    expected = (values * gradient.mean(0)).sum(1).relu()
    assert expected.max() > 1e-4
    assert torch.allclose(explain(labeller, points, "gradcam", part).map[0], expected, atol=1e-5)


def test_rollout_of_a_part_starts_from_its_points(labeller):
    points = torch.randn(1, 20, 3)
    part = int(labeller(points).argmax(-1).mode().values)
    features, matrices = mixed(labeller, points)
    own = (labeller.forward_head(features)[0].argmax(-1) == part).float()
    row = carried((own / own.sum() + pooling_of(features)) / 2, matrices)
    assert torch.allclose(explain(labeller, points, "part_rollout", part).map[0], row, atol=1e-5)


def test_a_part_of_no_point_has_a_map_of_zeros(labeller):
    points, absent = torch.randn(1, 20, 3), 3
    with torch.no_grad():
        labeller.head.bias[absent] -= 100
    for method in ("part_rollout", "gradcam"):
        assert explain(labeller, points, method, absent).map.eq(0).all(), method


@pytest.mark.parametrize(("kind", "method"), [("labeller", "neighborhood_occlusion"), ("model", "part_rollout")])
def test_methods_of_one_kind_of_labels(kind, method, request):
    with pytest.raises(ConfigError, match=f"{method} cannot explain this model: .* part"):
        explain(request.getfixturevalue(kind), torch.randn(1, 20, 3), method)


def test_labels_of_points_in_words():
    labels = PointLabels(np.array([0, 1, 1, 1, -1]), np.array([0, 1, 2, -1, -1]), ("leg", "seat", "back"))
    assert labels.counts() == {"seat": 3, "leg": 1}
    assert labels.accuracy() == pytest.approx(2 / 3)
    assert labels.describe() == "seat 75%, leg 25%; 67% of labels correct"
    assert PointLabels(labels.predicted, np.full(5, -1), labels.names).describe() == "seat 75%, leg 25%"


@pytest.mark.fast_cases("20")
@pytest.mark.parametrize("number", [3, 10, 12, 20])
def test_parts_have_a_colour_and_an_entry_each(number):
    points = np.random.default_rng(0).normal(size=(7, 3))
    names, last = [f"part {i}" for i in range(number)], number - 1
    values = {"parts": np.array([0, 0, last, -1, last, last, -1]), "method": np.linspace(0, 1, 7)}
    figure = interactive_clouds(points, values, names)
    shown = ["part 0", f"part {last}", "no label"]
    assert [(trace.name, len(trace.x), trace.visible) for trace in figure.data] == [
        (shown[0], 2, True), (shown[1], 3, True), (shown[2], 2, True), ("method", 7, False)]  # fmt: skip
    colors = [trace.marker.color for trace in figure.data[:3]]
    assert to_hex(part_colors(np.array([-1]), names)[0]) == colors[2]
    assert colors[2] not in [to_hex(color) for color in part_colors(np.arange(number), names)]
    assert len(set(colors)) == 3
    assert figure.layout.updatemenus[0].buttons[1].args[0] == {"visible": [False, False, False, True]}
    # Where there is no point, there is no label to draw.
    padded = np.concatenate([points, np.full((1, 3), np.nan)])
    parts = np.append(values["parts"], -1)
    drawn = [
        turntable_figure([padded] * 2, [parts, np.append(values["method"], 0)], ["p", "m"], views=2, names=names),
        parts_figure([points], ([values["parts"]], [values["parts"].clip(0)]), names, ["p"]),
    ]
    for own in drawn:
        assert [text.get_text() for text in own.legends[0].get_texts()] == shown
        assert [to_hex(mark.get_color()) for mark in own.legends[0].legend_handles] == colors
    labelled = parts >= 0
    (whole,) = turntable_figure([padded[labelled]], [parts[labelled]], ["p"], names=names).legends
    assert [text.get_text() for text in whole.get_texts()] == shown[:2]


def test_points_without_a_label_are_gray():
    points = np.random.default_rng(0).normal(size=(9, 3))
    picture = cloud_picture(points, part_colors(np.full(9, -1), list("abc")), side=60)
    assert np.ptp(picture, axis=2).max() < 1e-9
    assert (picture < 1).any()
    colored = cloud_picture(points, part_colors(np.full(9, 2), list("abc")), side=60)
    assert np.ptp(colored, axis=2).max() > 0.3
