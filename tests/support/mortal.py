"""Memory whose owner can be killed at a store, and what becomes of it: a state file, the next engine's table."""

from __future__ import annotations

import mmap
from pathlib import Path
from types import ModuleType

from support.backends import table_config

from natengine.adapters.statefile import RECORDS_AT, Layout, StateFile
from natengine.app.state import check
from natengine.fastpath import FastPath
from natengine.flow.image import LAYOUT, RECORD_BYTES


class Killed(Exception):
    """The engine is no more."""


class MortalMemory:
    """Memory whose owner dies at a store; a store is what lies in one word of 8 bytes."""

    def __init__(self, capacity: int, stores: int) -> None:
        self.bytes, self.left = bytearray(capacity * RECORD_BYTES), stores

    def __len__(self) -> int:
        return len(self.bytes)

    def __getitem__(self, part: slice) -> bytes:
        return bytes(self.bytes[part])

    def __setitem__(self, part: slice, value: bytes) -> None:
        at, written = part.start, 0
        while written < len(value):
            if not self.left:
                raise Killed
            self.left -= 1
            chunk = value[written:written + 8 - at % 8]
            self.bytes[at:at + len(chunk)] = chunk
            at, written = at + len(chunk), written + len(chunk)


class LeftBehind:
    """A state file, for `natengine state check` to look at what engines have left."""

    def __init__(self, directory: Path, capacity: int) -> None:
        self._path = directory / "left.state"
        StateFile(self._path, Layout(LAYOUT, RECORD_BYTES), capacity).close(keep=True)

    def is_sound(self, memory: bytes, flows: int) -> bool:
        """Whether the checker finds so many flows in it, and nothing to complain about (else it raises)."""
        with self._path.open("r+b") as file:
            file.seek(RECORDS_AT)
            file.write(memory)
        return f"sound, {flows} flows" in check(self._path)


def taken_over(backend: ModuleType, memory: bytes, now_ns: int = 0) -> FastPath:
    """Return the table that the next engine has."""
    own = mmap.mmap(-1, len(memory))
    own[:] = memory
    table: FastPath = backend.FastPath(table_config(len(memory) // RECORD_BYTES), own, now_ns)
    return table
