"""On which line a TOML file writes each key: the standard library's parser does not tell.

The text is scanned, not parsed: for valid TOML the result is exact, for anything else it is incomplete and the real
parser finds the error. Nesting is bounded here, before the real parser recurses into it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

KeyPath = tuple[str | int, ...]
MAX_DEPTH = 16

# Every string ends at the latest with its line or the text, so an unclosed one is read once: the scan stays linear.
_TOKEN = re.compile(
    r'(?P<string>"""(?:[^\\]|\\.)*?(?:"{3,5}|\\?\Z)'
    r"|'''.*?(?:'{3,5}|\Z)"
    r'|"(?:[^"\\\n]|\\[^\n])*"?'
    r"|'[^'\n]*'?)"
    r"|(?P<comment>\#[^\n]*)"
    r"|(?P<newline>\n)"
    r"|(?P<mark>[\[\]{}=,.])"
    r"|(?P<word>[^\s\[\]{}=,.#\"']+)",
    re.DOTALL,
)


class TooDeepError(ValueError):
    """Tables, arrays or dotted keys are nested deeper than MAX_DEPTH."""

    def __init__(self, line: int) -> None:
        super().__init__(f"nested deeper than {MAX_DEPTH} at line {line}")
        self.line = line


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    line: int


@dataclass
class _Scan:
    """Position in the tokens, and what was found so far. Lives for one call of key_lines."""

    tokens: list[_Token]
    at: int = 0
    lines: dict[KeyPath, int] = field(default_factory=dict)
    counts: dict[KeyPath, int] = field(default_factory=dict)
    """Array of tables → how many of its tables were opened."""

    def peek(self) -> _Token:
        return self.tokens[self.at]

    def take(self) -> _Token:
        self.at += 1
        return self.tokens[self.at - 1]

    def skip(self, *kinds: str) -> None:
        while self.peek().kind in kinds:
            self.at += 1

    def note(self, path: KeyPath, line: int) -> None:
        if len(path) > MAX_DEPTH:
            raise TooDeepError(line)
        self.lines.setdefault(path, line)


def key_lines(text: str) -> dict[KeyPath, int]:
    """Key path → line (from 1) of every key, table header and array item; keys as in the parsed data.

    Raises:
        TooDeepError: something is nested deeper than MAX_DEPTH.
    """
    scan = _Scan([*_tokens(text), _Token("end", "", text.count("\n") + 1)])
    prefix: KeyPath = ()
    while True:
        scan.skip("newline", "comment")
        token = scan.peek()
        if token.kind == "end":
            return scan.lines
        if token.text == "[" and token.kind == "mark":
            prefix = _header(scan)
        else:
            _pair(scan, prefix)
        _skip_line(scan)


def _tokens(text: str) -> list[_Token]:
    tokens, line, depth = [], 1, 0
    for match in _TOKEN.finditer(text):
        kind, part = match.lastgroup or "", match[0]
        if kind == "mark":
            depth = max(0, depth + (part in "[{") - (part in "]}"))
            if depth > MAX_DEPTH:
                raise TooDeepError(line)
        tokens.append(_Token(kind, part, line))
        line += part.count("\n")
    return tokens


def _skip_line(scan: _Scan) -> None:
    while scan.peek().kind not in ("newline", "end"):
        scan.at += 1


def _keys(scan: _Scan) -> list[str]:
    """A dotted key; parts beyond MAX_DEPTH raise."""
    parts: list[str] = []
    while scan.peek().kind in ("word", "string"):
        token = scan.take()
        parts.append(_unquoted(token) if token.kind == "string" else token.text)
        if len(parts) > MAX_DEPTH:
            raise TooDeepError(token.line)
        if scan.peek().text != ".":
            break
        scan.at += 1
    return parts


def _unquoted(token: _Token) -> str:
    if token.text.startswith("'"):
        return token.text[1:-1]
    try:
        return str(json.loads(token.text))
    except ValueError:  # an escape that only TOML has; the key stays unknown and errors name the table's line
        return token.text


def _header(scan: _Scan) -> KeyPath:
    """`[a.b]` or `[[a.b]]`; the path that the following pairs belong to."""
    line = scan.take().line
    many = scan.peek().text == "["
    scan.at += many
    path: KeyPath = ()
    parts = _keys(scan)
    for index, part in enumerate(parts):
        path = (*path, part)
        scan.note(path, line)
        if many and index == len(parts) - 1:
            scan.counts[path] = scan.counts.get(path, 0) + 1
        if path in scan.counts:
            path = (*path, scan.counts[path] - 1)
            scan.note(path, line)
    return path


def _pair(scan: _Scan, prefix: KeyPath) -> None:
    """`key = value`, at the top level or in an inline table."""
    line, path = scan.peek().line, prefix
    for part in _keys(scan):
        path = (*path, part)
        scan.note(path, line)
    if scan.peek().text == "=":
        scan.at += 1
        _value(scan, path)


def _value(scan: _Scan, path: KeyPath) -> None:
    opening = scan.peek()
    if opening.kind == "mark" and opening.text in "[{":
        scan.at += 1
        _items(scan, path, "]" if opening.text == "[" else "}")
        return
    while scan.peek().kind not in ("newline", "comment", "end") and scan.peek().text not in (",", "]", "}"):
        scan.at += 1


def _items(scan: _Scan, path: KeyPath, closing: str) -> None:
    """The inside of an array or inline table, up to and with the closing bracket."""
    index = 0
    while True:
        scan.skip("newline", "comment")
        token = scan.peek()
        if token.kind == "end":
            return
        if token.text == closing:
            scan.at += 1
            return
        before = scan.at
        if closing == "]":
            scan.note((*path, index), token.line)
            _value(scan, (*path, index))
        else:
            _pair(scan, path)
        index += 1
        scan.skip("newline", "comment")
        if scan.peek().text == "," or scan.at == before:
            scan.at += scan.peek().kind != "end"
