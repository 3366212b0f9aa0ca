"""Counterparts of our models in timm and torchvision: the same function, or refused."""

import csv

import pytest
import torch

from tests.peers import define_missing_operators, import_peer
from vitrail.bench import peers, side_by_side
from vitrail.bench.peers import build_counterpart, pair_up
from vitrail.bench.side_by_side import Plan, Subject, measure
from vitrail.bench.speed import Workload
from vitrail.cli.main import main
from vitrail.errors import VitrailError
from vitrail.models.profile import count_parameters
from vitrail.models.registry import create_model

pytestmark = pytest.mark.peers

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 7}
SWIN = {"img_size": 56, "embed_dim": 12, "depths": (2, 2), "num_heads": (1, 2), "window_size": 7, "num_classes": 7}
MAXVIT = {
    "img_size": 56, "stem_width": 8, "embed_dim": (16, 32), "depths": (1, 2), "dim_head": 8, "window_size": 7,
    "num_classes": 7,
}  # fmt: skip


@pytest.mark.parametrize(
    ("library", "name", "settings"),
    [
        ("timm", "vit", VIT),
        ("timm", "vit", VIT | {"class_token": False, "global_pool": "avg", "in_chans": 5, "mlp_ratio": 3.0}),
        ("timm", "vit", VIT | {"qkv_bias": False, "img_size": (32, 48)}),
        ("timm", "swin", SWIN | {"in_chans": 4}),
        ("timm", "swin", SWIN | {"img_size": 28, "mlp_ratio": 2.0, "patch_size": 2}),
        ("timm", "maxvit", MAXVIT | {"in_chans": 1}),
        ("timm", "maxvit", MAXVIT | {"head_hidden_size": 0, "mlp_ratio": 2.0}),
        ("torchvision", "vit", VIT),
        ("torchvision", "swin", SWIN),
        ("torchvision", "maxvit", MAXVIT),
    ],
)
def test_pairs_compute_the_same(library, name, settings):
    import_peer(library)
    pair = pair_up(library, name, settings)
    assert pair.difference < 1e-5
    assert count_parameters(pair.ours) == count_parameters(pair.theirs)
    assert not pair.ours.training
    assert not pair.theirs.training
    # Biases and norms are not zeros and ones, so that the agreement means something.
    assert all(p.std() > 0.01 for p in pair.ours.parameters() if p.numel() > 8)


@pytest.mark.parametrize("name", ["vit_small_patch16_224", "swin_tiny_patch4_window7_224", "maxvit_tiny_tf_224"])
def test_variants_are_timms_own_model(name):
    timm = import_peer("timm")
    with torch.device("meta"):
        theirs, own = build_counterpart("timm", name, {}), timm.create_model(name)
    assert {k: v.shape for k, v in theirs.state_dict().items()} == {k: v.shape for k, v in own.state_dict().items()}
    assert type(theirs) is type(own)


def test_stochastic_depth_is_ours():
    """timm's and torchvision's Swin drop paths unless told not to."""
    for library in ("timm", "torchvision"):
        import_peer(library)
        model = build_counterpart(library, "swin", SWIN).train()
        torch.manual_seed(0)
        x = torch.rand(2, 3, 56, 56)
        assert torch.equal(model(x), model(x)), library


def test_a_counterpart_that_computes_something_else_is_refused(monkeypatch):
    import_peer("timm")
    # 18 tokens in windows of 7: timm's padding takes part in the attention, ours does not.
    with pytest.raises(VitrailError, match=r"does not compute the same|cannot take part"):
        pair_up("timm", "swin", SWIN | {"img_size": 72, "depths": (2,), "num_heads": (1,)})
    same = peers.load_weights
    monkeypatch.setattr(peers, "load_weights", lambda model, state, source: None)
    with pytest.raises(VitrailError, match="timm's vit does not compute the same: with equal weights its output"):
        pair_up("timm", "vit", VIT)
    monkeypatch.setattr(peers, "load_weights", same)
    # timm leaves out what does not fill a patch, ours is padded.
    with pytest.raises(VitrailError, match="does not compute the same"):
        pair_up("timm", "vit", VIT | {"img_size": 36})


@pytest.mark.parametrize("memory", [False, pytest.param(True, marks=pytest.mark.slow)])  # by a process for each
def test_a_pair_is_measured(memory, monkeypatch):
    import_peer("timm")
    monkeypatch.setattr(side_by_side, "matrix_peak", lambda device, precision: 1e9)
    workloads = [Workload("forward"), Workload("train", "bf16")]
    plan = Plan(workloads, 2, rounds=2, least=0.0, memory=memory, prepare=define_missing_operators)
    rows = list(measure([Subject("swin", SWIN)], ["timm"], plan))
    assert [(row.library, row.mode) for row in rows] == [
        ("vitrail", "forward"), ("timm", "forward"), ("vitrail", "train"), ("timm", "train"),
    ]  # fmt: skip
    ours = rows[0]
    assert ours.ratio_low <= ours.ratio <= ours.ratio_high
    assert ours.difference < 1e-5
    assert all(row.memory_peak_mb is None or row.memory_peak_mb > 50 for row in rows)
    assert rows[0].gflops * rows[0].milliseconds == pytest.approx(rows[1].gflops * rows[1].milliseconds)


def test_the_verb(capsys, tmp_path):
    for library in ("timm", "torchvision"):
        import_peer(library)
    words = "bench vit --img-size 32 --batch 1 --rounds 1 --device cpu --no-memory --against timm torchvision".split()
    for key in ("patch_size", "embed_dim", "depth", "num_heads"):
        words += ["--set", f"{key}={VIT[key]}"]
    assert main([*words, "--csv", str(tmp_path / "rows.csv")]) == 0
    rows = list(csv.DictReader((tmp_path / "rows.csv").open()))
    assert [(r["library"], r["against"]) for r in rows] == [
        ("vitrail", "timm"), ("timm", "vitrail"), ("vitrail", "torchvision"), ("torchvision", "vitrail"),
    ]  # fmt: skip
    assert "ours/theirs" in capsys.readouterr().out


def test_a_maxvit_of_torchvisions_flavour_is_ours():
    import_peer("torchvision")
    pair = pair_up("torchvision", "maxvit", MAXVIT)
    assert pair.ours.config == create_model("maxvit", **MAXVIT, flavour="torchvision").config
