"""`natengine conntrack`: its lines are those of conntrack(8), and so are its filters."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.clock import SECOND_NS
from support.packets import address

from natengine.app.conntrack import Answer, run
from natengine.errors import ConfigError
from natengine.flow.records import FlowInfo, FlowSpec
from natengine.flow.tcp_state import TcpState
from natengine.flow.tcp_window import UNHEARD_SIDES
from natengine.vocab import Proto
from natengine.wire.ipv4 import WITH_PORTS

WORKER, OUTSIDE, PEER = address("10.1.0.11"), address("203.0.113.1"), address("203.0.113.2")


def flow(flow_id: int, proto: Proto, left_s: float, **changes: object) -> FlowInfo:
    peer_port = {Proto.TCP: 80, Proto.UDP: 53, Proto.ICMP: 8}[proto]
    spec = FlowSpec(proto, WORKER, 40000, OUTSIDE, 41000, PEER, peer_port, True, 2, 3, 7)
    info = FlowInfo(flow_id, spec, TcpState.NONE, True, False, int(left_s * SECOND_NS), UNHEARD_SIDES, 2, 120, 1, 60)
    return info._replace(**changes)  # type: ignore[arg-type]


# As `conntrack -L` of conntrack-tools 1.4.7 prints them with nf_conntrack_acct=1.
TCP = flow(0, Proto.TCP, 431999.5, tcp_state=TcpState.ESTABLISHED, assured=True)
TCP_LINE = (
    "tcp      6 431999 ESTABLISHED src=10.1.0.11 dst=203.0.113.2 sport=40000 dport=80 packets=2 bytes=120"
    " src=203.0.113.2 dst=203.0.113.1 sport=80 dport=41000 packets=1 bytes=60 [ASSURED] mark=0 use=1"
)
SYN = flow(
    1, Proto.TCP, 117, tcp_state=TcpState.SYN_SENT, seen_reply=False, reply_packets=0, reply_bytes=0,
    original_packets=1, original_bytes=60,
)
SYN_LINE = (
    "tcp      6 117 SYN_SENT src=10.1.0.11 dst=203.0.113.2 sport=40000 dport=80 packets=1 bytes=60"
    " [UNREPLIED] src=203.0.113.2 dst=203.0.113.1 sport=80 dport=41000 packets=0 bytes=0 mark=0 use=1"
)
UDP = flow(2, Proto.UDP, 29)
UDP_LINE = (
    "udp      17 29 src=10.1.0.11 dst=203.0.113.2 sport=40000 dport=53 packets=2 bytes=120"
    " src=203.0.113.2 dst=203.0.113.1 sport=53 dport=41000 packets=1 bytes=60 mark=0 use=1"
)
PING = flow(3, Proto.ICMP, 29)
PING_LINE = (
    "icmp     1 29 src=10.1.0.11 dst=203.0.113.2 type=8 code=0 id=40000 packets=2 bytes=120"
    " src=203.0.113.2 dst=203.0.113.1 type=0 code=0 id=41000 packets=1 bytes=60 mark=0 use=1"
)
SERVED = flow(4, Proto.TCP, 7, tcp_state=TcpState.CLOSE_WAIT)
SERVED = SERVED._replace(
    spec=FlowSpec(Proto.TCP, OUTSIDE, 22, OUTSIDE, 22, PEER, 4000, False, 0, 3, 7)
)
SERVED_LINE = (
    "tcp      6 7 CLOSE_WAIT src=203.0.113.2 dst=203.0.113.1 sport=4000 dport=22 packets=2 bytes=120"
    " src=203.0.113.1 dst=203.0.113.2 sport=22 dport=4000 packets=1 bytes=60 mark=0 use=1"
)
FLOWS = [TCP, SYN, UDP, PING, SERVED]
LINES = [TCP_LINE, SYN_LINE, UDP_LINE, PING_LINE, SERVED_LINE]


class Table:
    """What `run` asks and tells."""

    def __init__(self) -> None:
        self.deleted: list[int] = []

    def __call__(self, *argv: str, flows: list[FlowInfo] | None = None, now_ns: int = 0) -> Answer:
        return run(list(argv), lambda: FLOWS if flows is None else flows, self.delete, now_ns)

    def delete(self, ids: list[int]) -> int:
        self.deleted += ids
        return len(ids)


@pytest.fixture
def conntrack() -> Table:
    return Table()


def test_list(conntrack: Table) -> None:
    """Word for word, and the count on standard error."""
    answer = conntrack("-L")
    assert answer.stdout.splitlines() == LINES
    assert answer.stderr == "natengine conntrack: 5 flow entries have been shown.\n"
    assert answer.exit_status == 0
    assert conntrack("-L", "conntrack") == answer
    assert conntrack("--dump", "-f", "ipv4") == answer


def test_extended(conntrack: Table) -> None:
    """`-o extended` puts the layer-3 protocol in front."""
    assert conntrack("-L", "-o", "extended").stdout.splitlines() == [f"ipv4     2 {line}" for line in LINES]


def test_seconds_left_never_go_below_zero(conntrack: Table) -> None:
    """A flow may be looked at between its deadline and its end."""
    assert conntrack("-L", flows=[UDP], now_ns=100 * SECOND_NS).stdout.startswith("udp      17 0 src=")
    assert conntrack("-L", flows=[UDP], now_ns=29 * SECOND_NS - 1).stdout.startswith("udp      17 0 src=")
    assert conntrack("-L", flows=[UDP], now_ns=28 * SECOND_NS).stdout.startswith("udp      17 1 src=")


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ("-p tcp", {0, 1, 4}), ("-p TCP", {0, 1, 4}), ("--proto udp", {2}), ("-p icmp", {3}), ("-p 17", {2}),
        ("-p 47", set()),
        ("-s 10.1.0.11", {0, 1, 2, 3}), ("--src 10.1.0.0/24", {0, 1, 2, 3}), ("--orig-src 203.0.113.2", {4}),
        ("-d 203.0.113.2", {0, 1, 2, 3}), ("--dst 203.0.113.0/255.255.255.0", {0, 1, 2, 3, 4}),
        ("-r 203.0.113.2", {0, 1, 2, 3}), ("--reply-src 203.0.113.1", {4}),
        ("-q 203.0.113.1", {0, 1, 2, 3}), ("--reply-dst 10.1.0.11", set()),
        ("-p tcp --sport 40000", {0, 1}), ("-p tcp --orig-port-dst 80", {0, 1}), ("-p tcp --dport 22", {4}),
        ("-p tcp --state established", {0}), ("-p tcp --state SYN_SENT", {1}),
        ("-p tcp --state TIME_WAIT", set()),
        ("-p tcp -s 10.1.0.11 --state ESTABLISHED", {0}),
    ],
)
def test_filters(conntrack: Table, filters: str, found: set[int]) -> None:
    """conntrack's options, short and long; -L and -D agree about what they mean."""
    answer = conntrack("-L", *filters.split())
    assert answer.stdout.splitlines() == [LINES[i] for i in sorted(found)]
    conntrack("-D", *filters.split())
    assert set(conntrack.deleted) == found


