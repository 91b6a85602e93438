"""A host that has used up what it may have is refused, and costs the others nothing: counted in lines, not in time."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
from support.engines import Gateway, reason_of
from support.packets import udp
from support.steps import steps_of

from natengine.settings import Settings
from natengine.vocab import Decision, Reason

GREEDY, OTHER, PEER = "10.1.0.11", "10.1.0.12", "203.0.113.2"
SAMPLES = 20
MORE = 1.25                                     # a few lines are those of another branch
REFUSAL_STEPS = 700                             # lines at most, with the ICMP error; about half of it is needed
LIMIT = 50


def flow(host: str, n: int) -> bytearray:
    return udp(f"{host}:{20_000 + n} > {PEER}:53")


def by_limit(backend: ModuleType) -> Gateway:
    """Each host may have 50 ports."""
    return Gateway(backend, settings=Settings(max_ports_per_host=LIMIT))


def by_range(backend: ModuleType) -> Gateway:
    """The greedy host has a range of 50 ports for itself, and may not share them."""
    gateway = Gateway(backend, settings=Settings(port_overloading=False))
    gateway.rules(f"-t nat -I POSTROUTING -s {GREEDY} -p udp -o bond0.2 -j MASQUERADE --to-ports 5000-{4999 + LIMIT}")
    return gateway


HOW: dict[str, tuple[Callable[[ModuleType], Gateway], Reason]] = {
    "limit": (by_limit, Reason.HOST_LIMIT), "ports": (by_range, Reason.OUT_OF_PORTS),
}
every_way = pytest.mark.parametrize(("make", "refusal"), HOW.values(), ids=HOW)


def cost(gateway: Gateway, packets: list[bytearray], reason: Reason) -> int:
    """Return the most that one of these packets cost; each must have this reason."""
    worst = 0
    for packet in packets:
        decisions: list[Decision] = []
        worst = max(worst, steps_of(lambda: decisions.append(gateway.out(packet))))     # noqa: B023
        assert reason_of(decisions[0]) is reason
    return worst


def costs_of_the_other(gateway: Gateway, first: int) -> tuple[int, int]:
    """Return what new flows of the other host cost, and what their next packets do."""
    numbers = range(first, first + SAMPLES)
    new = cost(gateway, [flow(OTHER, n) for n in numbers], Reason.NEW_FLOW)
    return new, cost(gateway, [flow(OTHER, n) for n in numbers], Reason.TRANSLATED)


@every_way
def test_the_others_flows_do_not_slow_down(
    fastpath_backend: ModuleType, make: Callable[[ModuleType], Gateway], refusal: Reason
) -> None:
    """New ones and known ones, while every second packet is a refused one."""
    gateway = make(fastpath_backend)
    new, known = costs_of_the_other(gateway, 0)
    for n in range(LIMIT):
        assert reason_of(gateway.out(flow(GREEDY, n))) is Reason.NEW_FLOW
    for n in range(LIMIT, 20 * LIMIT):
        assert reason_of(gateway.out(flow(GREEDY, n))) is refusal
    now_new, now_known = costs_of_the_other(gateway, SAMPLES)
    assert now_new <= MORE * new
    assert now_known <= MORE * known + 2
    assert reason_of(gateway.out(flow(OTHER, 0))) is Reason.TRANSLATED
    assert reason_of(gateway.out(flow(GREEDY, 0))) is Reason.TRANSLATED     # what it has it keeps


@every_way
def test_a_refusal_costs_the_same_however_often(
    fastpath_backend: ModuleType, make: Callable[[ModuleType], Gateway], refusal: Reason
) -> None:
    """And it leaves nothing behind; the host is told, but not each time."""
    gateway = make(fastpath_backend)
    for n in range(LIMIT):
        gateway.out(flow(GREEDY, n))
    first = cost(gateway, [flow(GREEDY, n) for n in range(LIMIT, 2 * LIMIT)], refusal)
    last = cost(gateway, [flow(GREEDY, n) for n in range(10 * LIMIT, 11 * LIMIT)], refusal)
    assert last <= first <= REFUSAL_STEPS
    assert 1 <= len(gateway.engine.outbox.take()) <= 6
    assert gateway.engine.stats().mappings == len(gateway.engine.flows()) == LIMIT


def test_when_nobody_has_a_port_left_they_are_shared_at_a_bounded_cost(fastpath_backend: ModuleType) -> None:
    """One host has all ports of an address: another one's new flow takes a few tries more, and its next packet none."""
    gateway = Gateway(fastpath_backend, settings=Settings(max_flows=2048))
    gateway.rules("-t nat -F POSTROUTING", "-t nat -A POSTROUTING -p udp -o bond0.2 -j MASQUERADE --to-ports 5000-5999")
    new, known = costs_of_the_other(gateway, 0)
    for n in range(1000 - SAMPLES):
        assert reason_of(gateway.out(udp(f"{GREEDY}:{20_000 + n} > {PEER}:7"))) is Reason.NEW_FLOW
    shared, still_known = costs_of_the_other(gateway, SAMPLES)
    assert gateway.engine.stats().overloaded == SAMPLES
    assert shared <= new + 64 * 25              # `ports.SHARE_TRIES`, each with a look into the table
    assert still_known <= MORE * known + 2
