"""Help: readable on 80 columns, one spelling of options, defaults that say something, and no torch for it."""

import contextlib
import json
import re
import subprocess
import sys

import pytest

from vitrail.cli.data import WORDS
from vitrail.cli.main import VERBS, main
from vitrail.config.data_groups import GROUPS as DATA_GROUPS

COMMANDS = [[verb] for verb in VERBS if verb != "data"] + [["data", word] for word in WORDS] + [["data"]]
COMMANDS += [["train", "--model.name", family] for family in ("vit", "swin", "maxvit", "hvt")]


def _help(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    with contextlib.suppress(SystemExit):
        assert main([*command, "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_fits_and_says_only_what_helps(capsys, monkeypatch, command):
    text = _help(capsys, monkeypatch, command)
    assert max(map(len, text.splitlines())) <= 80
    assert not re.search(r"default: (None|False|\(\)|\[\]|==SUPPRESS)", " ".join(text.split()))
    options = re.findall(r"(?<![\w`-])--[a-zA-Z][\w.-]*", text)
    own = {option for option in options if "." not in option}
    assert not [option for option in own if "_" in option]
    assert not [option for option in options if "." in option and "-" in option.removeprefix("--")]


GROUPS = [*(f"data.{name}" for name in DATA_GROUPS), "data.augmentation"]


def _topic(capsys, monkeypatch, topic, verb="train"):
    monkeypatch.setenv("COLUMNS", "80")
    assert main([verb, "--help", topic]) == 0
    return capsys.readouterr().out


def test_settings_are_grouped_by_what_they_configure(capsys, monkeypatch):
    text = _topic(capsys, monkeypatch, "all")
    sections = re.split(r"^([a-z.]+): ", text.partition("first settings:")[2], flags=re.M)[1:]
    assert sections[::2] == ["data", *GROUPS, "task", "trainer", "run", "model"]
    for section, settings in zip(sections[::2], sections[1::2], strict=True):
        found = re.findall(r"^  --([\w.]+)\.\w+\n      \S", settings, re.MULTILINE)
        assert len(found) == settings.count("\n  --")  # each has its meaning
        assert set(found) == {section}


@pytest.mark.fast_cases("train")
@pytest.mark.parametrize("verb", ["train", "pretrain"])
def test_the_first_settings_and_the_groups_fit_on_a_screen(capsys, monkeypatch, verb):
    text = _help(capsys, monkeypatch, [verb])
    assert len(text.splitlines()) <= 50
    listed = re.findall(r"^  (--[a-z]+\.[\w.]+)", text, re.MULTILINE)
    assert {"--data.path", "--model.name", "--trainer.max_epochs", "--run.dir"} <= set(listed)
    everything = _topic(capsys, monkeypatch, "all", verb)
    for option in listed:
        assert f"\n  {option}\n" in everything
    topics = re.findall(r"^  ([a-z][\w.]*)  +\S", text.partition(" of a group")[2], re.MULTILINE)
    assert topics == ["data", *GROUPS, "task", "trainer", "run", "model", "all"]
    for topic in topics[:-1]:
        assert _topic(capsys, monkeypatch, topic, verb).splitlines()[0].startswith(f"{topic}: ")


def test_help_of_a_setting_and_of_a_model(capsys, monkeypatch):
    assert "--data.values.range\n" in _topic(capsys, monkeypatch, "data.values.range")
    assert "--data.values.nodata" not in _topic(capsys, monkeypatch, "--data.values.range".removeprefix("--"))
    assert "--model.window_size\n" in _help(capsys, monkeypatch, ["train", "--model.name", "swin"])
    assert main(["train", "--help", "data.vales"]) == 2
    assert "--help data.vales: unknown part, group or setting; did you mean 'data.values'?" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--seed", "--resamples"])
def test_a_default_of_zero_is_a_default(capsys, monkeypatch, option):
    text = " ".join(_help(capsys, monkeypatch, ["evaluate"]).split())
    assert re.search(rf"{option} N [^-]*\(default: \d+\)", text)


@pytest.mark.parametrize("spelling", ["--print-config", "--print_config"])
def test_both_spellings_print_the_recipe(capsys, spelling):
    assert main(["train", spelling]) == 0
    assert capsys.readouterr().out.startswith("data:\n")


@pytest.mark.fast_cases("-torch")
@pytest.mark.parametrize(
    ("words", "absent"),
    [
        ([], "torch"),
        (["train", "--print-config"], "torch"),
        (["train", "--print-config", "--model.name", "hvt_tiny", "--data.batch_size", "8"], "torch"),
        (["data", "split", "--data.source", "digits"], "lightning"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_what_needs_no_library_does_not_import_it(words, absent):
    code = (
        "import sys\nfrom vitrail.cli.main import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        f"sys.exit(9 if {absent!r} in sys.modules else 0)"
    )
    ended = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_no_help_imports_torch_or_the_recipes_parser():
    commands = [[*command, "--help"] for command in COMMANDS if "--model.name" not in command]
    code = (
        "import contextlib, json, sys\nfrom vitrail.cli.main import main\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        main(words)\n"
        "    heavy = {'torch', 'numpy', 'pandas', 'matplotlib', 'jsonargparse'} & set(sys.modules)\n"
        "    assert not heavy, f'{words} imports {heavy}'\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, json.dumps(commands)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
