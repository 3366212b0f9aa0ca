"""``--help`` of verbs that take a recipe: every setting with its default, in groups, without torch."""

from __future__ import annotations

import argparse
import inspect
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

from vitrail.cli.arguments import describe_default
from vitrail.cli.tables import format_terms, text_width
from vitrail.config.load import recipe_parser

_PARTS = {
    "data": "the images: where they are, their bands, splits, augmentation and loading",
    "task": "what is optimised: the loss, or the kind of pre-training",
    "trainer": "how it is optimised, and on which device",
    "run": "the run folder",
    "model": "the model, and where its weights come from",
}


def describe_recipe_verb(
    prog: str,
    description: str,
    flags: Mapping[str, str],
    model: str | None,
    settings: tuple[type[Any], Callable[[str], dict[str, Any]]] | None,
) -> str:
    """The help of a verb that takes ``[RECIPE.yaml] [--PART.SETTING VALUE ...]``.

    Args:
        prog: The command.
        description: What it does.
        flags: Options without a value -> what they do.
        model: A model whose settings are listed too.
        settings: That model's dataclass of settings, and a function from its name to the defaults.
    """
    from vitrail import config

    width = text_width()
    lines = [f"usage: {prog} [RECIPE.yaml] [--PART.SETTING VALUE ...]", ""]
    lines += textwrap.wrap(description, width)
    own, defaults = (None, {}) if settings is None or model is None else (settings[0], settings[1](model))
    lines += ["", "options:", format_terms(flags)]
    more = f"those of {model} among them" if model else "`--help --model.name swin` lists those of that model too"
    lines += ["", *textwrap.wrap(f"settings ({more}):", width)]
    found: dict[str, list[str]] = {}
    for action in recipe_parser(own, prog)._actions:
        option = action.option_strings[-1] if action.option_strings else ""
        if "." not in option or option.endswith("help"):
            continue
        part, name = option.removeprefix("--").split(".", 1)
        of_model = action.default == argparse.SUPPRESS
        kind = own if of_model else getattr(config, f"{part.capitalize()}Config")
        text = _describe(inspect.getdoc(kind) or "", name)
        value = defaults.get(name) if of_model else action.default
        # As it is written on the command line.
        text += describe_default(str(list(value)) if value and isinstance(value, list | tuple) else value)
        found.setdefault(part, []).append(f"  {option}")
        found[part] += textwrap.wrap(text, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    for part, what in _PARTS.items():
        lines += ["", f"{part}: {what}", *found.get(part, [])]
    return "\n".join(lines)


def _describe(text: str, name: str) -> str:
    """The setting's lines in its dataclass's docstring."""
    lines = text.split("Attributes:", 1)[-1].splitlines()
    wanted: list[str] = []
    for line in lines:
        stripped = line.strip()
        if stripped.startswith(f"{name}:"):
            wanted = [stripped.split(":", 1)[1].strip()]
        elif wanted and line.startswith("        "):
            wanted.append(stripped)
        elif wanted:
            break
    return " ".join(wanted).replace("``", "")
