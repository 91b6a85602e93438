"""`PortPool`: every port of the right kind, each once, at the same cost however full it is."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from natengine.flow.ports import PortPool
from natengine.vocab import Proto


def rng() -> random.Random:
    return random.Random(7)


@pytest.mark.parametrize("port", [1, 511, 512, 1023, 1024, 5000, 65535])
def test_keeps_the_port_that_is_free(port: int) -> None:
    """RFC 4787 4.2.1: port preservation; and it comes back after release."""
    pool = PortPool(Proto.UDP)
    assert pool.take(port, rng()) == port
    assert pool.take(port, rng()) != port
    pool.release(port)
    assert pool.take(port, rng()) == port


@pytest.mark.parametrize(
    ("wanted", "ports"),
    [
        (400, range(1, 512)), (401, range(1, 512)), (513, range(512, 1024)), (514, range(512, 1024)),
        (1024, range(1024, 65536)), (65535, range(1024, 65536)), (0, range(1024, 65536)),
    ],
)
def test_exhaustion_uses_every_port_of_the_class(wanted: int, ports: range) -> None:
    """Those of the same parity first, then the others, then none (RFC 4787 REQ-3a, REQ-4)."""
    pool, dice = PortPool(Proto.TCP), rng()
    taken = []
    while (port := pool.take(wanted, dice, keep=False)) is not None:
        taken.append(port)
    assert sorted(taken) == list(ports)
    half = sum(port % 2 == wanted % 2 for port in ports)
    assert {port % 2 for port in taken[:half]} == {wanted % 2}
    assert len(pool) == len(ports)
    pool.release(taken[100])
    assert pool.take(wanted, dice, keep=False) == taken[100]


def test_exhaustion_of_all_64512_dynamic_ports() -> None:
    """Many hosts with one source port: as many flows as there are ports, to the last one."""
    pool, dice = PortPool(Proto.UDP), rng()
    assert len({pool.take(5000, dice) for _ in range(64512)}) == 64512
    assert pool.take(5000, dice) is None
    assert pool.take(6001, dice) is None
    assert pool.take(80, dice) == 80            # other classes have their own


def test_identifiers_have_one_class() -> None:
    """All 65536 of them, 0 included (RFC 5508)."""
    pool, dice = PortPool(Proto.ICMP), rng()
    assert pool.take(0, dice) == 0
    assert {pool.take(7, dice, keep=False) for _ in range(65535)} == set(range(1, 65536))
    assert pool.take(7, dice) is None


def test_to_ports() -> None:
    """Exactly the range, to the last one; a port inside it is kept, one outside it is not."""
    pool, dice = PortPool(Proto.UDP), rng()
    assert pool.take(6001, dice, ports=(6000, 6003)) == 6001
    assert {pool.take(80, dice, ports=(6000, 6003)) for _ in range(3)} == {6000, 6002, 6003}
    assert pool.take(6001, dice, ports=(6000, 6003)) is None
    pool.release(6000)
    assert pool.take(6001, dice, ports=(6000, 6003)) == 6000
    assert pool.take(1, dice, ports=(65535, 65535)) == 65535
    assert pool.take(1, dice, ports=(65535, 65535)) is None


def test_choice_is_the_dices() -> None:
    """RFC 6056: another seed, other ports; the same seed, the same ones."""
    def ports(seed: int) -> list[int | None]:
        pool, dice = PortPool(Proto.UDP), random.Random(seed)
        return [pool.take(5000, dice, keep=False) for _ in range(20)]

    assert ports(1) == ports(1)
    assert ports(1) != ports(2)
    assert len(set(ports(1))) == 20


def test_a_new_pool_does_not_keep_the_first_packet_waiting() -> None:
    """Well under half a millisecond: the best of some, for this machine has other things to do."""
    def once() -> float:
        start = time.perf_counter()
        PortPool(Proto.UDP)
        return time.perf_counter() - start

    assert min(once() for _ in range(20)) < 0.0005


class AgainstASet(RuleBasedStateMachine):
    """A pool and a plain set of what is taken, in a few ports where things meet."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.dice = PortPool(Proto.UDP), random.Random(3)
        self.taken: set[int] = set()

    @rule(port=st.sampled_from([0, 1, 2, 3, 511, 512, 1023, 1024, 1025, 65535]), keep=st.booleans())
    def take(self, port: int, keep: bool) -> None:
        got = self.pool.take(port, self.dice, keep=keep)
        assert got is not None
        assert got not in self.taken
        if keep and port not in self.taken:
            assert got == port
        assert [first <= got < end for first, end in ((0, 512), (512, 1024), (1024, 65536))].count(True) == 1
        self.taken.add(got)

    @rule(first=st.integers(1020, 1030), size=st.integers(0, 6), wanted=st.integers(1018, 1036))
    def take_between(self, first: int, size: int, wanted: int) -> None:
        free = set(range(first, first + size + 1)) - self.taken
        got = self.pool.take(wanted, self.dice, ports=(first, first + size))
        assert (got is None and not free) or got in free
        assert wanted not in free or got == wanted
        if got is not None:
            self.taken.add(got)

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        port = data.draw(st.sampled_from(sorted(self.taken)))
        self.pool.release(port)
        self.taken.remove(port)

    @invariant()
    def as_many(self) -> None:
        assert len(self.pool) == len(self.taken)


