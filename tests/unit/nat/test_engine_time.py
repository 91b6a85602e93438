"""How long flows live.  The clock starts at 0 and at 2**62: neither may be special."""

from __future__ import annotations

from types import ModuleType

import pytest
from support.clock import SECOND_NS
from support.engines import Gateway, reason_of
from support.packets import icmp_error, ping, pong, tcp, udp

from natengine.settings import Settings, Timeouts
from natengine.vocab import Reason

TIMEOUTS = Timeouts()


@pytest.fixture(params=[0, 1, 2**62], ids=["t=0", "t=1", "t=2**62"])
def timed(request: pytest.FixtureRequest, fastpath_backend: ModuleType) -> Gateway:
    """The owner's rules at some time."""
    return Gateway(fastpath_backend, now_ns=request.param)


def lives_for(gateway: Gateway, timeout_ns: int) -> None:
    """Check that the one flow lives that long, and no more than a second longer."""
    gateway.clock.advance(ns=timeout_ns - 1)
    assert gateway.engine.expire(gateway.clock.now_ns) == 0
    gateway.clock.advance(1, ns=1)
    assert gateway.engine.expire(gateway.clock.now_ns) == 1
    assert gateway.engine.stats()[:2] == (0, 0)


def test_udp(timed: Gateway) -> None:
    """RFC 4787 REQ-5: five minutes."""
    timed.through(udp("10.1.0.11:5000 > 203.0.113.2:53"))
    lives_for(timed, TIMEOUTS.udp_ns)


@pytest.mark.parametrize("outbound", [True, False])
def test_traffic_of_either_direction_refreshes(timed: Gateway, outbound: bool) -> None:
    """RFC 4787 REQ-6: outbound traffic must keep a mapping alive; inbound may, and does here."""
    timed.through(udp("10.1.0.11:5000 > 203.0.113.2:53"))
    timed.clock.advance(ns=TIMEOUTS.udp_ns - 1)
    if outbound:
        timed.through(udp("10.1.0.11:5000 > 203.0.113.2:53"))
    else:
        timed.returned(udp("203.0.113.2:53 > 203.0.113.1:5000"))
    lives_for(timed, TIMEOUTS.udp_ns)


def test_echo(timed: Gateway) -> None:
    """RFC 5508 REQ-2: a minute."""
    timed.through(ping("10.1.0.11 > 203.0.113.2", 7))
    timed.returned(pong("203.0.113.2 > 203.0.113.1", 7))
    lives_for(timed, TIMEOUTS.icmp_query_ns)


OUT, BACK = "10.1.0.11:5000 > 203.0.113.2:80", "203.0.113.2:80 > 203.0.113.1:5000"
OPEN = (">S", "<SA", ">A")


@pytest.mark.parametrize(
    ("segments", "timeout_ns"),
    [
        ((">S",), TIMEOUTS.tcp_transitory_ns),
        ((">S", "<SA"), TIMEOUTS.tcp_transitory_ns),
        (OPEN, TIMEOUTS.tcp_established_ns),
        ((*OPEN, ">FA"), TIMEOUTS.tcp_established_ns),                  # half-closed (RFC 6146 3.5.2.2)
        ((*OPEN, "<FA"), TIMEOUTS.tcp_established_ns),
        ((*OPEN, ">FA", "<FA"), TIMEOUTS.tcp_transitory_ns),
        ((*OPEN, ">FA", "<FA", ">A"), TIMEOUTS.tcp_transitory_ns),
        ((*OPEN, "<R"), TIMEOUTS.tcp_transitory_ns),                    # RFC 7857 2.2
        ((*OPEN, "<R", ">A"), TIMEOUTS.tcp_established_ns),             # the RST was not believed
    ],
)
def test_tcp(timed: Gateway, segments: tuple[str, ...], timeout_ns: int) -> None:
    """RFC 5382 REQ-5: 2 h 4 min when open or half open, 4 min otherwise."""
    for segment in segments:
        if segment[0] == ">":
            timed.through(tcp(OUT, segment[1:]))
        else:
            timed.returned(tcp(BACK, segment[1:]))
    lives_for(timed, timeout_ns)


def test_refused_segments_do_not_refresh(timed: Gateway) -> None:
    """Nobody keeps a connection alive with segments that its state does not allow."""
    timed.through(tcp(OUT, "S"))
    timed.clock.advance(ns=TIMEOUTS.tcp_transitory_ns - SECOND_NS)
    assert reason_of(timed.back(tcp(BACK, "FA"))) is Reason.TCP_STATE
    lives_for(timed, SECOND_NS)


def test_icmp_errors_do_not_refresh(timed: Gateway) -> None:
    """RFC 5508 REQ-6, RFC 4787 REQ-12: an error neither refreshes nor ends a flow."""
    sent = timed.through(udp(OUT))
    before = timed.flow()
    timed.clock.advance(100)
    assert reason_of(timed.back(icmp_error("203.0.113.9 > 203.0.113.1", sent))) is Reason.ICMP_ERROR
    assert timed.flow() == before


def test_the_packet_that_evokes_a_dead_flow(timed: Gateway) -> None:
    """After the end the same inside packet begins anew, and the peer's is a stranger's."""
    timed.through(udp(OUT))
    timed.expire_all()
    assert reason_of(timed.back(udp(BACK))) is Reason.LOCAL_IN
    assert reason_of(timed.out(udp(OUT))) is Reason.NEW_FLOW


def test_expire_looks_at_no_more_than_its_budget(timed: Gateway) -> None:
    """So that packets never wait long for it."""
    for port in range(10):
        timed.through(udp(f"10.1.0.11:{port + 1} > 203.0.113.2:53"))
    timed.clock.advance(1000)
    assert [timed.engine.expire(timed.clock.now_ns, 4) for _ in range(4)] == [4, 4, 2, 0]
    assert timed.engine.stats()[:2] == (0, 0)


def test_own_timeouts(fastpath_backend: ModuleType) -> None:
    """RFC 5508 REQ-2a and others: every timeout can be set."""
    settings = Settings(max_flows=16, timeouts=Timeouts(udp_ns=5 * SECOND_NS))
    gateway = Gateway(fastpath_backend, settings=settings)
    gateway.through(udp(OUT))
    lives_for(gateway, 5 * SECOND_NS)


def test_mapping_lives_as_long_as_its_last_flow(timed: Gateway) -> None:
    """RFC 4787 REQ-1: the mapping is not per flow."""
    timed.through(udp("10.1.0.11:5000 > 203.0.113.2:53"))
    timed.clock.advance(200)
    timed.through(udp("10.1.0.11:5000 > 203.0.113.3:53"))
    timed.clock.advance(102)
    assert timed.engine.expire(timed.clock.now_ns) == 1
    assert timed.engine.stats()[:2] == (1, 1)
    assert reason_of(timed.back(udp("203.0.113.3:53 > 203.0.113.1:5000"))) is Reason.TRANSLATED


def test_remove_flow(timed: Gateway) -> None:
    """`conntrack -D`: gone at once, port and all; a second time there is nothing."""
    timed.through(udp(OUT))
    flow_id = timed.flow().flow_id
    assert timed.engine.remove_flow(flow_id, timed.clock.now_ns)
    assert not timed.engine.remove_flow(flow_id, timed.clock.now_ns)
    assert timed.engine.stats()[:2] == (0, 0)
