"""Parsers for the verbs, with errors in vitrail's form."""

from __future__ import annotations

import argparse
import re
from typing import NoReturn

from vitrail.errors import ConfigError, closest


class VerbParser(argparse.ArgumentParser):
    """An argument parser that raises :class:`ConfigError` and names the closest known option.

    Args:
        verb: The verb, for the usage line.
        description: What the verb does.
    """

    def __init__(self, verb: str, description: str) -> None:
        super().__init__(
            prog=f"vitrail {verb}",
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the whole usage."""
        raise ConfigError(explain_usage_error(message, list(self._option_string_actions), self.prog))


def explain_usage_error(message: str, options: list[str], prog: str) -> str:
    """Add the closest known option to argparse's complaint about an unknown one."""
    unknown = re.search(r"unrecognized arguments: (\S+)", message)
    if unknown:
        option = unknown.group(1).split("=")[0]
        return f"unknown option {option!r}{closest(option, options)} (`{prog} --help` lists all)"
    return f"{' '.join(message.split())} (`{prog} --help` explains)"
