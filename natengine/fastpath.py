"""Which of the two fast paths runs: the compiled one or its pure-Python twin.

`NATENGINE_FASTPATH` (read by the program, not here) is auto, cython or python.  `auto` takes the
compiled one if it was built; a name that cannot be honoured is an error, never a silent fallback.
"""

from __future__ import annotations

from types import ModuleType
from typing import Protocol

from natengine import _fastpath_py
from natengine._fastpath_py import FULL, NOT_FOUND, TAKEN
from natengine.errors import FastPathError
from natengine.flow.image import Memory
from natengine.flow.records import FlowInfo, FlowKey, FlowSpec
from natengine.flow.table_config import TableConfig
from natengine.flow.tcp_state import SEGMENT_OF_FLAGS, TRANSITIONS, timeouts_by_state
from natengine.flow.timeouts import NEVER_NS, timeouts_by_protocol
from natengine.settings import Settings
from natengine.wire.ipv4 import Ipv4Fields, Transport

__all__ = ["CHOICES", "FULL", "NOT_FOUND", "TAKEN", "FastPath", "TableConfig", "configure", "create", "select"]

CHOICES = ("auto", "cython", "python")


class FastPath(Protocol):
    """The contract of both twins; `_fastpath_py` says what each method does."""

    def read(self, packet: bytearray) -> tuple[Ipv4Fields, Transport]: ...
    def translate(self, packet: bytearray, hook: int, now_ns: int, out_ifindex: int = 0) -> int: ...
    def touch(self, flow_id: int, hook: int, length: int, now_ns: int) -> None: ...
    def install(self, spec: FlowSpec, now_ns: int) -> int: ...
    def remove(self, flow_id: int) -> FlowInfo | None: ...
    def find(self, key: FlowKey) -> int: ...
    def info(self, flow_id: int) -> FlowInfo | None: ...
    def oldest_unreplied(self) -> int: ...
    def find_on(self, outside_ip: int, first_id: int, looks: int) -> tuple[list[int], int]: ...
    def snapshot(self) -> list[FlowInfo]: ...
    def invalidate(self) -> None: ...
    def approve(self, flow_id: int, allow: int, uplink_ifindex: int) -> None: ...
    def doubt(self, flow_id: int) -> None: ...
    def clamp(self, mss_limits: dict[int, int]) -> None: ...
    def expire(self, now_ns: int, budget: int) -> list[FlowInfo]: ...
    def __len__(self) -> int: ...


def configure(settings: Settings, hash_key: bytes) -> TableConfig:
    """Return what a fast path with these settings is told; the key is 16 random bytes."""
    timeouts = settings.timeouts
    unacknowledged_ns = timeouts.tcp_unacknowledged_ns
    return TableConfig(
        settings.max_flows, timeouts_by_state(timeouts), timeouts_by_protocol(timeouts), TRANSITIONS, SEGMENT_OF_FLAGS,
        hash_key, settings.tcp_liberal, NEVER_NS if unacknowledged_ns is None else unacknowledged_ns,
        timeouts.udp_dns_ns, settings.udp_inbound_refresh,
    )


def create(choice: str, config: TableConfig, memory: Memory | None = None, now_ns: int = 0) -> tuple[str, FastPath]:
    """Return the name of a fast path (`BACKEND`) and a table of its kind; see `select` and `FastPath`."""
    module = select(choice)
    return module.BACKEND, module.FastPath(config, memory, now_ns)


def select(choice: str) -> ModuleType:
    """Return the module `_fastpath` or `_fastpath_py`; its `BACKEND` says which it is.

    Raises:
        FastPathError: The choice is unknown, or `cython` and the extension was not built.
    """
    if choice not in CHOICES:
        raise FastPathError(f"NATENGINE_FASTPATH={choice}: say one of {', '.join(CHOICES)}")
    if choice != "python":
        try:
            from natengine import _fastpath
        except ImportError as error:
            if choice == "cython":
                raise FastPathError(
                    f"NATENGINE_FASTPATH=cython, but the extension cannot be loaded ({error}); "
                    "build it with `pip install .`, or say NATENGINE_FASTPATH=python"
                ) from error
        else:
            return _fastpath
    return _fastpath_py
