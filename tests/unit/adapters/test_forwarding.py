"""ip_forward: switched on, remembered across a kill, put back."""

from __future__ import annotations

from pathlib import Path

import pytest

from natengine.adapters import forwarding
from natengine.adapters.forwarding import Forwarding


@pytest.fixture
def switch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in the place of /proc/sys/net/ipv4/ip_forward, off."""
    path = tmp_path / "ip_forward"
    path.write_text("0\n")
    monkeypatch.setattr(forwarding, "IP_FORWARD", path)
    return path


@pytest.mark.parametrize("before", ["0\n", "1\n"])
def test_on_and_back(switch: Path, tmp_path: Path, before: str) -> None:
    """As it was, and without a trace."""
    switch.write_text(before)
    held = Forwarding(tmp_path)
    held.enable()
    assert switch.read_text() == "1\n"
    held.restore()
    assert switch.read_text() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["ip_forward"]


def test_enable_twice(switch: Path, tmp_path: Path) -> None:
    """The second time it is on already, but that was us."""
    held = Forwarding(tmp_path)
    held.enable()
    held.enable()
    held.restore()
    assert switch.read_text() == "0\n"


def test_after_a_kill(switch: Path, tmp_path: Path) -> None:
    """The successor knows how it was before its predecessor."""
    Forwarding(tmp_path).enable()
    successor = Forwarding(tmp_path)
    successor.enable()
    successor.restore()
    assert switch.read_text() == "0\n"


def test_restore_without_enable(switch: Path, tmp_path: Path) -> None:
    """Nothing was changed, so nothing is put back."""
    switch.write_text("1\n")
    Forwarding(tmp_path).restore()
    assert switch.read_text() == "1\n"


def test_somebody_else_has_switched_it_off(switch: Path, tmp_path: Path) -> None:
    """It is off as it was before; that is no reason to fail."""
    held = Forwarding(tmp_path)
    held.enable()
    switch.write_text("0\n")
    held.restore()
    assert switch.read_text() == "0\n"
