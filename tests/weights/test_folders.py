"""Folders of weights: Hugging Face's layouts, shards and their index, one file by any name."""

import json
import random

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

import vitrail
from tests.weights.models import FAMILIES, build, snapshot, unchanged
from vitrail.cli.main import main
from vitrail.errors import WeightsError, plural
from vitrail.weights import read_state_dict
from vitrail.weights.locations import find_weights
from vitrail.weights.read import read_checkpoint
from vitrail.weights.write import write_tensors


def _shards(state, folder, kind, count, seed=0):
    """Write a state dict as shards with an index, keys at random; gives the index."""
    rng = random.Random(seed)
    stem, suffix = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
    names = [f"{stem}-{i + 1:05d}-of-{count:05d}.{suffix}" for i in range(count)]
    places = {key: names[i] if i < count else rng.choice(names) for i, key in enumerate(state)}
    folder.mkdir(exist_ok=True)
    for name in names:
        part = {key: value.contiguous() for key, value in state.items() if places[key] == name}
        save_file(part, folder / name) if kind == "safetensors" else torch.save(part, folder / name)
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


@pytest.mark.fast_cases("vit-safetensors-1")
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("family", FAMILIES)
def test_shards(family, kind, count, tmp_path, capsys):
    model = build(family, 1)
    index = _shards(model.state_dict(), tmp_path / "shards", kind, count)
    for where in (tmp_path / "shards", index):
        other = build(family, 2)
        report = vitrail.load_weights(other, where)
        assert unchanged(other, snapshot(model))
        assert any(f"read from {plural(count, 'shard')} that" in note for note in report.notes)
    assert main(["weights", str(tmp_path / "shards")]) == 0
    assert f"read from {plural(count, 'shard')} that" in capsys.readouterr().out
    assert len(find_weights(index).files) == count + 1


def _refused(where, message):
    model = build("vit", 2)
    before = snapshot(model)
    with pytest.raises(WeightsError, match=message) as caught:
        vitrail.load_weights(model, where)
    assert unchanged(model, before)
    assert "\n" not in str(caught.value)


def test_a_missing_shard_or_key_is_named(tmp_path):
    state = build("vit", 1).state_dict()
    index = _shards(state, tmp_path / "a", "safetensors", 3)
    shard = tmp_path / "a" / "model-00002-of-00003.safetensors"
    _refused(shard, "one shard of several; give the folder")
    shard.unlink()
    _refused(tmp_path / "a", r"names 3 shards, but the folder lacks 1: model-00002-of-00003\.safetensors")
    index = _shards(state, tmp_path / "b", "bin", 2)
    content = json.loads(index.read_text())
    content["weight_map"]["more.weight"] = "pytorch_model-00001-of-00002.bin"
    index.write_text(json.dumps(content))
    _refused(index, "names more.weight in pytorch_model-00001-of-00002.bin, which lacks it")
    del content["weight_map"]["more.weight"], content["weight_map"]["norm.weight"]
    index.write_text(json.dumps(content))
    _refused(index, r"1 missing \(norm.weight\)")


@pytest.mark.slow_cases("/etc/passwd")
@pytest.mark.parametrize(
    "name",
    ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", ".", "a\\b", "c:x", 3, None, "x.index.json"],
)
def test_an_index_that_leaves_its_folder_is_refused(name, tmp_path):
    save_file(build("vit", 1).state_dict(), tmp_path / "secret.safetensors")
    index = _shards(build("vit", 1).state_dict(), tmp_path / "a", "safetensors", 2)
    content = json.loads(index.read_text())
    content["weight_map"]["norm.weight"] = name
    index.write_text(json.dumps(content))
    _refused(index, "places norm.weight in")


@pytest.mark.parametrize("content", ["", "{half", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "\x00"])
@pytest.mark.fast_cases("{half", "{}")
def test_a_damaged_index(content, tmp_path):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(content)
    _refused(path, "truncated or foreign|is foreign")
    _refused(tmp_path, "truncated or foreign|is foreign")


def test_of_several_files_the_taken_one_is_stated(tmp_path):
    first, second = build("vit", 1), build("vit", 3)
    torch.save(second.state_dict(), tmp_path / "pytorch_model.bin")
    model = build("vit", 2)
    report = vitrail.load_weights(model, tmp_path)
    assert unchanged(model, snapshot(second))
    assert report.notes == ["took pytorch_model.bin of the folder"]
    save_file(first.state_dict(), tmp_path / "model.safetensors")
    report = vitrail.load_weights(model, tmp_path)
    assert unchanged(model, snapshot(first))
    assert report.notes == ["took model.safetensors of the folder, not pytorch_model.bin"]
    (tmp_path / "one").mkdir()
    torch.save({"model": first.state_dict()}, tmp_path / "one" / "best.pth")
    assert vitrail.load_weights(model, tmp_path / "one").notes[0] == "took best.pth of the folder"
    torch.save({"model": first.state_dict()}, tmp_path / "one" / "last.pth")
    _refused(tmp_path / "one", r"holds 2 files of weights; give one of them: best\.pth, last\.pth")
    _shards(first.state_dict(), tmp_path / "shards", "bin", 2).unlink()
    _refused(tmp_path / "shards", r"holds shards \(pytorch_model-00001-of-00002\.bin, .*without their index")
    (tmp_path / "none").mkdir()
    _refused(tmp_path / "none", "holds no model.safetensors, nor another file of weights")


def test_shards_on_the_hub(tmp_path, monkeypatch):
    model, other = build("vit", 1), build("vit", 2)
    _shards(model.state_dict(), tmp_path / "repo", "safetensors", 3)
    asked = []

    def download(repo, file, *, revision=None):
        asked.append(file)
        path = tmp_path / "repo" / file
        if not path.is_file():
            raise huggingface_hub.errors.EntryNotFoundError("no such file")
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    vitrail.load_weights(other, "hf://o/n")
    assert unchanged(other, snapshot(model))
    assert {f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)} <= set(asked)
    (tmp_path / "repo" / "model-00003-of-00003.safetensors").unlink()
    _refused("hf://o/n", "on the hub lacks the shard model-00003-of-00003.safetensors")


def test_equal_weights_are_equal_files(tmp_path):
    state = build("vit", 1).state_dict()
    metadata = {f"key {i}": 'text "ä"\n\x01 \U0001f600' * i for i in range(9)}
    paths = [tmp_path / f"{i}.safetensors" for i in range(12)]
    for path in paths:
        write_tensors(path, state, metadata)
    assert len({path.read_bytes() for path in paths}) == 1
    assert read_checkpoint(paths[0]).metadata == metadata
    assert all(torch.equal(value, state[key]) for key, value in read_state_dict(paths[0]).items())
    write_tensors(paths[0], {"x": torch.zeros(2)})
    assert list(read_state_dict(paths[0])) == ["x"]
