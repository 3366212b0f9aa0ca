"""A family of another distribution, the example of docs/extend.md, goes through every verb of the command line."""

import importlib
import json
import sys

import pytest
import torch
from PIL import Image

import vitrail
from tests.docs.pages import snippets
from vitrail.cli.main import main
from vitrail.errors import ConfigError, VitrailError
from vitrail.explain import capture_attention, explain, list_methods
from vitrail.models import Family, VisionModel, list_families
from vitrail.models.family import REGISTERED

TINY = {"img_size": 16, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "reductions": [2, 1]}
SETTINGS = [word for name, value in TINY.items() for word in (f"--model.{name}", str(value))]
DATA = ["--data.source", "synthetic_leaves", "--data.leaves.num_images", "40", "--data.spectral.use", "[]"]
QUICK = ["--trainer.max_epochs", "1", "--trainer.precision", "32-true", "--trainer.accelerator", "cpu"]
QUICK += ["--run.tensorboard", "false", "--data.batch_size", "8"]
# Methods that need what this family does not have.
REFUSED = {
    "tokens": "learns no tokens",
    "neighborhood_occlusion": "explains point clouds",
    "part_rollout": "this model labels whole inputs",
}


def install(folder, entry="vitrail_pvt:family"):
    """A distribution of one module and its entry point, as pip would install it."""
    (code,) = (snippet.text for snippet in snippets("docs/extend.md", "python") if "class PVT(Pyramid)" in snippet.text)
    (folder / "vitrail_pvt.py").write_text(code)
    facts = folder / "vitrail_pvt-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: vitrail-pvt\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(f"[vitrail.families]\npvt = {entry}\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("foreign")
    install(folder)
    families = list_families()  # those of this package register when they are first listed
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield folder
    REGISTERED.clear()
    REGISTERED.update(families)
    sys.modules.pop("vitrail_pvt", None)


@pytest.fixture(scope="module")
def run(folder):
    run = folder / "run"
    assert main(["train", *DATA, "--model.name", "pvt", *SETTINGS, *QUICK, "--run.dir", str(run)]) == 0
    return run


