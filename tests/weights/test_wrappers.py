"""Weights as training scripts write them: in wrappers, under prefixes, beside other tensors and objects."""

import argparse
import collections
import contextlib
import copy
import dataclasses
import datetime
import decimal
import enum
import functools
import itertools
import os
import pathlib
import pickle
import random
import re

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch.optim.swa_utils import AveragedModel

import vitrail
from tests.tiers import in_turn
from tests.weights.models import FAMILIES, build, snapshot, unchanged
from vitrail.cli.main import main
from vitrail.errors import WeightsError
from vitrail.models.recognise import recognise
from vitrail.weights import read_state_dict
from vitrail.weights.read import read_checkpoint


def _prefixed(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def _same_outputs(model, other):
    inputs = [torch.randn(2, *stream.shape) for stream in model.streams]
    with torch.no_grad():
        assert (model(*inputs) - other(*inputs)).abs().max() < 1e-6


WRAPPERS = [
    (), ("state_dict",), ("model",), ("module",), ("model_state",), ("net",), ("model_state_dict",), ("teacher",),
    ("state_dict_ema",), ("ema", "shadow"), ("run", "weights"),
]  # fmt: skip
PREFIXES = [
    "", "module.", "encoder.", "model.module._orig_mod.", "lit.model.backbone.", "_orig_mod.", "model.", "net.",
    "network.", "backbone.", "task.model.", "teacher.backbone.",
]  # fmt: skip
BESIDE = {
    "criterion.weight": torch.ones(3),
    "projection_head.0.weight": torch.zeros(4, 4),
    "logit_scale": torch.tensor(1.0),
}


def _write(content, path, how):
    if how == "safetensors":
        save_file({key: value.contiguous() for key, value in content.items()}, path)
    elif how == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")


@pytest.mark.fast_cases("vit-teacher.backbone.")
@pytest.mark.parametrize(("family", "prefix"), list(itertools.product(FAMILIES, PREFIXES)))
def test_every_wrapper_prefix_and_format(family, prefix, tmp_path):
    model = build(family, 1)
    rng = random.Random(f"{family} {prefix}")
    state = _prefixed(prefix, model.state_dict())
    beside = BESIDE if prefix else {}
    for wrapper in rng.sample(WRAPPERS, 3):
        how = rng.choice(["zip", "legacy", "pickle"] if wrapper else ["zip", "legacy", "safetensors"])
        content = {**state, **beside}
        for name in reversed(wrapper):
            content = {name: content, "epoch": 3}
        _write(content, tmp_path / "weights.any", how)
        other = build(family, 2)
        report = vitrail.load_weights(other, tmp_path / "weights.any")
        assert unchanged(other, snapshot(model)), (wrapper, how)
        _same_outputs(model, other)
        assert report.key == ".".join([*wrapper, prefix.rstrip(".")]).strip(".")
        assert {".".join([*wrapper, key]) for key in beside} == set(report.dropped)
        said = str(report)
        assert not wrapper or f"took {'.'.join(wrapper)!r}" in said
        assert not prefix or repr(prefix) in said
        assert not wrapper or "epoch" in said
    facts = recognise(read_checkpoint(tmp_path / "weights.any"), "x")
    assert (facts.family, facts.tensors) == (family, len(state))


@pytest.mark.slow_cases("module-maxvit")
@pytest.mark.parametrize(
    ("part", "family"),
    in_turn(["_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"], FAMILIES),
)
def test_parts_that_were_wrapped_one_by_one(family, part):
    model, other = build(family, 1), build(family, 2)
    rng = random.Random(f"{family} {part}")

    def wrapped(key):
        modules = key.split(".")[:-1]
        return bool(modules) and rng.random() < 0.5

    state = {}
    for key, value in model.state_dict().items():
        parts = key.split(".")
        if wrapped(key):
            parts.insert(rng.randrange(1, len(parts)), part)
        state[".".join(parts)] = value
    report = vitrail.load_weights(other, state)
    assert unchanged(other, snapshot(model))
    count = sum(part in key for key in state)
    assert f"removed '{part}.' inside of {count} names" in report.notes


def _vits():
    return build("vit", 1), build("vit", 2), build("vit", 3)


TWO_READINGS = {
    "weights and their average": (lambda a, b: {"model": a, "model_ema": b, "epoch": 1}, "model_ema", "model"),
    "state dicts of timm": (lambda a, b: {"state_dict": a, "state_dict_ema": b}, "state_dict_ema", "state_dict"),
    "teacher and student": (
        lambda a, b: {"student": _prefixed("module.backbone.", a), "teacher": _prefixed("backbone.", b)},
        "teacher.backbone",
        "student",
    ),
    "prefixes of one state dict": (
        lambda a, b: {"state_dict": _prefixed("student.", a) | _prefixed("teacher.", b)},
        "state_dict.teacher",
        "student",
    ),
    "momentum encoder": (
        lambda a, b: {"state_dict": _prefixed("module.encoder_q.", b) | _prefixed("module.encoder_k.", a)},
        "state_dict.module.encoder_q",
        "module.encoder_k",
    ),
    "current weights beside": (
        lambda a, b: {"state_dict": b, "current_model_state": a},
        "state_dict",
        "current_model_state",
    ),
}


@pytest.mark.fast_cases("momentum encoder")
@pytest.mark.parametrize("case", TWO_READINGS)
def test_of_two_readings_one_is_stated_and_either_can_be_chosen(case, tmp_path, capsys):
    write, taken, other_key = TWO_READINGS[case]
    plain, average, model = _vits()
    torch.save(write(plain.state_dict(), average.state_dict()), tmp_path / "x.pth")
    report = vitrail.load_weights(model, tmp_path / "x.pth")
    assert unchanged(model, snapshot(average))
    assert report.key == taken
    (note,) = [note for note in report.notes if "choose with" in note]
    assert note.startswith(f"took {taken!r}")
    assert ("an average" in note) == (case != "momentum encoder")
    assert re.search(rf"choose with key='[\w.]*{other_key}[\w.]*'$", note)
    report = vitrail.load_weights(model, tmp_path / "x.pth", key=other_key)
    assert unchanged(model, snapshot(plain))
    # The command line has the same choice, in its own words.
    assert main(["weights", str(tmp_path / "x.pth")]) == 0
    assert note.rpartition("key=")[2].strip("'") in capsys.readouterr().out
    assert main(["weights", str(tmp_path / "x.pth"), "--key", other_key]) == 0
    with pytest.raises(WeightsError, match="no weights of this model under 'nothing', only under"):
        vitrail.load_weights(model, tmp_path / "x.pth", key="nothing")


def test_readings_of_which_none_comes_first_are_refused():
    plain, other, model = _vits()
    content = {"left": plain.state_dict(), "right": other.state_dict()}
    with pytest.raises(WeightsError, match=r"several weights of this model, under left, right; choose one.*key='left'"):
        vitrail.load_weights(model, content)
    vitrail.load_weights(model, content, key="right")
    assert unchanged(model, snapshot(other))


def test_one_state_dict_at_several_paths(tmp_path):
    plain, _, model = _vits()
    state = plain.state_dict()
    torch.save({"best": state, "last": state, "model": state, "ema": {"shadow": state}}, tmp_path / "x.pth")
    for key, taken in ((None, "ema.shadow"), ("model", "model"), ("last", "last")):
        assert vitrail.load_weights(model, tmp_path / "x.pth", key=key).key == taken
        assert unchanged(model, snapshot(plain))
    vitrail.load_weights(build("vit", 8), {"best": state, "last": state})
    circle = {"model": state}
    circle["self"] = circle
    vitrail.load_weights(build("vit", 8), circle)


def test_averages_without_names():
    plain, average, model = _vits()
    shadow = {"decay": 0.99, "shadow_params": list(average.parameters())}
    report = vitrail.load_weights(model, {"model": plain.state_dict(), "ema": shadow})
    assert unchanged(model, snapshot(plain))
    assert f"{len(shadow['shadow_params'])} tensors without names" in str(report)
    with pytest.raises(WeightsError, match="'ema' is a list of tensors without names"):
        vitrail.load_weights(model, {"model": plain.state_dict(), "ema": shadow}, key="ema")
    with pytest.raises(WeightsError, match="tensors without names"):
        vitrail.load_weights(model, shadow)


def test_averaged_models_of_torch(tmp_path):
    plain, _, model = _vits()
    report = vitrail.load_weights(model, AveragedModel(plain).state_dict())
    assert unchanged(model, snapshot(plain))
    assert list(report.dropped) == ["n_averaged"]
    torch.save(
        {"model": build("vit", 5).state_dict(), "model_ema": AveragedModel(plain).state_dict()}, tmp_path / "x.pth"
    )
    report = vitrail.load_weights(model, tmp_path / "x.pth")
    assert unchanged(model, snapshot(plain))
    assert report.key == "model_ema.module"


class _Settings(enum.Enum):
    FAST = 1


class _Home:
    def __init__(self):
        self.inside = {"deep": [1, 2, {"x": np.float32(3)}]}


class _Mapping(dict):
    pass


@dataclasses.dataclass
class _Config:
    lr: float = 0.1


BESIDE_OBJECTS = {
    "argparse.Namespace": lambda: argparse.Namespace(lr=0.1, out=pathlib.Path("x")),
    "a number of NumPy": lambda: np.float64(0.5),
    "random state": np.random.get_state,
    "an array of NumPy": lambda: np.arange(6).reshape(2, 3),
    "an array of objects": lambda: np.array([{}, None], dtype=object),
    "a path": lambda: pathlib.Path("a/b"),
    "an enumeration": lambda: _Settings.FAST,
    "an object": _Home,
    "a dataclass": _Config,
    "a mapping": lambda: _Mapping(a=1),
    "a date": lambda: datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC),
    "a time": lambda: datetime.timedelta(seconds=3),
    "a set": lambda: {1, "a", frozenset({2})},
    "an optimizer": lambda: torch.optim.AdamW(build("vit", 4).parameters()),
    "a device": lambda: torch.device("cpu"),
    "a type": lambda: torch.float16,
    "a module": lambda: torch.nn.Linear(2, 2),
    "a class": lambda: _Home,
    "a function": lambda: os.path.join,
    "bytes": lambda: [b"ab", bytearray(b"cd"), memoryview],
    "a queue": lambda: collections.deque([1, 2]),
    "a decimal": lambda: decimal.Decimal("1.5"),
    "a generator": lambda: np.random.default_rng(0),
    "states of generators": lambda: {"torch": torch.get_rng_state(), "python": random.getstate()},
    "a table": lambda: pd.DataFrame({"a": [1, 2], "b": ["x", None]}),
    "a partial function": lambda: functools.partial(int, base=2),
}


