"""Every module can be imported by itself, first, by anybody, without a warning or a side effect."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import natengine

ROOT = Path(natengine.__file__).parent
# a package that a module cannot do without
NEEDS = {
    "natengine.adapters.nfqueue": "netfilterqueue",
    "natengine.adapters.rtnetlink": "pyroute2",
    "natengine.app.render": "rich",
}
# imported with -W error, these packages' own modules warn
WARNS = ("ignore::DeprecationWarning:pyroute2", "ignore::DeprecationWarning:netfilterqueue")

MODULES = sorted(
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in ROOT.rglob("*.py")
    if path.name != "__main__.py"
)
SCRIPT = """
import os, signal, sys, threading
sys.path.insert(0, {root!r})

def state():
    umask = os.umask(0o22)
    os.umask(umask)
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    return handlers, os.getcwd(), dict(os.environ), umask

before = state()
import importlib
for name in {names!r}:
    try:
        importlib.import_module(name)
    except ImportError as error:
        if getattr(error, "name", None) not in {optional!r}:
            raise
assert before == state(), "an import changed something"
assert threading.active_count() == 1, "an import started a thread"
"""
OPTIONAL = ("netfilterqueue", "pyroute2", "rich", "natengine._fastpath", "natengine.adapters._nfqueue")


def nobody() -> list[str]:
    """Return what makes a command run as nobody; empty where we are nobody, or nobody cannot run this Python."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        return []
    prefix = ["setpriv", "--reuid=65534", "--clear-groups"]
    # an interpreter in root's home would be found by nobody, but not its library
    script = f"import sys; open({str(ROOT / 'vocab.py')!r}).close(); print(sys.base_prefix)"
    done = subprocess.run(
        [*prefix, sys.executable, "-I", "-c", script], capture_output=True, text=True, check=False
    )
    return prefix if done.stdout.strip() == sys.base_prefix else []


AS_NOBODY = nobody()


def run(names: list[str]) -> subprocess.CompletedProcess[str]:
    """Import modules in a fresh interpreter, as nobody where that can be."""
    argv = [*AS_NOBODY, sys.executable, "-I", "-W", "error"]
    for warning in WARNS:
        argv += ["-W", warning]
    argv += ["-c", SCRIPT.format(root=str(ROOT.parent), names=names, optional=OPTIONAL)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("module", MODULES)
def test_alone(module: str) -> None:
    """First and alone: no module leans on what another one happened to import before."""
    needs = NEEDS.get(module)
    if needs is not None and importlib.util.find_spec(needs) is None:
        pytest.skip(f"needs {needs}")
    done = run([module])
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("backwards", [False, True])
def test_all_together(backwards: bool) -> None:
    """In either order."""
    done = run(MODULES[::-1] if backwards else MODULES)
    assert done.returncode == 0, done.stderr


def test_the_engine_needs_nothing_but_python() -> None:
    """Everything that decides can be used where no package of the edges is installed."""
    pure = [name for name in MODULES if not name.startswith(("natengine.adapters", "natengine.app"))]
    script = (
        f"import sys\nsys.path.insert(0, {str(ROOT.parent)!r})\n"
        f"import importlib\nfor name in {pure!r}: importlib.import_module(name)\n"
        "found = {n.split('.')[0] for n in sys.modules} - sys.stdlib_module_names - {'natengine'}\n"
        "print(sorted(n for n in found if not n.startswith(('_', 'cython'))))\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
