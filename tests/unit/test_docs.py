"""Documentation that repeats the code says what the code says."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.coherence_table import exit_codes
from edgekit.cli.main import VERBS

ROOT = Path(__file__).parents[2]


def test_the_exit_codes_in_the_quickstart_are_those_of_the_code() -> None:
    assert exit_codes() in (ROOT / "docs" / "quickstart.md").read_text(encoding="utf8")


def test_every_exit_code_is_used_once() -> None:
    codes = re.findall(r"^\| (\d+) \|", exit_codes(), re.MULTILINE)
    assert len(codes) == len(set(codes)) > 15


def test_the_readme_names_every_verb() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf8")
    assert all(f"edgekit {verb}" in text for verb in VERBS)


def test_links_between_documents_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf8")):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"
