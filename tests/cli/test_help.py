"""Help: readable on 80 columns, one spelling of options, defaults that say something, and no torch for it."""

import contextlib
import json
import re
import subprocess
import sys

import pytest

from vitrail.cli.data import WORDS
from vitrail.cli.main import VERBS, main

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


def test_settings_are_grouped_by_part(capsys, monkeypatch):
    text = _help(capsys, monkeypatch, ["train"])
    headings = re.findall(r"^(data|task|trainer|run|model): ", text, re.MULTILINE)
    assert headings == ["data", "task", "trainer", "run", "model"]
    for heading, part in zip(
        re.split(r"^(?:data|task|trainer|run|model): ", text, flags=re.M)[1:], headings, strict=True
    ):
        found = re.findall(r"^  --([a-z]+)\.", heading, re.MULTILINE)
        assert found
        assert set(found) == {part}


@pytest.mark.parametrize("more", [[], ["--model.name", "swin"]])
def test_the_first_settings_fit_on_a_screen(capsys, monkeypatch, more):
    first, _, rest = _help(capsys, monkeypatch, ["train", *more]).partition("\nall settings ")
    assert len(first.splitlines()) <= 25
    listed = re.findall(r"^  (--[a-z]+\.[\w.]+)", first, re.MULTILINE)
    assert {"--data.path", "--model.name", "--trainer.max_epochs", "--run.dir"} <= set(listed)
    for option in listed:
        assert f"\n  {option}\n" in rest


@pytest.mark.parametrize("option", ["--seed", "--resamples"])
def test_a_default_of_zero_is_a_default(capsys, monkeypatch, option):
    text = " ".join(_help(capsys, monkeypatch, ["evaluate"]).split())
    assert re.search(rf"{option} N [^-]*\(default: \d+\)", text)


@pytest.mark.parametrize("spelling", ["--print-config", "--print_config"])
def test_both_spellings_print_the_recipe(capsys, spelling):
    assert main(["train", spelling]) == 0
    assert capsys.readouterr().out.startswith("data:\n")


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
