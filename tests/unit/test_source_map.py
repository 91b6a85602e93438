"""Sizes: what grows past them is to be cut in two, or listed here with the reason why not."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import natengine

ROOT = Path(natengine.__file__).parent
FILE_LINES, FUNCTION_LINES = 400, 50

# file -> (lines, reason)
LONG_FILES = {
    "_fastpath.pyx": (560, "one translation unit: what calls each other without the GIL stands together"),
}
# file:function -> (lines, reason)
LONG_FUNCTIONS: dict[str, tuple[int, str]] = {}

FILES = sorted(path for suffix in ("py", "pyx", "pxd", "pyi") for path in ROOT.rglob(f"*.{suffix}"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", FILES, ids=map(name, FILES))
def test_file(path: Path) -> None:
    """At most 400 lines."""
    limit, _reason = LONG_FILES.get(name(path), (FILE_LINES, ""))
    assert len(path.read_text().splitlines()) <= limit


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Every function with its number of lines, decorators not counted."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield f"{name(path)}:{node.name}", node.end_lineno - node.lineno + 1


def test_functions() -> None:
    """At most 50 lines each, docstring included."""
    too_long = {
        function: lines
        for path in FILES if path.suffix == ".py"
        for function, lines in functions(path)
        if lines > LONG_FUNCTIONS.get(function, (FUNCTION_LINES, ""))[0]
    }
    assert too_long == {}


def test_every_exception_is_needed() -> None:
    """What has become short again is no longer listed."""
    for file, (_, reason) in LONG_FILES.items():
        assert reason
        assert len((ROOT / file).read_text().splitlines()) > FILE_LINES, file
    found = dict(entry for path in FILES if path.suffix == ".py" for entry in functions(path))
    for function in LONG_FUNCTIONS:
        assert found[function] > FUNCTION_LINES, function


@pytest.mark.parametrize("path", [path for path in FILES if path.suffix == ".py"], ids=name)
def test_docstring(path: Path) -> None:
    """Every module says what it is."""
    assert path.name == "__main__.py" or ast.get_docstring(ast.parse(path.read_text()))
