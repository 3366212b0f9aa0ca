"""``--help`` of verbs that take a recipe: all settings with defaults, in groups, without importing torch."""

from __future__ import annotations

import argparse
import inspect
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

from vitrail.cli.arguments import describe_default
from vitrail.cli.tables import format_terms, text_width
from vitrail.config.load import list_settings

# The settings of a first run.
_FIRST = {
    "data.source": "folder, table, arrays, hf, ...",
    "data.path": "folder or file of the images",
    "data.img_size": "height and width; the model's if left out",
    "data.split": "split of images without one",
    "data.augment": "none, light, standard, ...",
    "data.batch_size": "images a step, or auto",
    "model.name": "variant or family",
    "model.weights": "file, run folder or hf://owner/name to start from",
    "task.name": "kind of training",
    "trainer.max_epochs": "epochs",
    "trainer.learning_rate": "peak, or auto",
    "trainer.accelerator": "auto, cpu, gpu, ...",
    "trainer.precision": "auto, 32-true, ...",
    "run.dir": "run folder; runs/MODEL if left out",
    "run.seed": "seed of weights and order",
}
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
    """Format the help of a verb that takes ``[RECIPE.yaml] [--PART.SETTING VALUE ...]``.

    Args:
        prog: Command, for example "vitrail train".
        description: Purpose of the command.
        flags: Options without a value -> their meaning.
        model: Model whose settings are included; None for none.
        settings: Its dataclass of settings, and a function from a model's name to its defaults.
    """
    from vitrail import config

    width = text_width()
    lines = [f"usage: {prog} [RECIPE.yaml] [--PART.SETTING VALUE ...]", ""]
    lines += textwrap.wrap(description, width)
    own, defaults = (None, {}) if settings is None or model is None else (settings[0], settings[1](model))
    lines += ["", "options:", format_terms(flags)]
    more = f"those of {model} are included" if model else "`--help --model.name swin` includes those of that model"
    found: dict[str, list[str]] = {}
    first: dict[str, str] = {}
    for setting, default_value in list_settings(own):
        part, name = setting.split(".", 1)
        of_model = default_value == argparse.SUPPRESS
        kind = own if of_model else getattr(config, f"{part.capitalize()}Config")
        text = _describe(inspect.getdoc(kind) or "", name)
        value = defaults.get(name) if of_model else default_value
        # As it is written on the command line.
        default = describe_default(str(list(value)) if value and isinstance(value, list | tuple) else value)
        found.setdefault(part, []).append(f"  --{setting}")
        found[part] += textwrap.wrap(text + default, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
        if f"{part}.{name}" in _FIRST:
            first[f"{part}.{name}"] = default
    lines += ["", "first settings:", format_terms({f"--{name}": text + first[name] for name, text in _FIRST.items()})]
    lines += ["", *textwrap.wrap(f"all settings ({more}):", width)]
    for part, what in _PARTS.items():
        lines += ["", f"{part}: {what}", *found.get(part, [])]
    return "\n".join(lines)


def _describe(text: str, name: str) -> str:
    """Return the setting's lines in its dataclass's docstring."""
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
