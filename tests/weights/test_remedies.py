"""Each remedy in an error exists where the error is read, and works there."""

import ast
import inspect
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import vitrail
from tests.weights.models import build
from vitrail.cli.main import main
from vitrail.cli.weights import _parser
from vitrail.config import ModelConfig
from vitrail.errors import WeightsError
from vitrail.models import list_families
from vitrail.weights.remedies import COMMAND, PYTHON, RECIPE, spellings

SOURCE = Path(vitrail.__file__).parent
OPTIONS = sorted({*PYTHON.options, *PYTHON.switches})


def test_python_has_every_option():
    known = inspect.signature(vitrail.load_weights).parameters
    for option in OPTIONS:
        written = PYTHON.give(option) if option in PYTHON.options else PYTHON.on(option)
        assert written.partition("=")[0] in known


def test_a_recipe_has_every_option():
    for option in (*RECIPE.options, *RECIPE.switches):
        written = RECIPE.give(option) if option in RECIPE.options else RECIPE.on(option)
        part, _, name = written.partition(" ")[0].partition(".")
        assert part == "model"
        assert name in ModelConfig.__dataclass_fields__


def test_the_command_line_has_every_option():
    known = {word for action in _parser()._actions for word in action.option_strings}
    for option in (*COMMAND.options, *COMMAND.switches):
        written = COMMAND.give(option) if option in COMMAND.options else COMMAND.on(option)
        assert written in known


def test_every_option_is_spelled_everywhere_or_asked_for():
    """What a place lacks, the code asks for with ``has`` before it advises it."""
    lacking = {option for spelling in spellings().values() for option in OPTIONS if not spelling.has(option)}
    assert lacking == {"source", "spectral_from_image"}


