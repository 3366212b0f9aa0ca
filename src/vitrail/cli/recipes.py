"""Verbs that take a recipe and dotted settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.catalogue import read_catalogue
from vitrail.cli.recipe_help import describe_recipe_verb
from vitrail.config.changes import split_words
from vitrail.config.data import DataConfig
from vitrail.config.data_groups import GROUPS
from vitrail.config.load import dump_recipe, list_settings, load_recipe, read_yaml
from vitrail.config.schema import Recipe
from vitrail.config.text import Written
from vitrail.errors import ConfigError

if TYPE_CHECKING:
    import argparse

    from vitrail.runs.folder import RunFolder


def read_recipe_arguments(
    prog: str, description: str, argv: list[str], flags: Mapping[str, str], more: Mapping[str, str] | None = None
) -> tuple[Recipe | None, set[str]]:
    """Read ``[RECIPE.yaml] [--flag] [--part.setting value ...]``.

    Args:
        prog: The command, for usage and errors.
        description: Description of the verb.
        argv: Arguments after the verb.
        flags: Options without a value -> help.
        more: Options that the verb has read already -> help.

    Returns:
        The recipe and the flags that were given; no recipe when the command has already answered
        (``--help``, ``--print-config``).

    Raises:
        ConfigError: Wrong usage.
    """
    own = {**flags, "--print-config": "print the resolved recipe and stop"}
    words = ["--print-config" if word == "--print_config" else word for word in argv]  # as it was once spelled
    if {"-h", "--help"} & set(words):
        name = _value_of("--model.name", words)
        of_model = None if name is None else (_settings_of(name), _defaults_of)
        print(describe_recipe_verb(prog, description, {**(more or {}), **own}, name, of_model, _topic(words)))
        return None, set()
    given = {word for word in words if word in own}
    words = [word for word in words if word not in own]
    settings, others = split_words(words)
    strange = {name: value for name, value in settings.items() if "." not in name}
    if strange:
        load_recipe(None, strange, settings_of=_settings_of, prog=prog, flags=own)  # names what was meant
    file = others.pop(0) if others else None
    if others:
        raise ConfigError(f"unexpected argument {others[0]!r}; {prog} takes one recipe and settings (`{prog} --help`)")
    content = {} if file is None else read_yaml(file)
    recorded = file is not None and _in_run_folder(Path(file))
    if file is not None and recorded and "--resume" in given:
        # The recipe of a run folder resumes that folder, wherever it has been moved and from wherever it is called.
        settings.setdefault("run.dir", Written(Path(file).parent))
    settings = _with_model_of_weights(content, settings)
    settings_of = _choose_settings_of(content, settings)
    recipe = load_recipe(file, settings, settings_of=settings_of, prog=prog, flags=own, recorded=recorded)
    if "--print-config" in given:
        print(dump_recipe(recipe), end="")
        return None, given
    return recipe, given


def _topic(words: list[str]) -> str | None:
    """Return the word after ``--help``, the settings that are asked for; None without one."""
    after = words[next(i for i, word in enumerate(words) if word in ("-h", "--help")) + 1 :]
    return after[0] if after and not after[0].startswith("--") else None


def _in_run_folder(file: Path) -> bool:
    """Check whether a recipe lies in its run's folder; other files of the run may be missing."""
    from vitrail.runs.folder import RunFolder

    run = RunFolder(file.parent)
    others = (run.environment, run.metrics, run.checkpoints, run.card, run.weights)
    return file.name == run.recipe.name and any(other.exists() for other in others)


def _with_model_of_weights(content: Mapping[str, Any], settings: Mapping[str, Written]) -> dict[str, Any]:
    """Add the model of the weights to the settings, where weights are given and no model is named.

    Args:
        content: The recipe's file.
        settings: Settings of the command line.

    Returns:
        These settings, and the name and settings that stand beside the weights, but those that follow from the data.
    """
    given = content.get("model")
    given = given if isinstance(given, Mapping) else {}
    named = {*settings, *(f"model.{key}" for key in given)}
    if "model.weights" not in named or "model.name" in named:
        return dict(settings)
    place = settings.get("model.weights", given.get("weights"))
    if not isinstance(place, str) or not Path(place).expanduser().is_dir():
        return dict(settings)

    from vitrail.weights.locations import find_weights, read_card

    card = find_weights(place).card
    if card is None:
        return dict(settings)
    model = read_card(card)
    of_data = ("num_classes", "in_chans", "spectral_chans")
    more = {f"model.{k}": v for k, v in model["settings"].items() if k not in of_data and f"model.{k}" not in named}
    return {**more, "model.name": model["name"], **settings}


def _value_of(option: str, words: list[str]) -> str | None:
    for word, following in zip(words, [*words[1:], None], strict=True):
        if word == option:
            return following
        if word.startswith(option + "="):
            return word.split("=", 1)[1]
    return None


def data_for_files(run: RunFolder, arguments: argparse.Namespace) -> DataConfig:
    """Return a run's data settings, for image files that are named on the command line.

    Args:
        run: The run.
        arguments: Arguments of the verb, with those of :meth:`VerbParser.add_unfit_files`.
    """
    return for_files(load_run_recipe(run.recipe).data, arguments)


def for_files(data: DataConfig, arguments: argparse.Namespace) -> DataConfig:
    """Return data settings for image files of the command line; arguments as for :func:`data_for_files`."""
    return data.changed(
        {
            "errors.on_band_mismatch": arguments.on_band_mismatch or "error",
            "errors.on_unreadable": arguments.on_unreadable or "error",
            **({} if arguments.folder_fps is None else {"video.folder_fps": arguments.folder_fps}),
        }
    )


@dataclasses.dataclass(frozen=True)
class _NoSettings:
    """The settings of a model of which none is given."""


def _choose_settings_of(content: Mapping[str, Any], settings: Mapping[str, Any]) -> Callable[[str], type[Any]]:
    """Return ``settings_of`` of :func:`load_recipe`: without torch where no setting of a family is given.

    Args:
        content: The recipe's file.
        settings: Settings of the command line.
    """
    given = set(settings)
    for part, values in content.items():
        given |= {f"{part}.{key}" for key in values} if isinstance(values, Mapping) else {part}
    known = {name for name, _ in list_settings()} | {f"data.{group}" for group in GROUPS}
    # A setting that no part has may be meant to be one of the family's.
    return _settings_of if given - known else _settings_of_known


def _settings_of_known(name: str) -> type[Any]:
    catalogue = read_catalogue()
    return _NoSettings if name in catalogue.families or name in catalogue.variants else _settings_of(name)


def _settings_of(name: str) -> type[Any]:
    from vitrail.models.registry import find_family

    return find_family(name)[0].config


def _defaults_of(name: str) -> dict[str, Any]:
    """Return the default of every setting of a model that is not given."""
    from vitrail.models.registry import complete_settings

    return complete_settings(name, {})


def load_run_recipe(
    path: Any, overrides: list[str] | Mapping[str, Any] | None = None, prog: str = "vitrail evaluate"
) -> Recipe:
    """Load the recipe of a run folder, with settings changed.

    Args:
        path: The run's recipe.yaml.
        overrides: Dotted settings, as words of the command line or by name.
        prog: The command, for usage errors.
    """
    recorded = isinstance(path, (str, Path)) and _in_run_folder(Path(path))
    return load_recipe(path, overrides or [], settings_of=_settings_of, prog=prog, recorded=recorded)


def make_recipe(content: Mapping[str, Any]) -> Recipe:
    """Build a recipe from plain values."""
    return load_recipe(content, settings_of=_settings_of)
