"""Rendering of page templates, in one environment."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import jinja2
from markupsafe import Markup, escape

from vitrail import __version__


def _with_code(text: str) -> Markup:
    """Mark text between backticks as code; keep a number beside its per cent sign."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text)).replace(" %", "\u00a0%")))


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vitrail.report", "templates"), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters["code"] = _with_code
    return environment


def render(template: str, title: str, **values: Any) -> str:
    """Render a page.

    Args:
        template: File of its template.
        title: Title of the page.
        **values: Values that the template needs.
    """
    return _environment().get_template(template).render(title=title, version=__version__, **values)
