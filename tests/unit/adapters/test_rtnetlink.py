"""What is read of the kernel's interfaces while they are changing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from natengine.adapters.rtnetlink import READS_AT_MOST, RouteSocket


class Changing:
    """In the place of a socket's dumps and events: so many changes come, one during each of the first readings."""

    def __init__(self, changes: int) -> None:
        self.readings, self._changes, self._waiting = 0, changes, False

    def read_once(self) -> int:
        self.readings += 1
        self._waiting = self.readings <= self._changes
        return self.readings

    def drain(self) -> None:
        self._waiting = False

    def poll(self, _timeout_ms: int) -> bool:
        return self._waiting


@pytest.fixture
def routes() -> Iterator[RouteSocket]:
    found = RouteSocket()
    yield found
    found.close()


def test_loopback(routes: RouteSocket) -> None:
    """Of a real kernel."""
    interfaces, _ = routes.read()
    assert "lo" in {each.name for each in interfaces}


@pytest.mark.parametrize(("changes", "readings"), [(0, 1), (1, 2), (3, 4), (1000, READS_AT_MOST)])
def test_what_changes_meanwhile_is_read_again(
    routes: RouteSocket, monkeypatch: pytest.MonkeyPatch, changes: int, readings: int
) -> None:
    """The last reading counts; and who never stops changing things does not hold the engine."""
    changing = Changing(changes)
    monkeypatch.setattr(routes, "_read_once", changing.read_once)
    monkeypatch.setattr(routes, "drain", changing.drain)
    monkeypatch.setattr(routes, "_poll", changing)
    assert routes.read() == changing.readings == readings
