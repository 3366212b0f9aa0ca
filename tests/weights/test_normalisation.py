"""The mean and standard deviation that a checkpoint gives: found wherever it is written, reported or used."""

import argparse
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import vitrail
from tests.weights.models import build
from vitrail.cli.main import main
from vitrail.errors import WeightsError
from vitrail.train.start_weights import choose_normalization

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


def _weights():
    return {key: value.contiguous() for key, value in build("vit", 1).state_dict().items()}


def _folder(name, content):
    def write(folder):
        save_file(_weights(), folder / "model.safetensors")
        (folder / name).write_text(json.dumps(content))
        return folder

    return write


def _file(content):
    def write(folder):
        torch.save({"state_dict": _weights(), **content}, folder / "x.pth")
        return folder / "x.pth"

    return write


def _metadata(metadata):
    def write(folder):
        save_file(_weights(), folder / "x.safetensors", metadata)
        return folder / "x.safetensors"

    return write


TIMM = {"mean": list(MEAN), "std": list(STD)}
GIVEN = {
    "Hugging Face's processor": _folder("preprocessor_config.json", {"image_mean": MEAN, "image_std": STD}),
    "timm's config": _folder("config.json", {"architecture": "vit", "pretrained_cfg": TIMM}),
    "timm's older config": _folder("config.json", TIMM),
    "vitrail's card": _folder("model.json", {"name": "vit", "settings": {}, "streams": {"image": TIMM}}),
    "metadata": _metadata({"pretrained_cfg": json.dumps(TIMM)}),
    "metadata of two": _metadata({"mean": json.dumps(MEAN), "std": json.dumps(STD)}),
    "a mapping beside": _file({"pretrained_cfg": TIMM}),
    "beside": _file(TIMM),
    "arguments": _file({"args": argparse.Namespace(mean=MEAN, std=list(STD))}),
}
NONE = {
    "nothing": _file({}),
    "no list": _file({"args": argparse.Namespace(mean=None, std=0.2)}),
    "in units of 0..255": _file({"mean": [123.7, 116.3, 103.5], "std": [58.4, 57.1, 57.4]}),
    "of other lengths": _file({"mean": [0.1], "std": [0.1, 0.2]}),
    "without deviations": _file({"mean": [0.1, 0.2, 0.3]}),
    "switched off": _folder("preprocessor_config.json", {"image_mean": MEAN, "image_std": STD, "do_normalize": False}),
    "damaged metadata": _metadata({"pretrained_cfg": "{half"}),
    "other metadata": _metadata({"pretrained_cfg": "[]", "mean": "3"}),
}  # fmt: skip


@pytest.mark.slow_cases("Hugging Face's processor", "arguments", "metadata", "timm's config")
@pytest.mark.parametrize("kind", GIVEN)
def test_where_it_is_given(kind, tmp_path, capsys):
    where = GIVEN[kind](tmp_path)
    report = vitrail.load_weights(build("vit", 2), where)
    assert report.normalization == {"image": (MEAN, STD)}
    assert "normalised by mean 0.100, 0.200, 0.300 and std 0.400, 0.500, 0.600" in str(report)
    main(["weights", str(where)])
    assert "mean 0.100, 0.200, 0.300 and std 0.400, 0.500, 0.600" in capsys.readouterr().out


@pytest.mark.parametrize("kind", NONE)
@pytest.mark.fast_cases("no list", "in units of 0..255", "switched off", "damaged metadata")
def test_where_it_is_not(kind, tmp_path):
    report = vitrail.load_weights(build("vit", 2), NONE[kind](tmp_path))
    assert report.normalization == {}
    assert "normalised" not in str(report)


def test_a_damaged_file_beside_is_an_error(tmp_path):
    where = GIVEN["timm's config"](tmp_path)
    (tmp_path / "config.json").write_text("{half")
    with pytest.raises(WeightsError, match=r"config\.json is damaged"):
        vitrail.load_weights(build("vit", 2), where)


TRAIN = (
    "--data.source", "synthetic_leaves", "--data.leaves.num_images", "24", "--data.spectral.use", "[]",
    "--model.name", "vit",
    "--model.embed_dim", "24", "--model.depth", "2", "--model.num_heads", "2", "--data.img_size", "32",
    "--model.patch_size", "8", "--trainer.accelerator", "cpu",
    "--data.batch_size", "8",
)  # fmt: skip


def _train(capsys, *words, epochs=1):
    code = main(["train", *TRAIN, "--trainer.max_epochs", str(epochs), *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_run_states_the_difference(tmp_path, capsys):
    where = GIVEN["a mapping beside"](tmp_path)
    code, out, err = _train(capsys, "--model.weights", where, "--run.dir", tmp_path / "a")
    assert code == 0, err
    (line,) = [line for line in out.splitlines() if line.startswith("image stream: the weights expect")]
    assert "mean 0.100, 0.200, 0.300 and std 0.400, 0.500, 0.600, the run normalises by its data's mean" in line
    assert line.endswith("model.normalization weights uses the weights'")
    card = json.loads((tmp_path / "a" / "model.json").read_text())
    assert not np.allclose(card["streams"]["image"]["mean"], MEAN)


def test_a_run_uses_the_weights_normalisation_and_keeps_it_at_a_resume(tmp_path, capsys):
    where = GIVEN["beside"](tmp_path)
    words = ("--model.weights", where, "--run.dir", tmp_path / "b", "--model.normalization", "weights")
    code, out, err = _train(capsys, *words)
    assert code == 0, err
    assert "image stream normalised as for the weights: mean 0.100" in out
    card = json.loads((tmp_path / "b" / "model.json").read_text())
    assert (tuple(card["streams"]["image"]["mean"]), tuple(card["streams"]["image"]["std"])) == (MEAN, STD)
    code, _, err = _train(capsys, *words, "--resume", epochs=2)
    assert code == 0, err
    card = json.loads((tmp_path / "b" / "model.json").read_text())
    assert tuple(card["streams"]["image"]["mean"]) == MEAN


def test_what_cannot_be_used_is_refused(tmp_path, capsys):
    where = NONE["nothing"](tmp_path)
    words = ("--run.dir", tmp_path / "a", "--model.normalization", "weights")
    code, _, err = _train(capsys, "--model.weights", where, *words)
    assert code == 2
    assert "gives no mean and standard deviation; use 'data'" in err
    code, _, err = _train(capsys, *words)
    assert code == 2
    assert "model.normalization must be data without model.weights" in err


@pytest.mark.parametrize("bands", [1, 5])
def test_other_bands(bands, capsys):
    from vitrail.config import ModelConfig
    from vitrail.errors import ConfigError
    from vitrail.weights import LoadReport

    report = LoadReport("timm", normalization={"image": (MEAN, STD)})
    data = {"image": ([0.5] * bands, [0.2] * bands), "spectral": ([0.1], [0.1])}
    chosen = choose_normalization(data, report, ModelConfig(weights="x", bands_rule="mean"))
    assert chosen["image"] == ((0.5,) * bands, (0.2,) * bands)
    out = capsys.readouterr().out
    assert "the weights expect mean 0.100" in out
    assert "model.normalization" not in out
    with pytest.raises(ConfigError, match=f"with 3 bands in the image stream, and the data has {bands}"):
        choose_normalization(data, report, ModelConfig(weights="x", bands_rule="mean", normalization="weights"))
    near = {"image": ([m + 0.009 for m in MEAN], list(STD))}
    choose_normalization(near, report, ModelConfig(weights="x"))
    assert capsys.readouterr().out == ""