TestAgainstASet = AgainstASet.TestCase
TestAgainstASet.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)


# ── ports that rest, ports that are reserved, ports that are shared ──────────────────────────────


def test_rfc6888_req8_a_port_rests_before_another_host_gets_it() -> None:
    """But who had it may have it again at once."""
    pool = PortPool(Proto.UDP, hold_down_ns=100)
    assert pool.take(5000, rng(), host=1, now_ns=0) == 5000
    pool.release(5000, host=1, now_ns=50)
    assert pool.take(5000, rng(), host=2, now_ns=149) != 5000
    assert pool.take(5000, rng(), host=1, now_ns=149) == 5000
    pool.release(5000, host=1, now_ns=150)
    assert pool.take(5000, rng(), host=2, now_ns=250) == 5000


def test_when_no_other_is_left_the_port_that_has_rested_longest_goes_first() -> None:
    pool, dice = PortPool(Proto.TCP, hold_down_ns=100), rng()
    taken = [pool.take(5, dice, host=1, keep=False) for _ in range(511)]
    assert sorted(taken) == list(range(1, 512))
    for now_ns, port in enumerate((300, 7, 44)):
        pool.release(port, host=1, now_ns=now_ns)
    assert [pool.take(5, dice, host=2, now_ns=50) for _ in range(4)] == [300, 7, 44, None]


@pytest.mark.parametrize("ports", [(7, 9), (500, 600)])
def test_a_resting_port_of_the_range_is_better_than_none(ports: tuple[int, int]) -> None:
    pool, dice = PortPool(Proto.TCP, hold_down_ns=100), rng()
    taken = {pool.take(1, dice, ports=ports) for _ in range(ports[1] - ports[0] + 1)}
    assert taken == set(range(ports[0], ports[1] + 1))
    pool.release(ports[1], host=1, now_ns=0)
    assert pool.take(1, dice, host=2, ports=ports, now_ns=1) == ports[1]
    assert pool.take(1, dice, host=2, ports=ports, now_ns=1) is None


def test_port_0_does_not_rest() -> None:
    """It has no class to rest in, and nobody is given it but who asks for it."""
    pool = PortPool(Proto.UDP, hold_down_ns=100)
    for _ in range(2):
        assert pool.take(0, rng(), host=1) == 0
        pool.release(0, host=1)
    assert pool.take(0, rng(), host=2) == 0


def test_reserved_ports_are_for_the_head() -> None:
    pool = PortPool(Proto.UDP)
    assert pool.take(53, rng()) == 53
    pool.reserve(frozenset({53, 123}))
    assert pool.take(123, rng()) != 123
    assert pool.take(123, rng(), ports=(123, 123)) is None
    assert pool.take(123, rng(), for_head=True) == 123
    pool.release(123)
    assert pool.take(123, rng()) != 123, "still reserved"
    pool.release(53)
    assert pool.take(53, rng()) != 53, "reserved while a worker had it"
    pool.reserve(frozenset({53}))
    assert pool.take(123, rng()) == 123


def test_an_even_port_has_a_free_neighbour() -> None:
    """RFC 4787 4.2.2: RTCP will want the next port; it is there for almost everybody."""
    pool, dice = PortPool(Proto.UDP), rng()
    for port in range(1025, 65536, 4):                      # every other odd port is taken
        pool.take(port, dice)
    picked = [pool.take(5000, dice, keep=False) for _ in range(200)]
    assert sum(pool.is_free(port + 1) for port in picked if port is not None) > 180


def test_sharing() -> None:
    """Only what is taken can be shared, and only where the peers tell the flows apart."""
    pool, dice = PortPool(Proto.UDP), rng()
    for _ in range(4):
        pool.take(6000, dice, ports=(6000, 6003))
    assert pool.share(5000, dice, lambda port: port == 6002, (6000, 6003)) == 6002
    assert pool.share(5000, dice, lambda port: False, (6000, 6003)) is None
    assert pool.share(5000, dice, lambda port: True, (7000, 7003)) is None