@pytest.mark.slow_cases("a module-legacy")
@pytest.mark.parametrize(("kind", "how"), in_turn(BESIDE_OBJECTS, ["zip", "legacy", "pickle"]))
def test_objects_beside_the_weights(kind, how, tmp_path):
    plain, _, model = _vits()
    _write({"state_dict": plain.state_dict(), "extra": BESIDE_OBJECTS[kind](), "epoch": 2}, tmp_path / "x.pth", how)
    report = vitrail.load_weights(model, tmp_path / "x.pth")
    assert unchanged(model, snapshot(plain))
    assert any("left out beside the weights" in note and "extra" in note for note in report.notes)


def test_weights_inside_foreign_mappings_and_as_arrays(tmp_path):
    plain, _, model = _vits()
    _write({"state_dict": _Mapping(plain.state_dict())}, tmp_path / "x.pth", "zip")
    vitrail.load_weights(model, tmp_path / "x.pth")
    assert unchanged(model, snapshot(plain))
    for kind in ("C", "F"):
        arrays = {key: np.array(value.numpy(), order=kind) for key, value in plain.state_dict().items()}
        for how in ("zip", "legacy", "pickle"):
            _write({"model": arrays}, tmp_path / "x.pth", how)
            model = build("vit", 6)
            vitrail.load_weights(model, tmp_path / "x.pth")
            assert unchanged(model, snapshot(plain))
    big = {key: value.astype(">f4") for key, value in arrays.items()}
    _write({"model": big}, tmp_path / "x.pth", "pickle")
    vitrail.load_weights(build("vit", 7), tmp_path / "x.pth")


