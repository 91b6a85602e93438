"""`MappingTable`: one outside endpoint for each inside endpoint, for as long as somebody holds it."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from natengine.flow.mappings import Endpoint, MappingTable
from natengine.vocab import Proto

OUTSIDE, OTHER = 0xCB007101, 0xC6336401
A, B, HEAD = (Endpoint(Proto.UDP, ip, 5000) for ip in (0x0A01000B, 0x0A01000C, OUTSIDE))


def table() -> MappingTable:
    return MappingTable(random.Random(5))


def out(port: int, ip: int = OUTSIDE) -> Endpoint:
    return Endpoint(Proto.UDP, ip, port)


def test_one_mapping_for_all_flows_of_an_endpoint() -> None:
    """RFC 4787 REQ-1; it goes with the last of them."""
    mappings = table()
    assert [mappings.acquire(A, OUTSIDE) for _ in range(3)] == [5000] * 3
    assert len(mappings) == 1
    for left in (1, 1, 0):
        mappings.release(A, out(5000))
        assert len(mappings) == left
    assert mappings.acquire(B, OUTSIDE) == 5000


def test_no_overloading() -> None:
    """RFC 4787 REQ-3: an outside port belongs to one inside endpoint; per address and protocol."""
    mappings = table()
    assert mappings.acquire(A, OUTSIDE) == 5000
    other = mappings.acquire(B, OUTSIDE)
    assert other not in (None, 5000)
    assert mappings.acquire(B, OTHER) == 5000
    assert mappings.acquire(B._replace(proto=Proto.TCP), OUTSIDE) == 5000
    assert mappings.acquire(B, OUTSIDE, keep_port=False) == other
    assert len(mappings) == 4


def test_a_mapping_outside_the_range_is_not_used() -> None:
    """After a change to `--to-ports` a new one is made; the old one lives on with its flows."""
    mappings = table()
    assert mappings.acquire(A, OUTSIDE) == 5000
    assert mappings.acquire(A, OUTSIDE, ports=(6000, 6000)) == 6000
    assert mappings.acquire(A, OUTSIDE, ports=(5000, 6000)) == 6000
    mappings.release(A, out(5000))
    assert mappings.acquire(A, OUTSIDE) == 6000
    for _ in range(3):
        mappings.release(A, out(6000))
    assert len(mappings) == 0


def test_out_of_ports() -> None:
    """None, and nothing is held."""
    mappings = table()
    assert mappings.acquire(A, OUTSIDE, ports=(6000, 6000)) == 6000
    assert mappings.acquire(B, OUTSIDE, ports=(6000, 6000)) is None
    assert len(mappings) == 1
    mappings.release(A, out(6000))
    assert mappings.acquire(B, OUTSIDE, ports=(6000, 6000)) == 6000


def test_release_of_what_was_never_held() -> None:
    """A flow that a rule exempts from translation ends like any other."""
    mappings = table()
    mappings.release(A, A)
    mappings.acquire(A, OUTSIDE)
    mappings.release(B, out(5000))
    assert len(mappings) == 1


def test_hold() -> None:
    """The head's own port is its own while it is held, and free afterwards."""
    mappings = table()
    mappings.hold(HEAD)
    assert mappings.acquire(A, OUTSIDE) != 5000
    mappings.release(HEAD, HEAD)
    assert mappings.acquire(B, OUTSIDE) == 5000


def test_hold_that_comes_too_late() -> None:
    """The port is somebody else's: nothing is taken, and the release of nothing gives nothing away."""
    mappings = table()
    mappings.acquire(A, OUTSIDE)
    mappings.hold(HEAD)
    assert len(mappings) == 1
    mappings.release(A, out(5000))
    mappings.hold(HEAD)                         # now it can be had
    mappings.release(HEAD, HEAD)
    assert mappings.acquire(B, OUTSIDE) != 5000
    mappings.release(HEAD, HEAD)
    assert mappings.acquire(Endpoint(Proto.UDP, 1, 5000), OUTSIDE) == 5000


class AgainstANaiveModel(RuleBasedStateMachine):
    """The table beside a list of holds, each (inside, outside); `None` where a hold came too late."""

    inside = st.builds(
        Endpoint, st.sampled_from((Proto.TCP, Proto.UDP)), st.sampled_from((A.ip, B.ip, OUTSIDE)),
        st.integers(6000, 6002),
    )

    def __init__(self) -> None:
        super().__init__()
        self.table = table()
        self.holds: list[tuple[Endpoint, Endpoint]] = []
        self.late: Counter[Endpoint] = Counter()

    def owner(self, outside: Endpoint) -> Endpoint | None:
        """Return who holds an outside endpoint."""
        return next((inside for inside, held in self.holds if held == outside), None)

    @rule(
        inside=inside, outside_ip=st.sampled_from((OUTSIDE, OTHER)), keep=st.booleans(),
        ports=st.none() | st.tuples(st.integers(6000, 6002), st.integers(0, 3)),
    )
    def acquire(self, inside: Endpoint, outside_ip: int, keep: bool, ports: tuple[int, int] | None) -> None:
        wanted = None if ports is None else (ports[0], ports[0] + ports[1])
        port = self.table.acquire(inside, outside_ip, keep_port=keep, ports=wanted)
        if port is None:
            assert wanted is not None
            for taken in range(wanted[0], wanted[1] + 1):
                assert self.owner(Endpoint(inside.proto, outside_ip, taken)) is not None
            return
        outside = Endpoint(inside.proto, outside_ip, port)
        assert wanted is None or wanted[0] <= port <= wanted[1]
        assert self.owner(outside) in (None, inside)
        self.holds.append((inside, outside))

    @rule(endpoint=inside)
    def hold(self, endpoint: Endpoint) -> None:
        self.table.hold(endpoint)
        if self.owner(endpoint) in (None, endpoint):
            self.holds.append((endpoint, endpoint))
        else:
            self.late[endpoint] += 1

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        inside, outside = data.draw(st.sampled_from(self.holds))
        self.table.release(inside, outside)
        if inside == outside and self.late[inside]:
            self.late[inside] -= 1              # it is their number that counts
        else:
            self.holds.remove((inside, outside))

    @invariant()
    def as_many(self) -> None:
        assert len(self.table) == len({outside for _, outside in self.holds})

    def teardown(self) -> None:
        for inside, outside in [*self.holds, *((each, each) for each in self.late.elements())]:
            self.table.release(inside, outside)
        assert len(self.table) == 0
        for proto in (Proto.TCP, Proto.UDP):
            for ip in (OUTSIDE, OTHER):
                for port in range(6000, 6006):
                    assert self.table.acquire(Endpoint(proto, 1, port), ip) == port


TestAgainstANaiveModel = AgainstANaiveModel.TestCase
TestAgainstANaiveModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
