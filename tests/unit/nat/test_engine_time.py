"""How long flows live.  The clock starts at 0 and at 2**62: neither may be special."""

from __future__ import annotations

from types import ModuleType

import pytest
from support.clock import SECOND_NS
from support.engines import Gateway, reason_of
from support.packets import icmp_error, ping, pong, tcp, udp

from natengine.flow.tcp_state import TcpState
from natengine.settings import FilteringBehaviour, Settings, Timeouts
from natengine.vocab import Proto, Reason, Verdict

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


def test_rfc4787_req5_udp_lives_five_minutes(timed: Gateway) -> None:
    """A query to port 53 too, as long as there is no answer."""
    timed.through(udp("10.1.0.11:5000 > 203.0.113.2:53"))
    lives_for(timed, TIMEOUTS.udp_ns)


@pytest.mark.parametrize("outbound", [True, False])
def test_traffic_of_either_direction_refreshes(timed: Gateway, outbound: bool) -> None:
    """RFC 4787 REQ-6: outbound traffic must keep a mapping alive; inbound may, and does here."""
    timed.through(udp("10.1.0.11:5000 > 203.0.113.2:5353"))
    timed.clock.advance(ns=TIMEOUTS.udp_ns - 1)
    if outbound:
        timed.through(udp("10.1.0.11:5000 > 203.0.113.2:5353"))
    else:
        timed.returned(udp("203.0.113.2:5353 > 203.0.113.1:5000"))
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


# ── what can be set ──────────────────────────────────────────────────────────────────────────────

QUERY, ANSWER = "10.1.0.11:5000 > 203.0.113.2:53", "203.0.113.2:53 > 203.0.113.1:5000"
VIDEO, PICTURE = "10.1.0.11:5000 > 203.0.113.2:5353", "203.0.113.2:5353 > 203.0.113.1:5000"


def with_settings(backend: ModuleType, **changes: object) -> Gateway:
    """A gateway with `changes` of `Settings`, or of `Timeouts` where they end in _ns."""
    times = {name: value for name, value in changes.items() if name.endswith("_ns")}
    others = {name: value for name, value in changes.items() if name not in times}
    settings = Settings(max_flows=16, timeouts=Timeouts(**times), **others)  # type: ignore[arg-type]
    return Gateway(backend, settings=settings)


def test_rfc4787_req5a_an_answered_dns_query_ends_soon(timed: Gateway) -> None:
    """Ten seconds for what else was asked from the port; the next question is a question again."""
    timed.through(udp(QUERY))
    timed.clock.advance(5)
    timed.returned(udp(ANSWER))
    timed.clock.advance(9)
    assert timed.engine.expire(timed.clock.now_ns) == 0
    timed.through(udp(QUERY))
    timed.clock.advance(100)
    assert timed.engine.expire(timed.clock.now_ns) == 0
    timed.returned(udp(ANSWER))
    lives_for(timed, TIMEOUTS.udp_dns_ns)


@pytest.mark.parametrize("inbound_refresh", [True, False])
def test_rfc4787_req6_inbound_refresh_is_an_option(fastpath_backend: ModuleType, inbound_refresh: bool) -> None:
    """Outbound packets always keep a mapping alive; what arrives only where it is wanted."""
    gateway = with_settings(fastpath_backend, udp_inbound_refresh=inbound_refresh)
    gateway.through(udp(VIDEO))
    gateway.clock.advance(200)
    gateway.returned(udp(PICTURE))
    gateway.clock.advance(ns=TIMEOUTS.udp_ns - 200 * SECOND_NS + SECOND_NS)
    assert gateway.engine.expire(gateway.clock.now_ns) == (0 if inbound_refresh else 1)
    gateway.through(udp(VIDEO))
    gateway.clock.advance(200)
    gateway.through(udp(VIDEO))
    lives_for(gateway, TIMEOUTS.udp_ns)


def test_rfc4787_req6_an_answer_shortens_without_inbound_refresh(fastpath_backend: ModuleType) -> None:
    """What must not lengthen a flow may end it."""
    gateway = with_settings(fastpath_backend, udp_inbound_refresh=False)
    gateway.through(udp(QUERY))
    gateway.returned(udp(ANSWER))
    lives_for(gateway, TIMEOUTS.udp_dns_ns)


