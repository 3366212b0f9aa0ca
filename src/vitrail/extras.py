"""Packages that only some features need: imported where they are used, by name of the extra that brings them."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from vitrail.errors import VitrailError


def import_extra(package: str, extra: str) -> ModuleType:
    """Import a package that an extra of vitrail brings.

    Args:
        package: Its name, with that of a module if wanted (``"timm.layers"``).
        extra: The extra's name (``"peers"``).

    Raises:
        VitrailError: It is not installed (the message says what to install), or its import fails.
    """
    root = package.partition(".")[0]
    if importlib.util.find_spec(root) is None:
        raise VitrailError(f"{root} is not installed; install it with `pip install 'vitrail[{extra}]'`")
    try:
        return importlib.import_module(package)
    except (ImportError, RuntimeError) as error:
        raise VitrailError(
            f"{root} is installed but cannot be imported here: {error}; repair it with "
            f"`pip install --force-reinstall 'vitrail[{extra}]'`"
        ) from error
