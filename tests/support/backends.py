"""The two fast paths as a pytest fixture: import `fastpath_backend` and every test runs on both.

`NATENGINE_FASTPATH=python|cython` restricts it to that one; asked for by name, a twin that was not
built is a failure and not a skip.
"""

from __future__ import annotations

import os
from types import ModuleType

import pytest

from natengine import _fastpath_py
from natengine._fastpath_py import TableConfig
from natengine.errors import FastPathError
from natengine.fastpath import configure, select
from natengine.settings import Settings, Timeouts

CHOICE = os.environ.get("NATENGINE_FASTPATH", "auto")
NAMES = {"auto": ("python", "cython")}.get(CHOICE, (CHOICE,))

DEFAULT = Timeouts()
KEY = bytes(range(16))                      # of the hash: the same in every run


def load_backend(name: str) -> ModuleType:
    """Return one twin, or skip the test with the reason why it is not there."""
    if name == "python":
        return _fastpath_py
    try:
        return select(name)  # type: ignore[return-value]
    except FastPathError as error:
        if name == CHOICE:
            raise
        pytest.skip(str(error))


def load_both() -> tuple[ModuleType, ModuleType]:
    """Return (python, cython) for a test that compares them."""
    return load_backend("python"), load_backend("cython")


@pytest.fixture(params=NAMES)
def fastpath_backend(request: pytest.FixtureRequest) -> ModuleType:
    """One of the two fast paths."""
    return load_backend(request.param)


def table_config(capacity: int = 16, timeouts: Timeouts = DEFAULT, **changes: object) -> TableConfig:
    """Return the configuration of the running engine, with a key that is the same in every run."""
    config = configure(Settings(max_flows=capacity, timeouts=timeouts), KEY)
    return config._replace(**changes)  # type: ignore[arg-type]
