"""Output ends with the command that usually follows, which works as it stands."""

import re
import shlex

import pytest

from tests.images import make_folder
from vitrail.cli import next_steps
from vitrail.cli.main import VERBS, main
from vitrail.cli.next_steps import BEGIN, data_words

SMALL = (
    "--model.name vit --model.img_size 16 --model.patch_size 8 --model.embed_dim 8 --model.depth 1 --model.num_heads 1 "
    "--trainer.max_epochs 1 --trainer.accelerator cpu --trainer.precision 32-true --run.tensorboard false"
).split()


def _following(err):
    """The commands after the last "next:", without the program's name."""
    lines = err.strip().splitlines()
    first = max(i for i, line in enumerate(lines) if line.startswith("next: "))
    assert all(line.startswith("   or ") for line in lines[first + 1 :])
    commands = [shlex.split(re.sub(r"^(next:|   or) ", "", line)) for line in lines[first:]]
    assert all(command[0] == "vitrail" and command[1] in VERBS for command in commands)
    return [command[1:] for command in commands]


@pytest.mark.slow
def test_from_the_audit_to_the_page(tmp_path, capsys):
    """Each command is the one that the last output names."""
    make_folder(tmp_path / "my photos", ("a", "b"), (), 16)
    given = ["--data.source", "folder", "--data.path", str(tmp_path / "my photos")]
    main(["data", "audit", *given, "--out", str(tmp_path / "a.html")])
    (command,) = _following(capsys.readouterr().err)
    assert command == ["train", *given]
    assert main([*command, *SMALL, "--run.dir", str(tmp_path / "run")]) == 0
    (command,) = _following(capsys.readouterr().err)
    assert command == ["evaluate", str(tmp_path / "run")]
    assert main(command) == 0
    report, explain = _following(capsys.readouterr().err)
    assert main(explain) == 0
    assert _following(capsys.readouterr().err) == [report]
    assert report == ["report", str(tmp_path / "run")]


def test_bare_vitrail_ends_with_ways_to_begin(capsys):
    assert main([]) == 2
    text = capsys.readouterr().out
    for command in BEGIN:
        assert f"  {command}\n" in text.split("begin with:")[1]
        verb = command.split()[1]
        assert verb in VERBS or verb == "VERB"
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("recipe", "argv", "expected"),
    [
        ("r.yaml", ["--json", "r.yaml", "--data.path=x y"], ["r.yaml", "--data.path", "x y"]),
        (None, ["--distance", "3", "--data.path", "x"], ["--data.path", "x"]),
        (None, ["--out", "a.html", "--model.depth=3"], ["--model.depth", "3"]),
    ],
)
def test_settings_are_kept_and_own_options_are_not(recipe, argv, expected):
    assert data_words(recipe, argv) == expected


def test_words_are_quoted_for_the_shell(capsys):
    next_steps.print_next(["vitrail", "report", "my run"], ["vitrail", "models"])
    assert capsys.readouterr().err == "next: vitrail report 'my run'\n   or vitrail models\n"
