"""Files that are not weights: truncated, damaged, foreign, malicious. One clear error, and the model as it was."""

import contextlib
import io
import json
import os
import pickle
import random
import tarfile
import warnings

import pytest
import torch
from safetensors.torch import save_file

import vitrail
from tests.golden_files import read_golden
from tests.weights.models import FAMILIES, build, snapshot, unchanged
from vitrail.cli.main import main
from vitrail.errors import WeightsError
from vitrail.models.recognise import recognise
from vitrail.weights import read_state_dict
from vitrail.weights.read import read_checkpoint


class _Opens:
    """Unpickling it writes a file: what a malicious checkpoint could do."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def _write(kind, path):
    state = build("vit", 1).state_dict()
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "zip":
        torch.save(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=False)


@pytest.fixture
def model():
    return build("vit", 2)


def _refused(model, path, message):
    before = snapshot(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the error is all that is said
        with pytest.raises(WeightsError, match=message) as caught:
            vitrail.load_weights(model, path)
    assert unchanged(model, before)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.slow_cases("legacy")
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_truncated_anywhere(model, tmp_path, kind):
    path = tmp_path / f"weights.{'safetensors' if kind == 'safetensors' else 'pth'}"
    _write(kind, path)
    content = path.read_bytes()
    rng = random.Random(kind)
    for end in [0, 1, 7, 8, 9, len(content) // 2, len(content) - 1, *(rng.randrange(len(content)) for _ in range(25))]:
        path.write_bytes(content[:end])
        _refused(model, path, "truncated")


@pytest.mark.fast_cases("zip")
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_damaged_bytes_end_in_an_error_or_in_numbers(tmp_path, kind):
    path = tmp_path / f"weights.{'safetensors' if kind == 'safetensors' else 'pth'}"
    _write(kind, path)
    content = path.read_bytes()
    rng = random.Random(kind)
    refused = 0
    for _ in range(60):
        damaged = bytearray(content)
        # The beginning and the end hold the structure, the middle the numbers.
        for _ in range(rng.choice([1, 4, 30])):
            damaged[rng.choice([rng.randrange(400), len(content) - 1 - rng.randrange(400)])] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            read_state_dict(path)
        except WeightsError:
            refused += 1
    assert refused > 5


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin", ".npz", ""])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.fast_cases("0-.safetensors", "0-.pth", "1-")
def test_foreign_files(model, tmp_path, suffix, seed):
    path = tmp_path / f"foreign{suffix}"
    rng = random.Random(seed)
    contents = [
        b"<html>404 Not Found</html>" * 20,
        rng.randbytes(rng.randint(1, 5000)),
        b"version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 5\n",
        bytes(5000),
        rng.randrange(2**40).to_bytes(8, "little") + b"{" + rng.randbytes(200),
        b"\x80\x04" + rng.randbytes(100),
    ]
    for content in contents:
        path.write_bytes(content)
        _refused(model, path, "truncated|foreign")


def test_an_archive(model, tmp_path):
    path = tmp_path / "weights.tar"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("weights")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"abcd"))
    _refused(model, path, "truncated|foreign")


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors", ".ckpt", ""])
@pytest.mark.parametrize("how", ["pickle", "torch", "legacy", "beside the weights"])
def test_pickles_that_would_run_code_are_refused(model, tmp_path, how, suffix):
    marker, path = tmp_path / "marker", tmp_path / f"weights{suffix}"
    state = model.state_dict()
    content = {"state_dict": state, "args": _Opens(marker)} if how == "beside the weights" else _Opens(marker)
    if how == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how != "legacy")
    message = _refused(model, path, "run code" if suffix != ".safetensors" else "truncated or foreign")
    assert not marker.exists()
    assert "\n" not in message
    # The file does what it threatens, if it is let.
    if how == "pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(io.BytesIO(path.read_bytes()), weights_only=False)
    assert marker.exists()


@pytest.mark.slow_cases("content2-holds no tensors by name but a Tensor")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds no tensors by name but nothing"),
        ([torch.zeros(2)], "holds no tensors by name but a list"),
        (torch.zeros(2), "holds no tensors by name but a Tensor"),
        ("weights", "holds no tensors by name but a str"),
        ({"state_dict": {}}, "holds no tensors by name but nothing"),
        ({"epoch": 3, "lr": 0.1}, "values that are not tensors: epoch, lr"),
        ({"state_dict": {"a": torch.zeros(1), "b": 3}}, "is not a checkpoint of ViT"),
        ({"weight": torch.zeros(2)}, "first keys are weight"),
    ],
)
def test_files_without_weights(model, tmp_path, content, message):
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    _refused(model, path, message)


def test_places_without_files(model, tmp_path):
    _refused(model, tmp_path / "none.pth", "no file of weights at")
    _refused(model, tmp_path, "holds no model.safetensors")
    (tmp_path / "model.safetensors").mkdir()
    _refused(model, tmp_path, "holds no model.safetensors")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_file_that_may_not_be_read(model, tmp_path):
    path = tmp_path / "weights.pth"
    _write("zip", path)
    path.chmod(0)
    _refused(model, path, "Permission")


def test_of_another_family(model, tmp_path):
    path = tmp_path / "swin.safetensors"
    save_file({k: v.contiguous() for k, v in read_golden("swin_timm").state.items()}, path)
    message = _refused(model, path, "not a checkpoint of ViT")
    assert "vitrail weights" in message
    with pytest.raises(WeightsError, match="missing"):
        vitrail.load_weights(model, path, source="timm")


def test_damaged_metadata_is_no_settings(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(build("vit", 1).state_dict(), path, metadata={"model": "vit", "settings": "{half"})
    assert read_checkpoint(path).settings is None
    save_file(build("vit", 1).state_dict(), path, metadata={"settings": "[1]"})
    assert read_checkpoint(path).settings is None
    assert vitrail.load_weights(build("vit", 2), path).loaded


@pytest.mark.fast_cases("vit")
@pytest.mark.parametrize("family", FAMILIES)
def test_tensors_without_dimensions(family, tmp_path):
    """Whichever tensor has lost its shape: an error, no traceback, and nothing is loaded."""
    rng = random.Random(family)
    whole = {key: value.contiguous() for key, value in build(family, 1).state_dict().items()}
    for key in rng.sample(sorted(whole), min(4, len(whole))):
        state = {**whole, key: torch.tensor(1.0)}
        path = tmp_path / "x.safetensors"
        save_file(state, path)
        if whole[key].ndim:
            with pytest.raises(WeightsError):
                vitrail.load_weights(build(family, 2), path)
        with contextlib.suppress(WeightsError):
            facts = recognise(read_checkpoint(path), str(path))
            assert facts.problem or not whole[key].ndim


@pytest.mark.parametrize("value", [32.5, "abc", [32], [32, 0], {"a": 1}, True, [1, 2, 3]])
@pytest.mark.parametrize("name", ["img_size", "patch_size"])
@pytest.mark.fast_cases("img_size-value3", "patch_size-value6")
def test_metadata_with_sizes_that_are_none(tmp_path, name, value, capsys):
    model = build("vit", 1)
    path = tmp_path / "x.safetensors"
    save_file(model.state_dict(), path, {"model": "vit", "settings": json.dumps({name: value})})
    before = snapshot(model)
    with pytest.raises(WeightsError, match=f"metadata say {name}"):
        vitrail.load_weights(model, path)
    assert unchanged(model, before)
    assert main(["weights", str(path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "model.safetensors"])
def test_a_git_lfs_pointer_is_no_damaged_file(tmp_path, name, capsys):
    path = tmp_path / name
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(WeightsError, match=r"is a Git LFS pointer .*run `git lfs pull`"):
        vitrail.load_weights(build("vit", 1), path)
    assert main(["weights", str(path)]) == 1
    assert "git lfs pull" in capsys.readouterr().err