def _texts(path):
    """All text of errors in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise) and node.exc is not None:
            yield from (n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str))


@pytest.mark.parametrize("path", [*sorted((SOURCE / "weights").glob("*.py")), SOURCE / "models" / "recognise.py"])
@pytest.mark.fast_cases("path10", "path11", "path22")
def test_no_error_spells_an_option_itself(path):
    spelled = re.compile(rf"\b({'|'.join(OPTIONS)})=|--\w|\bmodel\.({'|'.join(ModelConfig.__dataclass_fields__)})\b")
    assert [text for text in _texts(path) if spelled.search(text)] == []


# -- each remedy, done as it is written ------------------------------------------------------------------

SETTINGS = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 8}
# Number of classes of the data: weights of as many are used with new_head false.
TRAIN = [
    "--data.source", "synthetic_leaves", "--data.leaves.num_images", "24", "--data.spectral.use", "[]",
    "--data.img_size", "32", "--model.name", "vit",
    *(word for key, value in SETTINGS.items() for word in (f"--model.{key}", str(value))),
    "--trainer.accelerator", "cpu", "--trainer.max_epochs", "1", "--data.batch_size", "8",
    "--trainer.precision", "32-true",
]  # fmt: skip


def _state(**settings):
    model = vitrail.create_model("vit", **{"img_size": 32, "num_classes": 3, **SETTINGS, **settings})
    return {key: value.contiguous() for key, value in model.state_dict().items()}


def _without(state, start):
    return {key: value for key, value in state.items() if not key.startswith(start)}


FAULTS = {
    "unexpected": lambda: {**_state(), **{key: torch.zeros(2) for key in ("junk.weight", "junk.bias", "odd")}},
    "missing": lambda: _without(_state(), "norm."),
    "both": lambda: {**_without(_state(), "blocks.1."), "odd": torch.zeros(1)},
    "a shape": lambda: {**_state(), "norm.weight": torch.zeros(7)},
    "bands": lambda: _state(in_chans=5),
    "two readings": lambda: {f"{side}.{k}": v for side in ("left", "right") for k, v in _state().items()},
}  # fmt: skip


def _advised(message, spelling):
    """Options in an error, as words of a command line."""
    if spelling is RECIPE:
        found = re.findall(r'model\.(\w+) (\[.*?\]|"[^"]*")', message)
        return [word for name, value in found for word in (f"--model.{name}", json.loads(value) and value.strip('"'))]
    words = re.findall(r"(--(?:allow|key|new|bands)[\w-]*(?: '[^']*'| [\w.*]+)*)", message)
    return [word for option in words for word in shlex.split(option)]


@pytest.mark.fast_cases("bands")
@pytest.mark.parametrize("fault", FAULTS)
def test_the_remedy_of_a_recipe_works(fault, tmp_path, capsys):
    save_file(FAULTS[fault](), tmp_path / "x.safetensors")
    words = [*TRAIN, "--model.weights", str(tmp_path / "x.safetensors")]
    assert main(["train", *words, "--run.dir", str(tmp_path / "a")]) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    advised = _advised(message, RECIPE)
    advised = advised[:2] if fault == "bands" else advised  # of the three rules the first
    assert advised
    assert main(["train", *words, "--run.dir", str(tmp_path / "b"), *advised]) == 0, capsys.readouterr().err


@pytest.mark.fast_cases("both", "missing", "two readings")
@pytest.mark.parametrize("fault", FAULTS)
def test_the_remedy_of_the_command_line_works(fault, tmp_path, capsys):
    save_file(FAULTS[fault](), tmp_path / "x.safetensors")
    words = [
        "weights",
        str(tmp_path / "x.safetensors"),
        "--model",
        "vit",
        "--set",
        "img_size=32",
        "--set",
        "num_classes=3",
    ]
    words += [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    assert main(words) == 1
    captured = capsys.readouterr()
    message = captured.out.partition("refused: ")[2] or captured.err
    advised = _advised(message, COMMAND)
    advised = advised[:2] if fault == "bands" else advised
    assert advised
    assert main([*words, *advised]) == 0, capsys.readouterr()


@pytest.mark.parametrize("fault", FAULTS)
def test_the_remedy_in_python_works(fault):
    model = vitrail.create_model("vit", img_size=32, num_classes=3, **SETTINGS)
    with pytest.raises(WeightsError) as caught:
        vitrail.load_weights(model, FAULTS[fault]())
    found = re.findall(r"(\w+)=(\[.*?\]|'[^']*')", str(caught.value))
    found = found[:1] if fault == "bands" else found
    assert found
    vitrail.load_weights(model, FAULTS[fault](), **{name: ast.literal_eval(value) for name, value in found})


def test_the_variants_that_do_not_fit_are_explained_in_the_words_of_the_command_line(tmp_path, capsys):
    state = {key: value for key, value in vitrail.create_model("vit_tiny_patch16_224").state_dict().items()}
    save_file({**state, "junk.weight": torch.zeros(2)}, tmp_path / "x.safetensors")
    assert main(["weights", str(tmp_path / "x.safetensors")]) == 0
    assert "--allow-unexpected 'junk.weight'" in capsys.readouterr().out
    assert main(["weights", str(tmp_path / "x.safetensors"), "--allow-unexpected", "junk.weight"]) == 0
    assert "loading into vit_tiny_patch16_224" in capsys.readouterr().out


def test_many_patterns_are_not_written_out():
    model = build("vit", 2)
    state = {**build("vit", 1).state_dict(), **{f"junk{i}.weight": torch.zeros(1) for i in range(20)}}
    with pytest.raises(WeightsError, match=r"20 unexpected .* allow these with allow_unexpected$"):
        vitrail.load_weights(model, state)


def test_the_weights_of_a_run_have_no_options(tmp_path, capsys):
    assert main(["train", *TRAIN, "--run.dir", str(tmp_path / "a")]) == 0
    save_file(_without(_state(num_classes=4), "norm."), tmp_path / "a" / "model.safetensors")
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "a")]) == 1
    message = capsys.readouterr().err
    assert "estore the file" in message
    assert "allow" not in message


# -- depth and width ---------------------------------------------------------------------------------------

OTHERS = {
    "vit": ({"depth": 4}, {"embed_dim": 36}),
    "swin": ({"depths": (2, 3)}, {"num_heads": (4, 4)}, {"embed_dim": 24}),
    "maxvit": ({"depths": (2, 2)}, {"stem_width": 24}),
    "hvt": ({"depths": (2, 2)}, {"embed_dim": 24}),
}
CASES = [(family, other) for family, all_others in OTHERS.items() for other in all_others]


@pytest.mark.slow_cases("maxvit-other6")
@pytest.mark.parametrize(("family", "other"), CASES)
def test_another_depth_or_width_is_named_as_the_setting(family, other):
    settings = list_families()[family].test_config
    source = vitrail.create_model(family, **{**settings, **other})
    model = build(family, 1)
    with pytest.raises(WeightsError) as caught:
        vitrail.load_weights(model, source.state_dict())
    (name, value), *_ = other.items()
    assert f"uild the model with {name}={json.dumps(value, separators=(',', ':'))}, as that of the weights" in str(
        caught.value
    )
    assert type(model).read_structure(source.state_dict()).items() >= other.items()
    for spelling, written in ((RECIPE, f"model.{name} "), (COMMAND, f"--set {name}=")):
        with pytest.raises(WeightsError, match=f"uild the model with {written}"):
            vitrail.load_weights(model, source.state_dict(), spelling=spelling)


@pytest.mark.parametrize("family", OTHERS)
def test_what_can_be_read_off_a_model_is_its_own(family):
    model = build(family, 1)
    read = type(model).read_structure(model.state_dict())
    assert read
    assert {name: getattr(model.config, name) for name in read} == read
    unchanged = vitrail.load_weights(model, model.state_dict())
    assert not unchanged.missing


@pytest.mark.parametrize(("family", "start"), [("vit", "blocks.1"), ("swin", "layers.0.blocks.1")])
def test_the_missing_keys_of_one_block_are_allowed_as_that_block(family, start):
    settings = {**list_families()[family].test_config, **({"depth": 3} if family == "vit" else {})}
    source = vitrail.create_model(family, **settings).state_dict()
    state = _without(source, start + ".")
    if family == "swin":
        state |= {key: value for key, value in source.items() if key == start + ".norm1.weight"}
    lacking = len(source) - len(state)
    model = vitrail.create_model(family, **settings)
    names = rf"{lacking} missing \({re.escape(start)}.* and {lacking - 3} more\)"
    pattern = names + rf".*allow_missing=\['{re.escape(start)}\.\*'\]"
    with pytest.raises(WeightsError, match=pattern):
        vitrail.load_weights(model, state)


@pytest.mark.fast_cases("swin", "vit")
@pytest.mark.parametrize("family", OTHERS)
def test_the_command_line_prints_settings_that_fit(family, tmp_path, capsys):
    model = build(family, 1)
    save_file(model.state_dict(), tmp_path / "x.safetensors")
    assert main(["weights", str(tmp_path / "x.safetensors")]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "--model" in line)
    advised = shlex.split(line.partition("try")[2].replace("(no shape shows it)", "").replace("as it was trained", ""))
    config = list_families()[family].test_config
    words = []
    for word in advised:
        name, _, value = word.partition("=")
        words.append(f"{name}={json.dumps(config[name])}" if value == "N" else word)
    if family == "swin":
        words += ["--set", f"img_size={config['img_size']}"]
    assert main(["weights", str(tmp_path / "x.safetensors"), *words]) == 0, capsys.readouterr()
    out = capsys.readouterr().out
    assert "no variant" not in out
    assert f"loading into {family}:" in out
