"""What a port costs at 0, 90, 99 and 100 % use: the same (and bounded where they have to be shared)."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable

import pytest
from support.steps import steps_of

from natengine.flow.mappings import Endpoint, MappingTable, NoPort, Wanted
from natengine.flow.ports import SHARE_TRIES, WAKES, PortPool
from natengine.settings import Settings
from natengine.vocab import Proto

PORTS = 64512                                   # of the class from 1024 on
USE = (0.0, 0.9, 0.99, 1.0)
TAKE_STEPS, SHARE_STEPS = 120, 20 + 5 * SHARE_TRIES     # lines at most; 73 have been seen, with all tries for a pair
TIMES = 50                                      # slower at most: a walk over all ports is 1000 times slower
SAMPLES = 101
HOLD_DOWN_NS = 120 * 10**9


def pool_in_use(use: float, hold_down_ns: int = 0) -> PortPool:
    """A pool of which this share is taken."""
    pool, dice = PortPool(Proto.UDP, hold_down_ns), random.Random(1)
    for _ in range(round(PORTS * use)):
        assert pool.take(5000, dice) is not None
    return pool


WAYS: dict[str, Callable[[PortPool, random.Random], int | None]] = {
    "the port itself": lambda pool, dice: pool.take(5000, dice),
    "any port": lambda pool, dice: pool.take(5001, dice, keep=False),
    "a port of a range": lambda pool, dice: pool.take(5002, dice, keep=False, ports=(1024, 65535)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("use", USE)
def test_taking_and_giving_back_are_a_few_steps_at_any_use(use: float, way: str) -> None:
    """At 100 % a refusal is, too."""
    pool, dice = pool_in_use(use), random.Random(2)
    for _ in range(SAMPLES):
        ports: list[int | None] = []
        assert steps_of(lambda: ports.append(WAYS[way](pool, dice))) <= TAKE_STEPS      # noqa: B023
        (port,) = ports
        assert (port is None) == (use == 1.0)
        if port is not None:
            assert steps_of(lambda: pool.release(port)) <= TAKE_STEPS       # noqa: B023


@pytest.mark.parametrize("use", [0.9, 0.99, 1.0])
def test_sharing_is_a_few_tries_at_any_use(use: float) -> None:
    """Also where no port will do: it gives up."""
    pool, dice = pool_in_use(use), random.Random(2)
    for may_share in (True, False):
        for _ in range(SAMPLES):
            assert steps_of(lambda: pool.share(5000, dice, lambda _: may_share)) <= SHARE_STEPS     # noqa: B023


def test_ports_that_have_rested_make_nobody_wait() -> None:
    """60000 flows end at once; when their ports have rested, the next flow does not pay for all of them."""
    pool, dice = pool_in_use(0.95, HOLD_DOWN_NS), random.Random(2)
    for port in [port for port in range(1024, 65536) if not pool.is_free(port)]:
        pool.release(port, host=1, now_ns=0)
    later = HOLD_DOWN_NS
    costs = [steps_of(lambda: pool.take(5000, dice, host=2, now_ns=later)) for _ in range(SAMPLES)]
    assert max(costs) <= TAKE_STEPS + 40 * WAKES
    # and any of them may be had again at once, by anybody
    assert [pool.take(port, dice, host=2, now_ns=later) for port in range(40_000, 40_010)] == [*range(40_000, 40_010)]


def test_in_the_end_all_that_have_rested_are_free() -> None:
    pool, dice = pool_in_use(1.0, HOLD_DOWN_NS), random.Random(2)
    for port in range(1024, 65536):
        pool.release(port, host=1, now_ns=0)
    taken = {pool.take(5000, dice, host=2, now_ns=HOLD_DOWN_NS) for _ in range(PORTS)}
    assert taken == set(range(1024, 65536))


@pytest.mark.parametrize("overloading", [True, False])
def test_mappings_at_exhaustion(overloading: bool) -> None:
    """What a new flow asks for, with and without a port to share."""
    mappings = MappingTable(random.Random(1), Settings(port_overloading=overloading))
    head, steps = 0xCB007101, []

    def acquire(n: int) -> int | NoPort:
        inside = Endpoint(Proto.UDP, 0x0A010000 + n, 5000)
        return mappings.acquire(Wanted(inside, head, ifindex=3), lambda _: n % 2 == 0, 0)

    for n in range(PORTS):
        assert not isinstance(acquire(n), NoPort)
    for n in range(PORTS, PORTS + SAMPLES):
        answers: list[int | NoPort] = []
        steps.append(steps_of(lambda: answers.append(acquire(n))))          # noqa: B023
        assert (answers == [NoPort.OUT_OF_PORTS]) == (n % 2 == 1 or not overloading)
    assert max(steps) <= TAKE_STEPS + 20 + 3 * SHARE_STEPS


def test_time_does_not_depend_on_use() -> None:
    """Steps do not see what a built-in does behind a line; medians of processor time do, roughly."""
    pools, dice = {use: pool_in_use(use) for use in USE}, random.Random(2)
    spent: dict[tuple[str, float], list[float]] = {}
    for _ in range(SAMPLES):
        for use, pool in pools.items():
            for way, take in WAYS.items():
                if way == "a port of a range" and use > 0.9:
                    continue                    # it looks for a free byte among 64512: fast, not constant
                before = time.thread_time_ns()
                port = take(pool, dice)
                if port is not None:
                    pool.release(port)
                spent.setdefault((way, use), []).append(time.thread_time_ns() - before)
    medians = {key: statistics.median(times) for key, times in spent.items()}
    for (way, use), median in medians.items():
        assert median <= TIMES * max(medians[way, 0.0], 1000), (way, use, medians)
