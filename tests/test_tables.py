"""The generated tables of the manual pages."""

from __future__ import annotations

import generate_tables
import pytest


def test_tables_are_current() -> None:
    """A page lists an objective that was renamed, or leaves a new one out."""
    stale = [str(page.relative_to(generate_tables.ROOT)) for page in generate_tables.stale()]
    assert not stale, f"out of date: {stale}; run python tests/generate_tables.py"


def test_a_table_is_replaced_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page loses what stands around its tables, or keeps an old row below the new ones."""
    monkeypatch.setitem(
        generate_tables.TABLES, "two", lambda: generate_tables.table(("a", "b"), [("x|y", "1\n2")])
    )
    page = "before\n<!-- table: two -->\nold\nrows\n<!-- end -->\nafter <!-- end -->\n"
    expected = (
        "before\n<!-- table: two -->\n| a | b |\n| :-- | :-- |\n| x\\|y | 1 2 |\n<!-- end -->\n"
        "after <!-- end -->\n"
    )
    assert generate_tables.rewritten(page) == expected
    assert generate_tables.rewritten(expected) == expected


@pytest.mark.parametrize(
    "page", ["<!-- table: unknown -->\n<!-- end -->", "<!-- table: tasks -->\n"]
)
def test_a_wrong_mark_is_an_error(page: str) -> None:
    """A misspelt name leaves an old table in the page for ever."""
    with pytest.raises(ValueError, match="table: NAME"):
        generate_tables.rewritten(page)
