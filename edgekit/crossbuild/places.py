"""Files that compilers read."""

from __future__ import annotations

from pathlib import Path


def write(path: Path, text: str, *, executable: bool = False) -> Path:
    """Write a file unless it is just so already: a new time of modification would compile everything again."""
    if not path.is_file() or path.read_text(encoding="utf8") != text:
        path.write_text(text, encoding="utf8")
    path.chmod(0o755 if executable else 0o644)
    return path
