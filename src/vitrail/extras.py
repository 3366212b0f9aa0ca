"""Packages that only some features need: imported where they are used, by name of the extra that brings them."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from types import ModuleType
from typing import Any

from vitrail.errors import VitrailError

# Packages that report each import and each conversion to a service for statistics unless their user has declined.
_REPORTING = ("openvino", "nncf")


@functools.cache
def send_no_usage_reports() -> None:
    """Disable usage reports of OpenVINO and NNCF unless their user has agreed to them (``opt_in_out --opt_in``).

    They ask nobody: without an answer they send, each time by a process of its own. Call this before they are imported.
    """
    if importlib.util.find_spec("openvino_telemetry") is None:
        return
    checks = importlib.import_module("openvino_telemetry.utils.opt_in_checker")
    known = checks.OptInChecker.check

    def check(self: Any, *args: Any, **kwargs: Any) -> Any:
        answer = known(self, *args, **kwargs)
        return answer if answer is checks.ConsentCheckResult.ACCEPTED else checks.ConsentCheckResult.DECLINED

    checks.OptInChecker.check = check


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
        if root in _REPORTING:
            send_no_usage_reports()
        return importlib.import_module(package)
    except (ImportError, AttributeError, RuntimeError) as error:
        raise VitrailError(
            f"{root} is installed but cannot be imported here: {error}; repair it with "
            f"`pip install --force-reinstall 'vitrail[{extra}]'`"
        ) from error
