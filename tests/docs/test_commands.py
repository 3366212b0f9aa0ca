"""Every ``vitrail`` command of the documentation is one that the command line accepts."""

import argparse
import re
import shutil

import pytest
import yaml

from tests.docs.pages import PAGES, ROOT, commands, snippets
from vitrail.cli.arguments import VerbParser
from vitrail.cli.main import main
from vitrail.cli.recipes import make_recipe
from vitrail.compare.suite import load_suite
from vitrail.config.changes import split_words
from vitrail.errors import VitrailError

# Verbs whose arguments are a recipe and settings, and nothing else.
RECIPE_VERBS = ("train", "pretrain")


class Parsed(Exception):
    """The options were accepted."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with the recipes and suites that the pages name; parsing is where each command ends."""
    for name in ("recipes", "suites"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "runs" / "x").mkdir(parents=True)
    shutil.copy(ROOT / "recipes" / "digits" / "vit.yaml", tmp_path / "runs" / "x" / "recipe.yaml")
    shutil.copy(ROOT / "recipes" / "digits" / "vit.yaml", tmp_path / "recipe.yaml")
    monkeypatch.chdir(tmp_path)

    def parse(method):
        def parse_and_stop(self, *args, **kwargs):
            method(self, *args, **kwargs)
            raise Parsed

        return parse_and_stop

    for name in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(VerbParser, name, parse(getattr(argparse.ArgumentParser, name)))
    return tmp_path


def check_command(words):
    """Parse a command as the command line does, and its settings as ``vitrail train`` does.

    Raises:
        ConfigError: An option, setting or value that is not accepted.
    """
    is_recipe = words[0] in RECIPE_VERBS or words[:2] == ["data", "show"]
    if is_recipe:
        assert main([*words, "--print_config", "--debug"]) == 0
        return
    try:
        # Verbs without a parser of their own answer at once.
        assert main([*words, "--debug"]) == 0
    except Parsed:
        settings, _ = split_words(words, ("--data.", "--model.", "--task.", "--trainer.", "--run."))
        flat = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
        assert main(["train", *flat, "--print_config", "--debug"]) == 0


@pytest.mark.fast_cases(
    "README.md",
    "docs/README.md",
    "docs/attention.md",
    "docs/extend.md",
    "docs/figures.md",
    "docs/glossary.md",
    "docs/modules.md",
    "docs/python.md",
    "docs/weights.md",
)
@pytest.mark.parametrize("page", PAGES)
def test_commands_are_accepted(page, folder):
    recipes = [block.text for block in snippets(page, "yaml") if "variants:" not in block.text]
    refused = []
    for snippet, words in commands(page):
        for word in words:
            if word.endswith(".yaml") and "/" not in word and recipes:
                # The file that the page shows.
                (folder / word).write_text(recipes[0], encoding="utf-8")
        try:
            check_command(words)
        except VitrailError as error:
            refused.append(f"{snippet}: {snippet.text}\n    {error}")
    assert not refused, "\n".join(refused)


@pytest.mark.slow_cases("docs/compare.md")
@pytest.mark.parametrize("page", PAGES)
def test_recipes_and_suites_are_accepted(page, tmp_path):
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    # The recipe of the README, which other pages name.
    (tmp_path / "fields.yaml").write_text(snippets("README.md", "yaml")[0].text, encoding="utf-8")
    for block in snippets(page, "yaml"):
        content = yaml.safe_load(block.text)
        if "variants" in content:
            path = tmp_path / "suite.yaml"
            path.write_text(block.text, encoding="utf-8")
            load_suite(path)
        else:
            make_recipe(content)


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["train", "--trainer.max_epoch", "3"], "max_epochs"),
        (["evaluate", "runs/x", "--corruption"], "corruptions"),
        (["data", "audit", "--data.sauce", "folder"], "data.source"),
        (["models", "--no-such-option"], "no-such-option"),
        (["inspet", "vit"], "inspect"),
    ],
)
def test_a_renamed_option_is_found(words, fault, folder):
    with pytest.raises(VitrailError, match=fault):
        check_command(words)


def test_continued_lines_and_comments(monkeypatch, tmp_path):
    text = "```sh\nvitrail a \\\n    --b c   # why\nls\n```\n\n```sh\nvitrail d 'e #'\n```\n"
    (tmp_path / "page.md").write_text(text)
    monkeypatch.setattr("tests.docs.pages.ROOT", tmp_path)
    found = [(snippet.line, words) for snippet, words in commands("page.md")]
    assert found == [(2, ["a", "--b", "c"]), (8, ["d", "e #"])]


def test_make_targets_exist():
    targets = re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M)
    for page in [*PAGES, "CONTRIBUTING.md"]:
        text = (ROOT / page).read_text(encoding="utf-8")
        for names in re.findall(r"(?:^|`)make ([a-z-]+(?: [a-z-]+)*)(?:`|\s{2,}#|$)", text, flags=re.M):
            assert set(names.split()) <= set(targets), f"{page}: make {names}"
