"""sd_notify, over a real datagram socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from natengine.adapters.notify import notify, watchdog_interval_s


@pytest.fixture
def manager() -> Iterator[socket.socket]:
    """A service manager."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as link:
        link.settimeout(10)
        yield link


def test_path(manager: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All states in one datagram, a line each."""
    manager.bind(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    assert notify("READY=1", "STATUS=all is well")
    assert manager.recv(4096) == b"READY=1\nSTATUS=all is well"


def test_abstract_address(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """@ stands for the zero byte."""
    manager.bind(f"\0natengine-test-{os.getpid()}")
    monkeypatch.setenv("NOTIFY_SOCKET", f"@natengine-test-{os.getpid()}")
    assert notify("WATCHDOG=1")
    assert manager.recv(4096) == b"WATCHDOG=1"


@pytest.mark.parametrize("address", [None, "", "/nowhere/notify"])
def test_no_manager(address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Started by hand: nobody wants to know."""
    if address is None:
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    else:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not notify("READY=1")


@pytest.mark.parametrize(
    ("usec", "pid", "interval"),
    [
        ("30000000", None, 15.0), ("1000000", None, 0.5), ("30000000", "self", 15.0), ("30000000", "1", None),
        ("0", None, None), ("", None, None), ("x", None, None), (None, None, None), ("-5", None, None),
    ],
)
def test_watchdog(
    usec: str | None, pid: str | None, interval: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of what is allowed; somebody else's watchdog is none of ours."""
    pid = str(os.getpid()) if pid == "self" else pid
    for name, value in (("WATCHDOG_USEC", usec), ("WATCHDOG_PID", pid)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert watchdog_interval_s() == interval
