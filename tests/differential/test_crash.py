"""An engine is killed between any two stores: what is in the memory is a table, and its connections go on.

The Python twin's memory counts the words that are stored and stops at each.  The compiled table runs in a process
of its own, which is stopped at every instruction and looked at whenever its memory has changed.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path as FilePath
from types import ModuleType

import pytest
from support.backends import load_backend, table_config
from support.crash_steps import AT, CAPACITY, FINISHED, STEPS, approve_all
from support.mortal import Killed, LeftBehind, MortalMemory, taken_over

from natengine.fastpath import FastPath
from natengine.flow.records import FlowInfo

PTRACE_SINGLESTEP = 9
PROJECT = FilePath(__file__).parents[2]
Identity = tuple[object, ...]


def flows_of(table: FastPath) -> dict[Identity, FlowInfo]:
    """Every flow by what never changes about it."""
    return {(flow.flow_id, *flow.spec[:9]): flow for flow in table.snapshot()}


@pytest.fixture(scope="module")
def expected() -> list[dict[Identity, FlowInfo]]:
    """The flows before each step and after the last one; the same on either twin (see test_twins)."""
    table: FastPath = load_backend("python").FastPath(table_config(CAPACITY))
    flows = [flows_of(table)]
    for step in STEPS:
        step(table)
        flows.append(flows_of(table))
    return flows


def is_of_either(found: FlowInfo, *known: FlowInfo) -> bool:
    """Whether each field is as before the step or as after it; the numbers may be unheard instead."""
    unheard = all(not side.max_win for side in found.sides)
    numbers = zip(*(sum(map(tuple, each.sides), ()) for each in (found, *known)), strict=True)
    fields = zip(*((*each, *each.spec) for each in (found, *known)), strict=True)
    return all(mine in theirs for mine, *theirs in fields if mine not in (found.sides, found.spec)) and (
        unheard or all(mine in theirs for mine, *theirs in numbers)
    )


@pytest.fixture
def left(tmp_path: FilePath) -> LeftBehind:
    return LeftBehind(tmp_path, CAPACITY)


def check(
    backend: ModuleType, memory: bytes, at: int, expected: list[dict[Identity, FlowInfo]], left: LeftBehind
) -> None:
    """The engine was killed during step `at`."""
    table = taken_over(backend, memory)
    assert left.is_sound(memory, len(table))
    found, before, after = flows_of(table), expected[at], expected[at + 1]
    assert before.keys() & after.keys() <= found.keys() <= before.keys() | after.keys()
    for identity, flow in found.items():
        known = [flows[identity] for flows in (before, after) if identity in flows]
        assert is_of_either(flow, *known), (flow, known)
    approve_all(table)
    for step in STEPS[at:]:                 # what was under way is sent again, and then all goes on
        step(table)
    assert set(flows_of(table)) == set(expected[-1])


def test_python_killed_at_every_store(expected: list[dict[Identity, FlowInfo]], left: LeftBehind) -> None:
    """The pure twin, word by word."""
    backend, stores = load_backend("python"), 0
    while True:
        memory = MortalMemory(CAPACITY, stores)
        table = backend.FastPath(table_config(CAPACITY), memory)
        at = 0
        try:
            for at, step in enumerate(STEPS):       # noqa: B007
                step(table)
        except Killed:
            check(backend, bytes(memory.bytes), at, expected, left)
            stores += 1
            continue
        break
    assert stores > 100


def states_of_the_child(path: FilePath) -> Iterator[tuple[int, bytes]]:
    """Run the steps in a traced process; yield the step and the records after every store."""
    libc = ctypes.CDLL(None, use_errno=True)
    env = {**os.environ, "PYTHONPATH": f"{PROJECT / 'tests'}:{PROJECT}"}
    child = subprocess.Popen([sys.executable, "-m", "support.crash_steps", str(path)], env=env)
    try:
        _, status = os.waitpid(child.pid, 0)
        if os.WIFEXITED(status):
            child.returncode = os.waitstatus_to_exitcode(status)
            pytest.skip("ptrace is not allowed here")
        with path.open("r+b") as file:
            shared = mmap.mmap(file.fileno(), 0)
        last = b""
        while shared[AT] != FINISHED:
            assert libc.ptrace(PTRACE_SINGLESTEP, child.pid, 0, 0) == 0, os.strerror(ctypes.get_errno())
            _, status = os.waitpid(child.pid, 0)
            assert os.WIFSTOPPED(status) and os.WSTOPSIG(status) in (signal.SIGTRAP, signal.SIGSTOP), status
            if shared[:AT] != last:
                last = shared[:AT]
                yield shared[AT], last
    finally:
        if child.returncode is None:
            child.kill()
            child.wait()


@pytest.mark.timeout(600)                   # a hundred thousand stops
def test_compiled_killed_at_every_store(
    tmp_path: FilePath, expected: list[dict[Identity, FlowInfo]], left: LeftBehind
) -> None:
    """The compiled twin, instruction by instruction; what it leaves, either twin can take over."""
    backends = [load_backend("cython"), load_backend("python")]
    path = tmp_path / "records"
    path.write_bytes(bytes(AT) + b"\0")
    stores = 0
    for at, memory in states_of_the_child(path):
        for backend in backends:
            check(backend, memory, at, expected, left)
        stores += 1
    assert stores > 100
