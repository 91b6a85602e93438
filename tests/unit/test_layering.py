"""Imports point one way.  ALLOWED is the one written form of the picture in ARCHITECTURE.md.

A module in a package that is not listed fails with a KeyError, so nobody adds a layer by accident.
Imports inside functions count too.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import natengine

ROOT = Path(natengine.__file__).parent

WORDS = {"errors", "vocab"}
ALLOWED: dict[str, set[str]] = {        # layer -> layers it may import
    "errors": set(),
    "vocab": {"errors"},
    "settings": WORDS,
    "wire": WORDS,
    "flow": WORDS | {"settings", "wire"},
    "rules": WORDS | {"wire"},
    "fastpath": WORDS | {"settings", "wire", "flow"},
    "nat": WORDS | {"settings", "wire", "flow", "rules", "fastpath"},
    "frontend": WORDS | {"settings", "wire", "rules"},
    "adapters": WORDS | {"wire"},
    "app": WORDS | {"settings", "wire", "flow", "rules", "fastpath", "nat", "frontend", "adapters"},
}
LAYER_OF = {        # and in C
    "_fastpath": "fastpath", "_fastpath_py": "fastpath", "_wire": "wire", "_tcp_window": "flow", "_flow_record": "flow",
    "_flow_index": "flow", "_flow_deadline": "flow",
}
EXEMPT = {"__init__", "__main__"}       # of the package itself: they only pass on
# What compiled sources share in C.  The batched loop meets the flow table there, so that a packet of a
# known flow never enters Python: the one place where an adapter knows a layer above the words.
CIMPORTS = {
    "_wire": set(),
    "_tcp_window": {"natengine._wire"},
    "_flow_record": {"natengine._wire", "natengine._tcp_window"},
    "_flow_index": {"natengine._wire", "natengine._flow_record"},
    "_flow_deadline": {"natengine._wire", "natengine._tcp_window", "natengine._flow_record"},
    "_fastpath": {
        "natengine._wire", "natengine._tcp_window", "natengine._flow_record", "natengine._flow_index",
        "natengine._flow_deadline",
    },
    "adapters/_message": {"natengine._wire", "natengine.adapters._nfqueue"},
    "adapters/_nfqueue": {
        "natengine._wire", "natengine._fastpath", "natengine.adapters._hush", "natengine.adapters._message"
    },
}

PURE = set(ALLOWED) - {"adapters", "app"}
IO_MODULES = {
    "asyncio", "fcntl", "io", "logging", "multiprocessing", "os", "pathlib", "random", "secrets", "select",
    "selectors", "shutil", "signal", "socket", "subprocess", "tempfile", "threading", "time",
}


def layer_of(module: str) -> str:
    """Return the layer of `natengine.X…`."""
    part = module.split(".")[1]
    return LAYER_OF.get(part, part)


def sources(suffix: str) -> Iterator[tuple[Path, str]]:
    """Every source file with its module name."""
    for path in sorted(ROOT.rglob(f"*{suffix}")):
        words = path.relative_to(ROOT).with_suffix("").parts
        yield path, ".".join(["natengine", *(word for word in words if word != "__init__")])


def imports(text: str, module: str, *, is_package: bool) -> Iterator[str]:
    """Every module, or name in a module, that a source imports, absolutely."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = parts[:len(parts) - max(node.level - 1, 0)] if node.level else []
            for alias in node.names:            # `from .. import nat` names a module too
                yield ".".join([*base, *filter(None, [node.module]), alias.name])


MODULES = [
    (path, module) for path, module in sources(".py") if path.parent != ROOT or path.stem not in EXEMPT
]


@pytest.mark.parametrize(("path", "module"), MODULES, ids=[module for _, module in MODULES])
def test_imports_point_down(path: Path, module: str) -> None:
    """Each import of ours is allowed to this layer; a pure layer touches nothing outside."""
    layer = layer_of(module)
    for name in imports(path.read_text(), module, is_package=path.name == "__init__.py"):
        first = name.split(".")[0]
        if first == "natengine":
            if name == "natengine.__version__":
                continue
            other = layer_of(name)
            assert other == layer or other in ALLOWED[layer], f"{module} imports {name}"
        elif layer in PURE:
            assert first not in IO_MODULES, f"{module} is pure and imports {name}"
            assert first in sys.stdlib_module_names, f"{module} is pure and imports {name}"


def test_allowed_has_no_cycles() -> None:
    """Nor layers that nobody knows."""
    def below(layer: str, path: tuple[str, ...]) -> None:
        assert layer not in path, " -> ".join((*path, layer))
        for lower in ALLOWED[layer]:
            below(lower, (*path, layer))

    for layer in ALLOWED:
        below(layer, ())


def test_every_layer_is_there() -> None:
    """A layer that has gone is no longer allowed to anybody."""
    assert {layer_of(module) for _, module in MODULES} == set(ALLOWED)


COMPILED = [path for suffix in (".pyx", ".pxd") for path, _ in sources(suffix)]


@pytest.mark.parametrize("path", COMPILED, ids=[path.name for path in COMPILED])
def test_extensions(path: Path) -> None:
    """What the compiled sources import and cimport, read by eye: they are not Python."""
    where = path.relative_to(ROOT).with_suffix("")
    layer = layer_of(".".join(["natengine", *where.parts]))
    for line in path.read_text().splitlines():
        found = re.match(r"\s*(?:from\s+(\S+)\s+)?(c?import)\s+(\S+)", line)
        if found is None:
            continue
        module = found[1] or found[3]
        if not module.startswith("natengine"):
            assert layer not in PURE or module.split(".")[0] not in IO_MODULES, line
        elif found[2] == "cimport":
            assert module in CIMPORTS[where.as_posix()], line
        else:
            assert layer_of(module) in ALLOWED[layer] | {layer}, line


def test_the_reader_sees_what_it_should() -> None:
    """All forms of an import, in a function too."""
    text = "import a.b, c\nfrom d import e\nfrom . import f\nfrom ..g import h\ndef i():\n    import j\n"
    found = set(imports(text, "natengine.nat.engine", is_package=False))
    assert found == {"a.b", "c", "d.e", "natengine.nat.f", "natengine.g.h", "j"}
    found = set(imports("from . import x\nfrom .. import y\n", "natengine.nat", is_package=True))
    assert found == {"natengine.nat.x", "natengine.y"}
