"""One lab for all tests of the gateway; engines in its head, on both fast paths; nothing left behind."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gateway_tools import OWNERS_RULES, head_state, leak_check, missing, missing_nft, settle, try_up
from natlab import Lab, LinkKind, unique_prefix
from natlab.engine import Engine
from support.backends import NAMES, load_backend

NewEngine = Callable[..., Engine]


@pytest.fixture(scope="session")
def gateway_lab() -> Iterator[Lab]:
    """A lab in which a gateway can run; skips, with the reason, where there can be none.

    Its links are those that NATLAB_LINKS names, or the best that the kernel has.
    """
    links = os.environ.get("NATLAB_LINKS")
    lab = Lab(unique_prefix("ltgw"), links=LinkKind(links) if links else None)
    reason = try_up(lab)
    if reason is not None:
        pytest.skip(reason)
    try:
        reason = missing(lab)
        if reason is not None:
            pytest.skip(reason)
        for worker in ("worker1", "worker2"):       # a FIN is repeated once and not for minutes
            lab.node(worker).sysctl("net/ipv4/tcp_orphan_retries", 1)
        yield lab
    finally:
        lab.down()


@pytest.fixture(scope="module")
def lab(gateway_lab: Lab) -> Iterator[Lab]:
    """The lab; in the whole module no packet with an inside source address gets to the internet."""
    before = head_state(gateway_lab)
    with leak_check(gateway_lab):
        yield gateway_lab
    assert before == head_state(gateway_lab)


@pytest.fixture(scope="module", params=NAMES)
def fast_path(request: pytest.FixtureRequest) -> str:
    """Both fast paths, or the one that NATENGINE_FASTPATH names."""
    load_backend(request.param)
    return str(request.param)


@pytest.fixture(scope="session")
def owners_rules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rules file with what the owner's commands make."""
    path = tmp_path_factory.mktemp("rules") / "owners.v4"
    path.write_text(OWNERS_RULES)
    return path


@pytest.fixture(scope="session")
def nft_is_missing(gateway_lab: Lab) -> str | None:
    """Why there can be no nft hooks on this kernel; None if there can."""
    return missing_nft(gateway_lab)


@pytest.fixture(params=["iptables", "nft"])
def hooks(request: pytest.FixtureRequest, nft_is_missing: str | None) -> str:
    """Both back ends of the hooks, where the kernel has them."""
    if request.param == "nft" and nft_is_missing:
        pytest.skip(nft_is_missing)
    return str(request.param)


@pytest.fixture
def new_engine(lab: Lab, fast_path: str) -> Iterator[NewEngine]:
    """A function that starts an engine; afterwards it stops, and the head is as it was."""
    before = head_state(lab)
    with contextlib.ExitStack() as stack:

        def start(*arguments: object, env: dict[str, str] | None = None) -> Engine:
            engine = Engine(lab, *map(str, arguments), env={"NATENGINE_FASTPATH": fast_path, **(env or {})})
            return stack.enter_context(engine)

        settle(lab)
        yield start
        settle(lab)
    assert before == head_state(lab)


@pytest.fixture
def engine(new_engine: NewEngine, owners_rules: Path) -> Engine:
    """An engine of this test's own, with the owner's rules."""
    return new_engine("--rules", owners_rules)


@pytest.fixture(scope="module")
def gateway(lab: Lab, fast_path: str, owners_rules: Path) -> Iterator[Engine]:
    """An engine with the owner's rules that many tests share; they change nothing about it."""
    with Engine(lab, "--rules", str(owners_rules), env={"NATENGINE_FASTPATH": fast_path}) as engine:
        yield engine
