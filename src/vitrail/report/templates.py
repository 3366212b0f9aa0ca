"""Rendering of page templates, in one environment."""

from __future__ import annotations

from functools import cache
from typing import Any

import jinja2

from vitrail import __version__


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("vitrail.report", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip


def render(template: str, title: str, **values: Any) -> str:
    """Render a page.

    Args:
        template: File of its template.
        title: Of the page.
        **values: What the template needs.
    """
    return _environment().get_template(template).render(title=title, version=__version__, **values)