def test_rfc4787_req6_a_flow_from_outside_lives_from_its_first_packet(fastpath_backend: ModuleType) -> None:
    """It has to begin somehow; what follows from outside does not prolong it."""
    gateway = with_settings(
        fastpath_backend, udp_inbound_refresh=False, filtering=FilteringBehaviour.ENDPOINT_INDEPENDENT
    )
    gateway.through(udp(VIDEO))
    gateway.clock.advance(299)
    for _ in range(2):
        gateway.returned(udp("203.0.113.9:9 > 203.0.113.1:5000"))
        gateway.clock.advance(140)
    assert gateway.engine.expire(gateway.clock.now_ns) == 1
    lives_for(gateway, 20 * SECOND_NS)


STATES = {
    "syn_sent": (">S",),
    "syn_recv": (">S", "<SA"),
    "established": OPEN,
    "fin_wait": (*OPEN, ">FA"),
    "close_wait": (*OPEN, "<FA"),
    "last_ack": (*OPEN, ">FA", "<FA"),
    "time_wait": (*OPEN, ">FA", "<FA", ">A"),
    "close": (*OPEN, "<R"),
}


@pytest.mark.parametrize("state", STATES)
def test_rfc5382_req5a_each_state_has_a_timeout_of_its_own(fastpath_backend: ModuleType, state: str) -> None:
    """Under conntrack's name; the other states keep theirs."""
    for own in STATES:
        gateway = with_settings(fastpath_backend, **{f"tcp_{own}_ns": 17 * SECOND_NS})
        for segment in STATES[state]:
            outbound = segment[0] == ">"
            packet = tcp(OUT if outbound else BACK, segment[1:])
            assert (gateway.out if outbound else gateway.back)(packet).verdict is Verdict.ACCEPT
        left_ns = gateway.flow().deadline_ns - gateway.clock.now_ns
        same = own == state or (own == "established" and state in ("fin_wait", "close_wait"))
        assert (left_ns == 17 * SECOND_NS) == same, own


def test_tcp_unacknowledged_shortens_while_data_awaits_its_ack(fastpath_backend: ModuleType) -> None:
    """As nf_conntrack_tcp_timeout_unacknowledged does always, against RFC 5382 REQ-5; here if it is asked to."""
    for setting, timeout_ns in ((None, TIMEOUTS.tcp_established_ns), (300 * SECOND_NS, 300 * SECOND_NS)):
        gateway = with_settings(fastpath_backend, tcp_unacknowledged_ns=setting)
        gateway.through(tcp(OUT, "S"))
        gateway.returned(tcp(BACK, "SA"))
        gateway.through(tcp(OUT, "A"))
        assert gateway.flow().deadline_ns == TIMEOUTS.tcp_established_ns
        gateway.through(tcp(OUT, "PA", b"question"))
        assert gateway.flow().deadline_ns == timeout_ns
        gateway.returned(tcp(BACK, "A", ack=1009))
        assert gateway.flow().deadline_ns == TIMEOUTS.tcp_established_ns


# ── connections that began unseen ────────────────────────────────────────────────────────────────


def test_a_connection_is_picked_up_only_where_that_is_wanted(fastpath_backend: ModuleType) -> None:
    """nf_conntrack_tcp_loose, but off by default: an ACK begins a flow, and nothing else does."""
    assert reason_of(with_settings(fastpath_backend).out(tcp(OUT, "A"))) is Reason.TCP_STATE
    gateway = with_settings(fastpath_backend, tcp_loose=True)
    for flags in ("SA", "FA", "R", "RA", "", "SF", "F"):
        assert reason_of(gateway.out(tcp(OUT, flags))) is Reason.TCP_STATE, flags
    gateway.through(tcp(OUT, "PA", b"half a sentence"))
    assert gateway.flow().tcp_state == TcpState.ESTABLISHED
    gateway.returned(tcp(BACK, "A", seq=77_000, ack=1016))
    gateway.through(tcp(OUT, "A", seq=1016, ack=77_000))
    lives_for(gateway, TIMEOUTS.tcp_established_ns)


def test_nobody_resets_a_connection_that_waits_to_be_picked_up(fastpath_backend: ModuleType) -> None:
    """The peer may speak first: the head's stack, which knows nothing of the connection, must not answer."""
    gateway = with_settings(fastpath_backend, tcp_loose=True)
    gateway.engine.replace_local_ports({Proto.TCP: frozenset({22})})
    assert reason_of(gateway.back(tcp(BACK, "A"))) is Reason.TCP_STATE
    assert reason_of(gateway.back(tcp("203.0.113.2:80 > 203.0.113.1:22", "A"))) is Reason.LOCAL_IN
    gateway.through(tcp(OUT, "A"))
    gateway.returned(tcp(BACK, "A"))