def test_delete(conntrack: Table) -> None:
    """Shows what it deletes; status 1 when there is nothing, as conntrack's."""
    answer = conntrack("-D", "-p", "udp")
    assert answer == (f"{UDP_LINE}\n", "natengine conntrack: 1 flow entries have been deleted.\n", 0)
    answer = conntrack("-D", "-p", "udp", "--dport", "9")
    assert answer == ("", "natengine conntrack: 0 flow entries have been deleted.\n", 1)
    assert conntrack.deleted == [2]


def test_count_and_flush(conntrack: Table) -> None:
    """All of them, each time."""
    assert conntrack("-C") == ("5\n", "", 0)
    assert conntrack.deleted == []
    answer = conntrack("-F")
    assert answer == ("", "natengine conntrack: connection tracking table has been emptied.\n", 0)
    assert conntrack.deleted == [0, 1, 2, 3, 4]


def test_help(conntrack: Table) -> None:
    """Printed by the asking side, so it is an answer and not the end of the engine."""
    answer = conntrack("-h")
    assert answer.exit_status == 0
    assert "--orig-src" in answer.stdout


@pytest.mark.parametrize(
    "argv",
    [
        "", "-X", "-L -D", "-L -p sctpx", "-L -s 10.1", "-L -s 10.1.0.0/33", "-L --sport x",
        "-L --state DEAD", "-L expect", "-L -o xml", "-L -f ipv6", "-D --bogus", "-L -p", "-p tcp",
    ],
)
def test_mistakes(conntrack: Table, argv: str) -> None:
    """Refused before anything is done; exit status 2."""
    with pytest.raises(ConfigError) as caught:
        conntrack(*argv.split())
    assert caught.value.exit_status == 2
    assert conntrack.deleted == []


