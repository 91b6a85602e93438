"""docs/conformance.md names tests that are there, and says of natengine what makes the suite pass."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"\| \*\*(?P<name>[^*]+)\*\* (?P<text>.+?) \| [^|]+ \| (?P<ours>\w.*) `(?P<test>\w+)` \| (.+) \|")


def rows() -> list[re.Match[str]]:
    lines = [line for line in (ROOT / "docs/conformance.md").read_text().splitlines() if line.startswith("| **")]
    found = [ROW.fullmatch(line) for line in lines]
    assert all(found), lines
    return [row for row in found if row is not None]


def marked() -> dict[str, str]:
    """Every test of the folder that the table is made of, with what its decorators say."""
    return {
        node.name: " ".join(ast.unparse(decorator) for decorator in node.decorator_list)
        for path in (ROOT / "tests/lab/conformance").glob("test_*.py")
        for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)
    }


def test_every_row_has_its_test() -> None:
    """Of the same requirement, and with its number in the test's name."""
    found = marked()
    assert len(rows()) > 50
    for row in rows():
        assert repr(row["name"]) in found[row["test"]], row["test"]
        assert repr(row["text"]) in found[row["test"]], row["test"]
        number = re.search(r"\d+", row["name"])
        assert number is not None and f"rfc{number[0]}" in row["test"]


def test_no_test_stands_in_two_rows() -> None:
    names = [row["test"] for row in rows()]
    assert len(names) == len(set(names))


def test_natengine_conforms() -> None:
    """A row with another answer is one that the suite fails."""
    assert {row["ours"] for row in rows()} == {"yes"}
