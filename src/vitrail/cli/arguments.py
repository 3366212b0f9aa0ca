"""Argument parsers of the verbs, with vitrail's error format."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from typing_extensions import override

from vitrail.cli.tables import text_width
from vitrail.config.renamed import rename_options
from vitrail.config.text import read_word
from vitrail.errors import ConfigError, closest

# The beginning of a setting as --set takes it, KEY=VALUE or METHOD.KEY=VALUE.
_SETTING = re.compile(r"[A-Za-z_][\w.]*=")


def describe_default(value: object) -> str:
    """Format a default for an option's help; empty where the option is off or resolved elsewhere."""
    if value is None or value is False or value == argparse.SUPPRESS or (value != 0 and not value):
        return ""
    text = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return f" (default: {text.lower() if value is True else text})"


class _Help(argparse.HelpFormatter):
    """Help formatter that hides uninformative defaults."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=text_width())

    @override
    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.help is None or action.nargs == 0 or not action.option_strings:
            return action.help
        return action.help + describe_default(action.default).replace("%", "%%")


class VerbParser(argparse.ArgumentParser):
    """Argument parser that raises :class:`ConfigError` and names the closest known option.

    Args:
        verb: The verb, for the usage line.
        description: Description of the verb.
    """

    def __init__(self, verb: str, description: str) -> None:
        super().__init__(
            prog=f"vitrail {verb}",
            description=description,
            allow_abbrev=False,
            formatter_class=_Help,
        )

    def add_unfit_files(self) -> None:
        """Add the options for files that do not match a run's bands, or have no times."""
        for name, remedy, which in (
            ("errors.on_band_mismatch", "convert", "an image of other bands than the run's"),
            ("errors.on_unreadable", "skip", "files that cannot be read or have another number of bands"),
        ):
            self.add_argument(
                f"--data.{name}",
                dest=name.split(".")[1],
                choices=("error", remedy),
                help=f"handling of {which}; error for files that are named, as in training for the run's own",
            )
        self.add_argument(
            "--data.video.folder_fps",
            dest="folder_fps",
            type=float,
            metavar="RATE",
            help="frames a second of folders of frames, where a run's clips are in seconds; the run's if left out",
        )

    @override
    def add_argument(self, *names: Any, **settings: Any) -> argparse.Action:
        """Add an argument as argparse does; numbers without a name are shown as N."""
        if settings.get("type") is int and names[0].startswith("-"):
            settings.setdefault("metavar", "N")
        return super().add_argument(*names, **settings)

    @override
    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse as argparse does; data settings may have their names of earlier versions, which is reported."""
        return super().parse_known_args(rename_options(sys.argv[1:] if args is None else args), namespace)

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise ConfigError(explain_usage_error(message, list(self._option_string_actions), self.prog))


def repeat_set(argv: Sequence[str]) -> list[str]:
    """Write --set before each of the settings that follow one; a file after them stays a file.

    Args:
        argv: Arguments of a verb with the option ``--set``.
    """
    words: list[str] = []
    after_setting = False
    for word in argv:
        if after_setting and _SETTING.match(word):
            words.append("--set")
        after_setting = words[-1:] == ["--set"]
        words.append(word)
    return words


def parse_settings(words: Sequence[str]) -> dict[str, Any]:
    """Read ``KEY=VALUE`` words, as the option ``--set`` takes them.

    Args:
        words: Arguments, for example ``["depth=6", "depths=[2,2,6,2]"]``.

    Returns:
        Settings by name, values by YAML's core schema, lists as tuples.

    Raises:
        ConfigError: Not of this form, or given twice.
    """
    settings: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not key or not equals:
            raise ConfigError(f"--set takes KEY=VALUE (for example depth=6), got {word!r}")
        if key in settings:
            raise ConfigError(f"the setting {key!r} is given twice; keep one of them")
        try:
            value = read_word(text)
        except ConfigError as error:
            raise ConfigError(f"--set {word}: the value cannot be read ({error})") from error
        settings[key] = tuple(value) if isinstance(value, list) else value
    return settings


def explain_usage_error(message: str, options: list[str], prog: str) -> str:
    """Add the closest known option to argparse's complaint about an unknown one."""
    unknown = re.search(r"unrecognized arguments: (\S+)", message)
    if unknown:
        option = unknown.group(1).split("=")[0]
        return f"unknown option {option!r}{closest(option, options)} (`{prog} --help` lists all)"
    return f"{' '.join(message.split())} (`{prog} --help` explains)"