def test_every_state_has_a_line(conntrack: Table) -> None:
    """Also the one that a flow in fragments may be in."""
    lister: Callable[..., Answer] = conntrack
    for state in TcpState:
        assert f" {state.name} src=" in lister("-L", flows=[TCP._replace(tcp_state=state)]).stdout


ENDS = "src=10.1.0.11 dst=203.0.113.2", "src=203.0.113.2 dst=203.0.113.1"
COUNTS = "packets=2 bytes=120", "packets=1 bytes=60 mark=0 use=1"


@pytest.mark.parametrize(("proto", "name", "details"), [
    (Proto.ESP, "unknown  50", ("", "")),
    (4, "unknown  4", ("", "")),
    (Proto.GRE, "gre      47", (" srckey=0x0 dstkey=0x0",) * 2),
    (Proto.SCTP, "sctp     132", (" sport=40000 dport=2905", " sport=2905 dport=40000")),
    (Proto.UDPLITE, "udplite  136", (" sport=40000 dport=2905", " sport=2905 dport=41000")),
    (Proto.DCCP, "dccp     33", (" sport=40000 dport=2905", " sport=2905 dport=41000")),
])
def test_other_protocols(conntrack: Table, proto: int, name: str, details: tuple[str, str]) -> None:
    """What conntrack has no name for is unknown; what stands behind the addresses is the protocol's."""
    has_ports = proto in WITH_PORTS
    ports = (40000, 40000 if proto == Proto.SCTP else 41000, 2905) if has_ports else (0, 0, 0)
    spec = FlowSpec(proto, WORKER, ports[0], OUTSIDE, ports[1], PEER, ports[2], True, 2, 3, 7)
    flows = [UDP._replace(spec=spec, deadline_ns=599 * SECOND_NS)]
    line = " ".join((f"{name} 599 {ENDS[0]}{details[0]}", COUNTS[0], f"{ENDS[1]}{details[1]}", COUNTS[1]))
    assert conntrack("-L", flows=flows).stdout.splitlines() == [line]
    assert conntrack("-L", "-p", str(int(proto)), flows=flows).stdout
    assert not conntrack("-L", "-p", "tcp", flows=flows).stdout


def test_a_pptp_call(conntrack: Table) -> None:
    """The keys are call ids: the sender's and the receiver's."""
    spec = FlowSpec(Proto.GRE, WORKER, 7, OUTSIDE, 4711, PEER, 900, True, 2, 3, 7)
    line = conntrack("-L", flows=[UDP._replace(spec=spec)]).stdout
    assert f"{ENDS[0]} srckey=0x7 dstkey=0x384 " in line
    assert f"{ENDS[1]} srckey=0x384 dstkey=0x1267 " in line


def test_icmp_queries(conntrack: Table) -> None:
    """Each direction with its own type."""
    spec = PING.spec._replace(peer_port=13)
    line = PING_LINE.replace("type=8", "type=13").replace("type=0", "type=14")
    assert conntrack("-L", flows=[PING._replace(spec=spec)]).stdout.splitlines() == [line]
