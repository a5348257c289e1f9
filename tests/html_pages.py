"""What the tests of both HTML reports ask of a page."""

from __future__ import annotations

import re
from html.parser import HTMLParser

CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe]")
"""What no page may hold, whatever a stranger wrote."""


class Page(HTMLParser):
    """Tags in order, ends included, and all attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """See HTMLParser."""
        self.tags.append(tag)
        self.attributes += attrs

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """See HTMLParser."""
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        """See HTMLParser."""
        self.tags.append("/" + tag)


def section(page: str, name: str) -> str:
    """The section with that heading."""
    found = re.search(rf'<section[^>]*aria-labelledby="{name}".*?</section>', page, re.DOTALL)
    assert found is not None
    return found[0]


def needs_nothing_else(page: str) -> None:
    """One file: no script, no picture, no request."""
    attributes = Page(page).attributes
    assert page.startswith("<!DOCTYPE html>")
    assert "default-src 'none'" in page
    assert not re.search(r"\bsrc=|url\(|@import|<link|<script|<iframe|<img", page)
    assert all(str(value).startswith("#") for key, value in attributes if key == "href")
    assert not [key for key, _ in attributes if key.startswith("on")]


def labels_are_there_once(page: str) -> None:
    """Every id once, and whatever links or labels points to one."""
    attributes = Page(page).attributes
    ids = [value for key, value in attributes if key == "id"]
    assert len(ids) == len(set(ids))
    assert {str(value).lstrip("#") for key, value in attributes if key in ("href", "aria-labelledby")} <= set(ids)
