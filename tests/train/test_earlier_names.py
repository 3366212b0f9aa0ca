"""Run folders whose records name data settings as earlier versions did: resumed, evaluated and reported in silence."""

import json

import pytest
import yaml

from tests.images import make_folder
from vitrail.cli.main import main
from vitrail.config.load import load_recipe
from vitrail.config.renamed import earlier
from vitrail.config.schema import flat_settings
from vitrail.models.registry import find_family

TINY = ["--model.name", "vit", "--model.img_size", "16", "--model.patch_size", "8", "--model.embed_dim", "8",
        "--model.depth", "1", "--model.num_heads", "2", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu",
        "--trainer.precision", "32-true", "--data.batch_size", "4", "--run.tensorboard", "false"]  # fmt: skip


def make_earlier(run):
    """Rewrite the records of a run by the names of earlier versions."""
    recipe = load_recipe(run / "recipe.yaml", settings_of=lambda name: find_family(name)[0].config, recorded=True)
    content = recipe.to_dict()
    content["data"] = {
        earlier(name).removeprefix("data."): value
        for name, value in flat_settings(recipe).items()
        if name.startswith("data.")
    }
    assert not any(isinstance(value, dict) and value for value in content["data"].values())
    (run / "recipe.yaml").write_text(yaml.safe_dump(content))
    environment = json.loads((run / "environment.json").read_text())
    environment["inputs"] = {earlier(name): value for name, value in environment["inputs"].items()}
    (run / "environment.json").write_text(json.dumps(environment))
    for file in run.glob("evaluation/**/metrics.json"):
        metrics = json.loads(file.read_text())
        metrics["data"] = {earlier(f"data.{k}").removeprefix("data."): v for k, v in metrics["data"].items()}
        file.write_text(json.dumps(metrics))
    return json.dumps([content, environment])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("earlier")
    images = make_folder(folder / "images", per_class=6)
    data = ["--data.source", "folder", "--data.path", str(images), "--data.images.resize", "squash"]
    assert main(["data", "stats", *data, *TINY, "--out", str(folder / "s.json")]) == 0
    data += ["--data.values.statistics", str(folder / "s.json"), "--data.classes.merge", "similar"]
    assert main(["train", *data, *TINY, "--run.dir", str(folder / "run")]) == 0
    assert main(["evaluate", str(folder / "run")]) == 0
    return folder / "run"


@pytest.mark.slow
def test_it_is_resumed(run, capsys):
    written = make_earlier(run)
    assert '"data.statistics"' in written
    assert '"merge_labels"' in written
    capsys.readouterr()
    assert main(["train", str(run / "recipe.yaml"), "--resume", "--trainer.max_epochs", "2"]) == 0
    assert "is now" not in capsys.readouterr().err
    assert yaml.safe_load((run / "recipe.yaml").read_text())["data"]["classes"]["merge"] == "similar"
    # Content is still compared under both names.
    make_earlier(run)
    statistics = run.parent / "s.json"
    before = statistics.read_text()
    statistics.write_text(before.replace("0", "1", 1))
    assert main(["train", str(run / "recipe.yaml"), "--resume", "--trainer.max_epochs", "3"]) == 1
    assert "what data.values.statistics names holds something else" in capsys.readouterr().err
    statistics.write_text(before)
    # A setting that differs is named by its new name.
    assert main(["train", str(run / "recipe.yaml"), "--resume", "--data.resize", "crop"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "warning: data.resize is now data.images.resize"
    assert "data.images.resize = 'crop': it began with 'squash'" in told[1]


@pytest.mark.slow
def test_it_is_evaluated_and_reported(run, capsys):
    make_earlier(run)
    capsys.readouterr()
    assert main(["evaluate", str(run), "--resamples", "100"]) == 0
    make_earlier(run)
    assert main(["report", str(run), "--without", "features", "explanations", "mistakes"]) == 0
    assert "is now" not in capsys.readouterr().err
    make_earlier(run)
    assert main(["evaluate", str(run), "--data.num_workers", "0"]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "is now" in line]
    assert told == ["warning: data.num_workers is now data.loader.num_workers"]
    assert main(["evaluate", str(run), "--data.val_fraction", "0.3"]) == 2
    assert "--data.splitting.val_fraction cannot be changed in vitrail evaluate" in capsys.readouterr().err
