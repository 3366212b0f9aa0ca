"""``--help`` of verbs that take a recipe: the first settings and the groups on a screen, a group by its name."""

from __future__ import annotations

import argparse
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from vitrail.cli.arguments import describe_default
from vitrail.cli.tables import format_terms, text_width
from vitrail.config.load import list_settings
from vitrail.errors import ConfigError, closest

# The settings of a first run.
_FIRST = {
    "data.source": "folder, table, arrays, hf, ...",
    "data.path": "folder or file of the images",
    "data.img_size": "height and width; the model's if left out",
    "data.scale": "value that becomes 1; not needed for 8 bits",
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
    "data": "source, size, split and batches of the images",
    "task": "the loss, or the kind of pre-training",
    "trainer": "optimisation and device",
    "run": "the run folder",
    "model": "the model and its first weights",
}
# Topic of all settings.
ALL = "all"


def describe_recipe_verb(
    prog: str,
    description: str,
    flags: Mapping[str, str],
    model: str | None,
    settings: tuple[type[Any], Callable[[str], dict[str, Any]]] | None,
    topic: str | None = None,
) -> str:
    """Format the help of a verb that takes ``[RECIPE.yaml] [--PART.SETTING VALUE ...]``.

    Args:
        prog: Command, for example "vitrail train".
        description: Purpose of the command.
        flags: Options without a value -> their meaning.
        model: Model whose settings are included; None for none.
        settings: Its dataclass of settings, and a function from a model's name to its defaults.
        topic: A part, a group of ``data`` or a setting, whose settings are listed in full; "all" for all of them.

    Raises:
        ConfigError: An unknown topic.
    """
    width = text_width()
    own, defaults = (None, {}) if settings is None or model is None else (settings[0], settings[1](model))
    sections: dict[str, dict[str, tuple[str, str]]] = {}
    for section, option, text, default in _settings(own, defaults):
        sections.setdefault(section, {})[option] = (text, default)
    titles = _titles()
    if topic is not None and topic != ALL:
        return _describe_topic(topic, sections, titles, prog, width)
    lines = [f"usage: {prog} [RECIPE.yaml] [--PART.SETTING VALUE ...]", ""]
    lines += textwrap.wrap(description, width)
    lines += ["", "options:", format_terms(flags)]
    first = {f"--{name}": text + sections[name.split(".")[0]][f"--{name}"][1] for name, text in _FIRST.items()}
    lines += ["", "first settings:", format_terms(first)]
    if topic == ALL:
        for section, title in titles.items():
            lines += ["", *_describe_section(section, title, sections, width)]
        return "\n".join(lines)
    more = "" if model else "; with `--model.name swin`, those of that model"
    lines += ["", *textwrap.wrap(f"settings (`{prog} --help NAME` lists those of a group{more}):", width)]
    lines += [format_terms({**titles, ALL: "all settings"})]
    if model:
        lines += ["", *_describe_section("model", f"{titles['model']} ({model})", sections, width)]
    return "\n".join(lines)


def _settings(own: type[Any] | None, defaults: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """List section, option, meaning and default of each setting."""
    from vitrail import config
    from vitrail.config.augment import AugmentSettings
    from vitrail.config.data_groups import GROUPS

    for setting, default_value in list_settings(own):
        if setting == "data.augmentation":
            continue
        part, name = setting.split(".", 1)
        group, _, leaf = name.partition(".")
        of_model = default_value == argparse.SUPPRESS
        kind = own if of_model else getattr(config, f"{part.capitalize()}Config")
        section = part
        if part == "data" and leaf:
            kind, section = GROUPS[group], f"data.{group}"
        value = defaults.get(name) if of_model else default_value
        # As it is written on the command line.
        default = describe_default(str(list(value)) if value and isinstance(value, list | tuple) else value)
        yield section, f"--{setting}", _describe(inspect.getdoc(kind) or "", leaf or name), default
    for name in AugmentSettings.__dataclass_fields__:
        text = _describe(inspect.getdoc(AugmentSettings) or "", name)
        yield "data.augmentation", f"--data.augmentation.{name}", text, ""


def _titles() -> dict[str, str]:
    """Name parts and groups in order, each with its meaning."""
    from vitrail.config.data_groups import GROUPS

    groups = {f"data.{name}": (kind.__doc__ or "").split("\n")[0].rstrip(".") for name, kind in GROUPS.items()}
    groups = {name: title[0].lower() + title[1:] for name, title in groups.items()}
    groups["data.augmentation"] = "single settings in place of the preset's (data.augment)"
    return {"data": _PARTS["data"], **groups, **_PARTS}


def _describe_section(
    section: str, title: str, sections: Mapping[str, Mapping[str, tuple[str, str]]], width: int
) -> list[str]:
    lines = [f"{section}: {title}"]
    for option, (text, default) in sections[section].items():
        lines += [f"  {option}"]
        lines += textwrap.wrap(text + default, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return lines


def _describe_topic(
    topic: str,
    sections: Mapping[str, Mapping[str, tuple[str, str]]],
    titles: Mapping[str, str],
    prog: str,
    width: int,
) -> str:
    """Format a part with its groups, a group, or one setting."""
    if topic in titles:
        lines = _describe_section(topic, titles[topic], sections, width)
        groups = {name: title for name, title in titles.items() if name.startswith(f"{topic}.")}
        if groups:
            lines += ["", f"groups (`{prog} --help NAME` lists their settings):", format_terms(groups)]
        return "\n".join(lines)
    option = f"--{topic.removeprefix('--')}"
    for section, settings in sections.items():
        if option in settings:
            return "\n".join(_describe_section(section, titles[section], {section: {option: settings[option]}}, width))
    known = [*titles, ALL, *(name.removeprefix("--") for settings in sections.values() for name in settings)]
    raise ConfigError(f"--help {topic}: unknown part, group or setting{closest(topic, known)}")


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
