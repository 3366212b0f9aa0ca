"""Weights from the hub by name; no test reaches the network."""

import os
import subprocess
import sys

import httpx2
import huggingface_hub
import pytest
from huggingface_hub import errors
from safetensors.torch import save_file

import vitrail
from tests.weights.models import build, snapshot, unchanged
from vitrail.errors import WeightsError
from vitrail.weights.hub import split_hub_name


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub of files on disk: ``hub["owner/name"] = {"file": path}``; or an exception to raise."""
    repositories, asked = {}, []

    def download(repo, file, *, revision=None):
        asked.append((repo, file, revision))
        content = repositories.get(repo)
        if isinstance(content, Exception):
            raise content
        if content is None:
            raise _http(errors.RepositoryNotFoundError, 404)
        if file not in content:
            raise _http(errors.RemoteEntryNotFoundError, 404)
        return str(content[file])

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    repositories["asked"] = asked
    return repositories


def _http(kind, status):
    request = httpx2.Request("GET", "https://hub.example/owner/name")
    return kind("no such thing\nRequest ID: 1", response=httpx2.Response(status, request=request))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(build("vit", 1).state_dict(), path)
    return path


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("hf://timm/vit_tiny_patch16_224.augreg_in21k", ("timm/vit_tiny_patch16_224.augreg_in21k", None, None)),
        ("hf://a/b/c/d.safetensors", ("a/b", None, "c/d.safetensors")),
        ("hf://a/b@v1.0", ("a/b", "v1.0", None)),
        ("hf://a/b@main/x.bin", ("a/b", "main", "x.bin")),
    ],
)
def test_names(name, parts):
    assert split_hub_name(name) == parts


@pytest.mark.parametrize("name", ["hf://", "hf://a", "hf:///b", "hf://a//b", "hf://a b/c", "hf://a/b@", "hf://a/b?x"])
@pytest.mark.fast_cases("hf:///b", "hf://a/b?x")
def test_malformed_names(hub, name):
    with pytest.raises(WeightsError, match="use hf://owner/name"):
        vitrail.load_weights(build("vit", 2), name)
    assert hub["asked"] == []


def test_the_safe_file_is_preferred(hub, file):
    hub["o/n"] = {"model.safetensors": file}
    model = build("vit", 2)
    report = vitrail.load_weights(model, "hf://o/n@v2")
    assert report.loaded
    assert unchanged(model, snapshot(build("vit", 1)))
    assert hub["asked"][0] == ("o/n", "model.safetensors", "v2")
    hub["o/n"] = {"pytorch_model.bin": file}
    assert vitrail.load_weights(build("vit", 2), "hf://o/n").loaded
    hub["o/n"] = {"deep/x.safetensors": file}
    hub["asked"].clear()
    assert vitrail.load_weights(build("vit", 2), "hf://o/n/deep/x.safetensors").loaded
    assert hub["asked"] == [("o/n", "deep/x.safetensors", None)]


def test_a_saved_model_from_the_hub(hub, tmp_path):
    model = build("hvt", 3)
    vitrail.save_pretrained(model, tmp_path / "saved")
    hub["o/n"] = {name: tmp_path / "saved" / name for name in ("model.safetensors", "model.json")}
    assert unchanged(vitrail.from_pretrained("hf://o/n"), snapshot(model))
    del hub["o/n"]["model.json"]
    assert unchanged(vitrail.from_pretrained("hf://o/n"), snapshot(model))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "the hub has no repository o/n that you may read; check the name"),
        ({}, "o/n on the hub has no model.safetensors or pytorch_model.bin; name one of its files as hf://o/n/FILE"),
        ((errors.GatedRepoError, 403), "gated: accept its terms"),
        ((errors.RevisionNotFoundError, 404), "no revision"),
        ((errors.HfHubHTTPError, 503), r"cannot reach the hub for o/n/model.safetensors \(no such thing"),
        (errors.OfflineModeIsEnabled("offline mode is enabled"), "offline mode is enabled.*give its path instead"),
        (httpx2.ConnectError("Name or service not known"), "Name or service not known.*download it where the network"),
        (TimeoutError("timed out"), "cannot reach the hub.*timed out"),
        (PermissionError(13, "Permission denied"), "cannot reach the hub.*Permission denied"),
        (errors.HFValidationError("Repo id must use alphanumeric chars"), "is not a valid Hugging Face repository id"),
    ],
)
def test_refusals_are_one_line(hub, answer, message):
    if answer is not None:
        hub["o/n"] = _http(*answer) if isinstance(answer, tuple) else answer
    model = build("vit", 2)
    before = snapshot(model)
    with pytest.raises(WeightsError, match=message) as caught:
        vitrail.load_weights(model, "hf://o/n")
    assert "\n" not in str(caught.value)
    assert unchanged(model, before)


def test_a_missing_file_of_a_repository(hub, file):
    hub["o/n"] = {"model.safetensors": file}
    with pytest.raises(WeightsError, match=r"o/n on the hub has no other\.bin; name one of its files"):
        vitrail.load_weights(build("vit", 2), "hf://o/n/other.bin")


# A process of its own; what the hub raises is tested above.
@pytest.mark.slow
def test_offline_for_real(tmp_path):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    words = [sys.executable, "-m", "vitrail", "weights", "hf://timm/vit_tiny_patch16_224.augreg_in21k"]
    result = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert "cannot reach the hub for timm/vit_tiny_patch16_224.augreg_in21k/model.safetensors" in lines[0]
    assert "offline mode is enabled" in lines[0]
    assert "give its path instead" in lines[0]