@pytest.mark.fast_cases("zip-hvt", "zip-vit")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("how", ["zip", "legacy"])
def test_whole_models_are_read_without_their_classes(family, how, tmp_path, monkeypatch):
    plain, model = build(family, 1), build(family, 2)
    _write({"model": plain, "ema": copy.deepcopy(model)}, tmp_path / "x.pth", how)
    report = vitrail.load_weights(model, tmp_path / "x.pth", key="model")
    assert unchanged(model, snapshot(plain))
    assert any("read as data, without their classes" in note for note in report.notes)


def test_parameters_and_half_precision_beside_objects(tmp_path):
    plain, _, model = _vits()
    state = {key: torch.nn.Parameter(value.bfloat16()) for key, value in plain.state_dict().items()}
    _write({"net": state, "args": argparse.Namespace()}, tmp_path / "x.pth", "zip")
    vitrail.load_weights(model, tmp_path / "x.pth")
    assert all((a - b).abs().max() < 0.02 for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    shared = {"a": torch.arange(6.0), "n": np.float32(1)}
    shared["b"] = shared["a"][2:4]
    _write(shared, tmp_path / "y.pth", "zip")
    assert read_state_dict(tmp_path / "y.pth")["b"].tolist() == [2, 3]


class _Runs:
    def __init__(self, function, *arguments):
        self.called = (function, arguments)

    def __reduce__(self):
        return self.called


HOSTILE = [
    lambda path: _Runs(os.system, f"touch {path}"),
    lambda path: _Runs(exec, f"open({str(path)!r}, 'w')"),
    lambda path: _Runs(eval, f"open({str(path)!r}, 'w')"),
    lambda path: _Runs(pathlib.Path.touch, path),
    lambda path: _Runs(os.makedirs, str(path)),
    lambda path: _Runs(getattr, _Runs(__import__, "os"), "system"),
    lambda path: _Runs(map, _Runs(getattr, pathlib.Path(path), "touch"), ()),
    lambda path: _Runs(torch.load, str(path)),
    lambda path: _Runs(np.save, str(path), 3),
]


@pytest.mark.parametrize(("hostile", "how"), in_turn(HOSTILE, ["zip", "legacy", "pickle"]))
def test_no_code_of_a_file_runs(hostile, how, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "x.pth"
    plain, _, model = _vits()
    for content in (
        {"state_dict": plain.state_dict(), "extra": hostile(marker)},
        {hostile(marker): 1},
        [hostile(marker)],
    ):
        _write(content, path, how)
        with contextlib.suppress(WeightsError):
            vitrail.load_weights(model, path)
        assert not marker.exists()
        assert not list(tmp_path.glob("marker*"))
