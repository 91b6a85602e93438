"""A lab whose hosts are silent, and in it one gateway after the other; results become docs/conformance.md.

Without NATENGINE_CONFORMANCE only natengine is tested; with it (the file to write) the kernel, too, whose failures are
results and not errors.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gateway_tools import missing, try_up
from natlab import Lab, unique_prefix

import natengine
from conformance.network import U1, U2, U3, Network, Tap
from conformance.rows import SUBJECTS, Requirement, Table
from conformance.subjects import START, Subject

TO_WRITE = os.environ.get("NATENGINE_CONFORMANCE")
TABLE = pytest.StashKey[Table]()

HOSTS = ("worker1", "worker2", "inet2")


@pytest.fixture(scope="session")
def silent_lab() -> Iterator[Lab]:
    """A lab in which nobody answers but the gateway."""
    lab = Lab(unique_prefix("ltcf"))
    reason = try_up(lab)
    if reason is not None:
        pytest.skip(reason)
    try:
        reason = missing(lab)
        if reason is not None:
            pytest.skip(reason)
        for host in HOSTS:
            lab.node(host).run(["iptables", "-w", "-A", "INPUT", "-j", "DROP"], timeout=20)
        for each in (U1, U2, U3):
            lab.node("inet2").run(["ip", "address", "add", f"{each}/24", "dev", "eth0"], timeout=20)
        yield lab
    finally:
        lab.down()


@pytest.fixture(scope="session")
def taps(silent_lab: Lab) -> Iterator[dict[str, Tap]]:
    """The cables of the hosts."""
    with contextlib.ExitStack() as stack:
        yield {
            host: stack.enter_context(contextlib.closing(Tap(silent_lab.node(host)))) for host in HOSTS
        }


class Running:
    """The gateway that runs; another one is started when a test wants another."""

    def __init__(self, lab: Lab, name: str) -> None:
        self._lab, self._name = lab, name
        self._now: tuple[str, tuple[str, ...]] | None = None
        self._stack = contextlib.ExitStack()
        self.network: Network | None = None

    def get(self, wanted: Requirement) -> tuple[Subject, bool]:
        """The gateway that a requirement wants; and whether it is another one than before."""
        how = wanted.settings, wanted.rules
        if how == self._now:
            return self._subject, False
        self.close()
        self._subject: Subject = self._stack.enter_context(START[self._name](self._lab, wanted))
        self._now = how
        return self._subject, True

    def close(self) -> None:
        self._now = None
        self._stack.close()


@pytest.fixture(scope="session", params=SUBJECTS if TO_WRITE else SUBJECTS[:1])
def running(request: pytest.FixtureRequest, silent_lab: Lab) -> Iterator[Running]:
    """One subject after the other."""
    current = Running(silent_lab, request.param)
    yield current
    current.close()


@pytest.fixture(scope="session")
def ports() -> Iterator[int]:
    """Ports that no test has used before."""
    return itertools.count(10_000, 10)


@pytest.fixture
def net(request: pytest.FixtureRequest, running: Running, taps: dict[str, Tap], ports: Iterator[int]) -> Network:
    """The network around the gateway that the test's requirement wants."""
    mark = request.node.get_closest_marker("requirement")
    wanted: Requirement = mark.args[0]
    subject, is_new = running.get(wanted)
    if is_new or running.network is None:
        running.network = Network(running._lab, taps, subject, ports)
    return running.network


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put tests that want the same gateway one after the other: to start one takes seconds."""
    def gateway(item: pytest.Item) -> tuple[str, tuple[str, ...]]:
        mark = item.get_closest_marker("requirement")
        assert mark is not None
        return mark.args[0].settings, mark.args[0].rules

    places = [place for place, item in enumerate(items) if item.get_closest_marker("requirement")]
    for place, item in zip(places, sorted((items[place] for place in places), key=gateway), strict=True):
        items[place] = item


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Note the result of a row; what the kernel fails is expected to fail."""
    report = yield
    mark = item.get_closest_marker("requirement")
    if mark is None or report.when != "call":
        return report
    assert isinstance(item, pytest.Function)
    subject = item.callspec.params["running"]
    failure = None
    if call.excinfo is not None:
        if not call.excinfo.errisinstance(AssertionError):
            return report                           # not a result
        failure = str(call.excinfo.value).splitlines()[0].removesuffix(".") if str(call.excinfo.value) else ""
        failure = "" if failure.startswith("assert ") else failure
    table = item.config.stash.setdefault(TABLE, Table())
    table.record(mark.args[0], item.originalname, subject, failure)
    if subject == "kernel" and report.failed:
        report.outcome, report.wasxfail = "skipped", failure
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the table."""
    table = session.config.stash.get(TABLE, None)
    if TO_WRITE and table is not None:
        versions = {"natengine": natengine.__version__, "kernel": platform.release().split("-")[0]}
        Path(TO_WRITE).write_text(table.text(**versions))