def test_is_listed_from_a_cache(folder, capsys):
    assert main(["models", "pvt"]) == 0
    assert "pvt_tiny" in capsys.readouterr().out
    (file,) = (folder / "cache" / "vitrail").glob("catalogue-*.json")
    written = file.stat().st_mtime_ns
    assert main(["models", "pvt_tiny", "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    with torch.device("meta"):
        model = vitrail.create_model("pvt_tiny")
    assert record["parameters"] == sum(p.numel() for p in model.parameters())
    assert record["source"] == "Wang et al. 2021, arXiv:2102.12122"
    assert main(["models", "swin"]) == 0
    assert file.stat().st_mtime_ns == written
    # Another version of the source is described anew.
    source = folder / "vitrail_pvt.py"
    source.write_text(source.read_text() + "\n")
    assert main(["models", "pvt"]) == 0
    assert len(list((folder / "cache" / "vitrail").glob("catalogue-*.json"))) == 2
    capsys.readouterr()


@pytest.mark.slow
def test_evaluate_and_inspect(run, capsys):
    assert main(["evaluate", str(run), "--device", "cpu"]) == 0
    assert main(["inspect", str(run), "--no-time"]) == 0
    assert "stages.1.blocks.0.attn" in capsys.readouterr().out


@pytest.mark.fast_cases("tokens")
@pytest.mark.parametrize("method", list_methods())
def test_explain(run, tmp_path, capsys, method):
    arguments = ["explain", str(run), "--method", method, "--out", str(tmp_path / "out"), "--number", "1"]
    code = main([*arguments, "--device", "cpu"])
    if method in REFUSED:
        assert code == 2
        assert REFUSED[method] in capsys.readouterr().err
    else:
        assert code == 0
        assert list((tmp_path / "out" / "maps").iterdir())


@pytest.mark.fast_cases("mae")
@pytest.mark.parametrize("task", ["simmim", "simclr", "mae"])
def test_pretrain(folder, tmp_path, capsys, task):
    arguments = ["pretrain", "--task.name", task, *DATA, "--model.name", "pvt", *SETTINGS, *QUICK]
    code = main([*arguments, "--run.dir", str(tmp_path / "run")])
    if task == "mae":
        assert code == 2
        assert "PVT runs on whole grids of tokens; or use task.name simmim" in capsys.readouterr().err
    else:
        assert code == 0


@pytest.mark.slow
def test_features(run, tmp_path, capsys):
    assert main(["features", str(run), "--out", str(tmp_path / "features"), "--device", "cpu"]) == 0


@pytest.mark.slow
def test_bench(run, capsys):
    assert main(["bench", str(run), "--rounds", "1", "--no-memory", "--device", "cpu"]) == 0


@pytest.mark.slow
def test_report(run, tmp_path):
    assert main(["evaluate", str(run), "--device", "cpu"]) == 0
    assert main(["report", str(run), "--out", str(tmp_path / "page.html")]) == 0
    assert "Attention rollout of" in (tmp_path / "page.html").read_text()


def test_predict_and_weights(run, tmp_path, capsys):
    image = tmp_path / "leaf.png"
    Image.effect_noise((20, 20), 50).convert("RGB").save(image)
    assert main(["predict", str(run), str(image), "--device", "cpu"]) == 0
    capsys.readouterr()
    assert main(["weights", str(run / "model.safetensors")]) == 0
    assert "pvt" in capsys.readouterr().out


def test_saved_loaded_and_as_an_encoder(folder, tmp_path):
    model = vitrail.create_model("pvt", **{**TINY, "num_classes": 3}).eval()
    vitrail.save_pretrained(model, tmp_path / "model")
    images = torch.rand(2, 3, 24, 18)
    again = vitrail.from_pretrained(tmp_path / "model")
    assert torch.equal(again(images), model(images))
    other = vitrail.create_model("pvt", **{**TINY, "num_classes": 3}).eval()
    assert vitrail.load_weights(other, tmp_path / "model" / "model.safetensors").missing == []
    encoder = vitrail.create_model("pvt", features_only=True, **TINY).eval()
    assert [tuple(x.shape) for x in encoder(images)] == [(2, 16, 12, 9), (2, 32, 6, 5)]
    assert encoder.feature_info.reduction() == [2, 4]
    assert torch.allclose(model.train()(images), model.eval()(images), atol=1e-6)


def test_reported_weights_are_those_that_mix(folder):
    model = vitrail.create_model("pvt", **TINY).eval().double()
    images = torch.rand(1, 3, 22, 18, dtype=torch.float64)
    with torch.no_grad(), capture_attention(model) as record:
        armed = model(images)
    with torch.no_grad():
        assert torch.allclose(armed, model(images), atol=1e-10)
    assert {step.name for step in record} == {"stages.0.blocks.0.attn", "stages.1.downsample", "stages.1.blocks.0.attn"}


def test_without_reported_weights_methods_are_refused_with_the_reason(folder):
    class Convolution(torch.nn.Conv2d):
        def forward(self, x):
            return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    model = vitrail.create_model("pvt", **TINY).eval()
    for stage in model.stages:
        for block in stage.blocks:
            dim = block.norm1.normalized_shape[0]
            block.attn = Convolution(dim, dim, 7, padding=3, groups=dim)
    images = torch.rand(1, 3, 16, 16)
    assert not {"rollout", "attribution", "attention", "gradient_rollout", "tokens"} & set(list_methods(model))
    with pytest.raises(
        ConfigError, match=r"no block of this PVT reports how it mixes tokens.*methods that can: .*gradcam"
    ):
        explain(model, images, "rollout")
    assert explain(model, images, "gradcam").map.shape == (1, 16, 16)


def _copy_registered(monkeypatch):
    copy = dict(REGISTERED)
    for module in ("family", "registry"):
        monkeypatch.setattr(f"vitrail.models.{module}.REGISTERED", copy)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("vitrail_pvt:missing", r"pvt = vitrail_pvt:missing of vitrail-pvt 1.0 .*repair or uninstall"),
        ("no_such_module:family", "No module named 'no_such_module'"),
        ("vitrail_pvt:PVTConfig", "is a type; name a vitrail.models.Family"),
    ],
)
def test_entry_points_that_lead_nowhere(tmp_path, monkeypatch, entry, message):
    install(tmp_path, entry)
    monkeypatch.syspath_prepend(tmp_path)
    _copy_registered(monkeypatch)
    monkeypatch.delitem(sys.modules, "vitrail_pvt", raising=False)
    with pytest.raises(VitrailError, match=message):
        list_families()
    importlib.invalidate_caches()


def test_families_that_break_the_contract_are_refused(folder, monkeypatch):
    _copy_registered(monkeypatch)
    family = list_families()["pvt"]
    with pytest.raises(ConfigError, match="'pvt_tiny' is registered already"):
        vitrail.register_family(Family("other", family.config, family.build, family.variants, {}))
    with pytest.raises(ConfigError, match="must be a subclass of VisionModel"):
        vitrail.register_family(Family("other", family.config, torch.nn.Linear, {}, {}))
    config = type("Config", (), {"__dataclass_fields__": {}})
    with pytest.raises(ConfigError, match="has no img_size and no in_chans"):
        vitrail.register_family(Family("other", config, VisionModel, {}, {}))
    again = Family("pvt", family.config, family.build, {}, {})  # as by a cell that runs again
    assert vitrail.register_family(again) is again
