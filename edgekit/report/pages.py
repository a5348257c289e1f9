"""Pages of their own: a template of this package with values; no string gets in uncleaned or unescaped."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from edgekit.report.words import clean


def page(template: str, **values: Any) -> str:
    """The page as HTML 5 text; equal values give equal pages.

    Args:
        template: name of a file of this package.
        values: what the template shows.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        finalize=lambda value: clean(value) if isinstance(value, str) else value,
    )  # fmt: skip
    return environment.from_string(files("edgekit.report").joinpath(template).read_text("utf8")).render(**values)
