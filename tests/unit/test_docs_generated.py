"""Pages made from the code are what the code says now."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["cli.md", "errors.md", "training.md"])
def test_page_is_up_to_date(page: str) -> None:
    assert (DOCS / page).read_text(encoding="utf8") == generator().PAGES[page](), "run python docs/generate.py"


def test_every_verb_option_and_subcommand_is_described() -> None:
    page = generator().cli_page()
    for words in ("## edgekit build", "`--bits", "## edgekit cache", "### edgekit cache clean", "### edgekit targets"):
        assert words in page
    assert "| `--help`" not in page


def test_every_error_says_what_to_do() -> None:
    made = generator()
    codes = [kind.exit_code for kind in made.kinds()]
    assert len(codes) == len(set(codes)) > 20
    for kind in made.kinds():
        meaning, remedy = made.meaning_and_remedy(kind)
        assert meaning.endswith("."), kind
        assert remedy.endswith("."), f"{kind.__name__} has no remedy in its docstring"
