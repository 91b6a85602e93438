"""`MappingTable`: one outside endpoint for each inside endpoint, for as long as somebody holds it."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from natengine.flow.mappings import Endpoint, MappingTable, NoPort, Owner, Wanted
from natengine.settings import MappingBehaviour, Settings
from natengine.vocab import Proto

OUTSIDE, OTHER = 0xCB007101, 0xC6336401
A, B, HEAD = (Endpoint(Proto.UDP, ip, 5000) for ip in (0x0A01000B, 0x0A01000C, OUTSIDE))


INSIDE = 2                          # an interface


class Table(MappingTable):
    """With the arguments that most tests need; no port rests."""

    def __init__(self, **changes: object) -> None:
        settings = {"port_hold_down_ns": 0, "port_overloading": False} | changes
        super().__init__(random.Random(5), Settings(**settings))  # type: ignore[arg-type]

    def take(
        self, inside: Endpoint, outside_ip: int = OUTSIDE, *, keep_port: bool = True,
        ports: tuple[int, int] | None = None, may_share: bool = False, now_ns: int = 0,
    ) -> int | NoPort:
        ifindex = 0 if inside.ip == outside_ip else INSIDE
        wanted = Wanted(inside, outside_ip, keep_port, ports, ifindex)
        return self.acquire(wanted, lambda _port: may_share, now_ns)

    def give(self, inside: Endpoint, outside: Endpoint, now_ns: int = 0) -> None:
        self.release(inside, outside, now_ns)


def table(**changes: object) -> Table:
    return Table(**changes)


def out(port: int, ip: int = OUTSIDE) -> Endpoint:
    return Endpoint(Proto.UDP, ip, port)


def test_one_mapping_for_all_flows_of_an_endpoint() -> None:
    """RFC 4787 REQ-1; it goes with the last of them."""
    mappings = table()
    assert [mappings.take(A, OUTSIDE) for _ in range(3)] == [5000] * 3
    assert len(mappings) == 1
    for left in (1, 1, 0):
        mappings.give(A, out(5000))
        assert len(mappings) == left
    assert mappings.take(B, OUTSIDE) == 5000


def test_no_overloading() -> None:
    """RFC 4787 REQ-3: an outside port belongs to one inside endpoint; per address and protocol."""
    mappings = table()
    assert mappings.take(A, OUTSIDE) == 5000
    other = mappings.take(B, OUTSIDE)
    assert other not in (NoPort.OUT_OF_PORTS, 5000)
    assert mappings.take(B, OTHER) == 5000
    assert mappings.take(B._replace(proto=Proto.TCP), OUTSIDE) == 5000
    assert mappings.take(B, OUTSIDE, keep_port=False) == other
    assert len(mappings) == 4


def test_a_mapping_outside_the_range_is_not_used() -> None:
    """After a change to `--to-ports` a new one is made; the old one lives on with its flows."""
    mappings = table()
    assert mappings.take(A, OUTSIDE) == 5000
    assert mappings.take(A, OUTSIDE, ports=(6000, 6000)) == 6000
    assert mappings.take(A, OUTSIDE, ports=(5000, 6000)) == 6000
    mappings.give(A, out(5000))
    assert mappings.take(A, OUTSIDE) == 6000
    for _ in range(3):
        mappings.give(A, out(6000))
    assert len(mappings) == 0


def test_out_of_ports() -> None:
    """None, and nothing is held."""
    mappings = table()
    assert mappings.take(A, OUTSIDE, ports=(6000, 6000)) == 6000
    assert mappings.take(B, OUTSIDE, ports=(6000, 6000)) is NoPort.OUT_OF_PORTS
    assert len(mappings) == 1
    mappings.give(A, out(6000))
    assert mappings.take(B, OUTSIDE, ports=(6000, 6000)) == 6000


def test_release_of_what_was_never_held() -> None:
    """A flow that a rule exempts from translation ends like any other."""
    mappings = table()
    mappings.give(A, A)
    mappings.take(A, OUTSIDE)
    mappings.give(B, out(5000))
    assert len(mappings) == 1


def test_hold() -> None:
    """The head's own port is its own while it is held, and free afterwards."""
    mappings = table()
    mappings.hold(HEAD, HEAD, 0, 0)
    assert mappings.take(A, OUTSIDE) != 5000
    mappings.give(HEAD, HEAD)
    assert mappings.take(B, OUTSIDE) == 5000


def test_hold_that_comes_too_late() -> None:
    """The port is somebody else's: nothing is taken, and the release of nothing gives nothing away."""
    mappings = table()
    mappings.take(A, OUTSIDE)
    mappings.hold(HEAD, HEAD, 0, 0)
    assert len(mappings) == 1
    mappings.give(A, out(5000))
    mappings.hold(HEAD, HEAD, 0, 0)                         # now it can be had
    mappings.give(HEAD, HEAD)
    assert mappings.take(B, OUTSIDE) != 5000
    mappings.give(HEAD, HEAD)
    assert mappings.take(Endpoint(Proto.UDP, 1, 5000), OUTSIDE) == 5000


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
        port = self.table.take(inside, outside_ip, keep_port=keep, ports=wanted)
        if isinstance(port, NoPort):
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
        self.table.hold(endpoint, endpoint, 0, 0)
        if self.owner(endpoint) in (None, endpoint):
            self.holds.append((endpoint, endpoint))
        else:
            self.late[endpoint] += 1

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        inside, outside = data.draw(st.sampled_from(self.holds))
        self.table.give(inside, outside)
        if inside == outside and self.late[inside]:
            self.late[inside] -= 1              # it is their number that counts
        else:
            self.holds.remove((inside, outside))

    @invariant()
    def as_many(self) -> None:
        assert len(self.table) == len({outside for _, outside in self.holds})

    def teardown(self) -> None:
        for inside, outside in [*self.holds, *((each, each) for each in self.late.elements())]:
            self.table.give(inside, outside)
        assert len(self.table) == 0
        for proto in (Proto.TCP, Proto.UDP):
            for ip in (OUTSIDE, OTHER):
                for port in range(6000, 6006):
                    assert self.table.take(Endpoint(proto, 1, port), ip) == port


