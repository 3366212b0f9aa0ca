"""The identity of weights: the values decide, the bytes around them do not."""

import json

import pytest
import torch
from safetensors.torch import save_file

from vitrail.runs import RunFolder
from vitrail.weights.hashes import file_hash, tensors_hash

TENSORS = {"a.weight": torch.arange(12.0).reshape(3, 4), "b": torch.tensor(3), "c": torch.zeros(0, 2)}


def _save(path, tensors, metadata=None):
    save_file(tensors, path, metadata)
    return tensors_hash(path)


def test_order_and_metadata_do_not_count(tmp_path):
    code = _save(tmp_path / "a.safetensors", TENSORS, {"x": "1", "y": "2"})
    assert _save(tmp_path / "b.safetensors", dict(reversed(TENSORS.items())), {"y": "2", "z": "3"}) == code
    assert file_hash(tmp_path / "a.safetensors") != file_hash(tmp_path / "b.safetensors")
    # Written by hand with the tensors in another order.
    header = {"b": {"dtype": "I64", "shape": [], "data_offsets": [48, 56]},
              "c": {"dtype": "F32", "shape": [0, 2], "data_offsets": [48, 48]},
              "a.weight": {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]}}  # fmt: skip
    text = json.dumps(header).encode()
    values = TENSORS["a.weight"].numpy().tobytes() + TENSORS["b"].numpy().tobytes()
    (tmp_path / "c.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + values)
    assert tensors_hash(tmp_path / "c.safetensors") == code


@pytest.mark.parametrize(
    "changed",
    [
        {**TENSORS, "b": torch.tensor(4)},
        {**TENSORS, "b": torch.tensor([3])},
        {**TENSORS, "a.weight": torch.arange(12.0).reshape(4, 3)},
        {**TENSORS, "a.weight": torch.arange(12.0).reshape(3, 4).view(torch.int32)},
        {"a.weights": TENSORS["a.weight"], "b": TENSORS["b"], "c": TENSORS["c"]},
    ],
)
def test_values_shapes_types_and_names_count(tmp_path, changed):
    assert _save(tmp_path / "b.safetensors", changed) != _save(tmp_path / "a.safetensors", TENSORS)


@pytest.mark.parametrize("damage", [lambda b: b + b" ", lambda b: b[:-1], lambda b: b[:5], lambda b: b"x" * len(b)])
def test_a_damaged_file_counts_by_its_bytes(tmp_path, damage):
    path = tmp_path / "a.safetensors"
    code = _save(path, TENSORS)
    path.write_bytes(damage(path.read_bytes()))
    assert tensors_hash(path) == file_hash(path) != code


def test_results_of_earlier_versions_belong_to_the_same_weights(tmp_path):
    run = RunFolder(tmp_path)
    assert run.made_with("anything")  # there is nothing to compare with
    save_file(TENSORS, run.weights)
    assert run.made_with(run.weights_hash())
    assert run.made_with(file_hash(run.weights))
    assert not run.made_with(None)
    before = run.weights_hash()
    save_file({**TENSORS, "b": torch.tensor([4, 5])}, run.weights)
    assert not run.made_with(before)