TestAgainstANaiveModel = AgainstANaiveModel.TestCase
TestAgainstANaiveModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


# ── guests, neighbours, limits ───────────────────────────────────────────────────────────────────

ONE_PORT = (6000, 6000)


def test_rfc7857_3_a_port_is_shared_when_there_is_no_other() -> None:
    """And counted; the guest's flow keeps the port from being given away when its owner has gone."""
    mappings = table(port_overloading=True)
    assert mappings.take(A, ports=ONE_PORT, may_share=True) == 6000
    assert mappings.take(B, ports=ONE_PORT, may_share=False) is NoPort.OUT_OF_PORTS
    assert mappings.take(B, ports=ONE_PORT, may_share=True) == 6000
    assert mappings.overloaded == 1
    assert mappings.owner(out(6000)) == Owner(A, INSIDE)
    mappings.give(A, out(6000))
    assert mappings.owner(out(6000)) is None, "what comes from outside is not for a guest"
    assert mappings.take(B, ports=ONE_PORT) is NoPort.OUT_OF_PORTS
    mappings.give(B, out(6000))
    assert mappings.take(B, ports=ONE_PORT) == 6000


def test_the_head_shares_its_ports_with_nobody() -> None:
    mappings = table(port_overloading=True)
    assert mappings.take(HEAD, ports=ONE_PORT) == 6000
    assert mappings.take(A, ports=ONE_PORT, may_share=True) is NoPort.OUT_OF_PORTS


def test_the_kernels_way_keeps_the_port_for_as_long_as_peers_differ() -> None:
    """`mapping = address-and-port-dependent`."""
    mappings = table(mapping=MappingBehaviour.ADDRESS_AND_PORT_DEPENDENT)
    assert mappings.take(A) == 5000
    assert mappings.take(B, may_share=True) == 5000
    assert mappings.take(A, may_share=True) == 5000
    other = mappings.take(A, may_share=False)
    assert other != 5000
    assert mappings.overloaded == 0, "nobody had to"
    for inside, port in ((A, 5000), (A, 5000), (B, 5000), (A, other)):
        mappings.give(inside, out(port))
    assert len(mappings) == 0


def test_rfc4787_neighbours_stay_neighbours() -> None:
    """An RTP and an RTCP port, whichever is seen first, where the inside ports cannot be kept."""
    mappings = table()
    for port in (7000, 7001):
        mappings.take(Endpoint(Proto.UDP, B.ip, port))
    for first, second in ((7000, 7001), (7001, 7000)):
        rtp = mappings.take(Endpoint(Proto.UDP, A.ip, first))
        rtcp = mappings.take(Endpoint(Proto.UDP, A.ip, second))
        assert isinstance(rtp, int) and isinstance(rtcp, int)
        assert rtp % 2 == first % 2 and rtp ^ 1 == rtcp
        for inside_port, port in ((first, rtp), (second, rtcp)):
            mappings.give(Endpoint(Proto.UDP, A.ip, inside_port), out(port))


def test_rfc6888_req4_ports_of_one_host() -> None:
    """The third is refused, of that host only; more flows of a mapping it has are not."""
    mappings = table(max_ports_per_host=2)
    for port in (1, 2):
        assert mappings.take(Endpoint(Proto.UDP, A.ip, port)) == port
    assert mappings.take(Endpoint(Proto.TCP, A.ip, 3)) is NoPort.HOST_LIMIT
    assert mappings.take(Endpoint(Proto.UDP, A.ip, 2)) == 2
    assert mappings.take(Endpoint(Proto.UDP, B.ip, 3)) == 3
    mappings.give(Endpoint(Proto.UDP, A.ip, 1), out(1))
    assert mappings.take(Endpoint(Proto.TCP, A.ip, 3)) == 3


def test_a_flow_from_outside_holds_the_mapping_too() -> None:
    mappings = table()
    mappings.take(A)
    mappings.join(out(5000))
    mappings.give(A, out(5000))
    assert mappings.owner(out(5000)) == Owner(A, INSIDE)
    mappings.give(A, out(5000))
    assert mappings.owner(out(5000)) is None


def test_a_port_rests_per_host() -> None:
    """RFC 6888 REQ-8, through the table; and reserved ports of pools that are made later."""
    mappings = table(port_hold_down_ns=100)
    mappings.take(A)
    mappings.give(A, out(5000), 50)
    assert mappings.take(B, now_ns=149) != 5000
    mappings.reserve({Proto.UDP: frozenset({5000})})
    assert mappings.take(B, OTHER) != 5000
    assert mappings.take(Endpoint(Proto.TCP, B.ip, 5000), OTHER) == 5000
