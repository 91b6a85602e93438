"""RFC 5382 (TCP), RFC 7857 and RFC 5961: connections, their timers, and segments that do not belong to one."""

from __future__ import annotations

import socket

import pytest
from support.packets import assert_checksums, describe, icmp_error, quote_of, source_port, tcp, udp

from conformance.network import U0, U1, U2, W1, W2, G, Network
from conformance.rows import requirement

pytestmark = pytest.mark.lab

SLOW = 10                   # seconds that a busy machine may take to tell what a flow has left
ESTABLISHED_S, TRANSITORY_S = 7440, 240


class Connection:
    """w1's, with U0's web server; both sides begin with number 1000.  A step is `>` or `<` and flags."""

    def __init__(self, net: Network, *steps: str) -> None:
        self.net, self.port = net, net.port()
        self.there, self.outside = f"{W1}:{self.port} > {U0}:80", 0
        for step in steps:
            assert self.step(step) is not None, f"{step} does not pass"

    def step(self, step: str, data: bytes = b"", **numbers: int) -> bytearray | None:
        """Send a segment from either side; return what arrives on the other."""
        if step[0] == ">":
            sent = self.net.out(tcp(self.there, step[1:], data, **numbers))
            self.outside = self.outside or (source_port(sent) if sent else 0)
            return sent
        return self.net.back(self.from_peer(step[1:], data, **numbers))

    def from_peer(self, flags: str, data: bytes = b"", **numbers: int) -> bytearray:
        return tcp(f"{U0}:80 > {G}:{self.outside}", flags, data, **numbers)

    @property
    def left(self) -> int:
        return self.net.left("tcp", self.port)


OPEN = (">S", "<SA", ">A")


# ── mapping ──────────────────────────────────────────────────────────────────────────────────────


@requirement("RFC 5382 REQ-1", "MUST", "one outside endpoint for an inside endpoint, whatever its peer")
def test_rfc5382_req1_endpoint_independent_mapping(net: Network) -> None:
    port = net.port()
    first = net.mapped(f"{W1}:{port} > {U0}:80", tcp)
    assert first is not None
    assert {net.mapped(f"{W1}:{port} > {peer}", tcp) for peer in (f"{U1}:80", f"{U0}:81")} == {first}
    net.mapped(f"{W2}:{port} > {U2}:80", tcp)
    assert net.mapped(f"{W1}:{port} > {U2}:80", tcp) == first, "another port where two hosts clash"


@requirement("RFC 5382 REQ-7", "MUST NOT", "two inside endpoints with one outside endpoint")
def test_rfc5382_req7_no_port_overloading(net: Network) -> None:
    port = net.port()
    assert net.mapped(f"{W1}:{port} > {U0}:80", tcp) != net.mapped(f"{W2}:{port} > {U1}:80", tcp), "shared"


@requirement("RFC 7857 5", "SHOULD", "TCP and UDP have mappings of their own")
def test_rfc7857_5_protocols_are_independent(net: Network) -> None:
    port = net.port()
    net.mapped(f"{W2}:{port} > {U0}:7")
    assert net.mapped(f"{W1}:{port} > {U0}:7") != port
    assert net.mapped(f"{W1}:{port} > {U0}:80", tcp) == port


# ── connections ──────────────────────────────────────────────────────────────────────────────────


@requirement("RFC 5382 REQ-2", "MUST", "a connection opens, talks, half closes, talks on, closes")
def test_rfc5382_req2_a_connection_from_beginning_to_end(net: Network) -> None:
    connection = Connection(net, *OPEN)
    question = connection.step(">PA", b"GET")
    assert question is not None
    assert_checksums(question)
    assert connection.step(">FA", seq=1004) is not None
    for number in range(3):
        answer = connection.step("<A", b"data", seq=1001 + 4 * number, ack=1005)
        assert answer is not None and describe(answer) == f"{U0}:80 > {W1}:{connection.port}"
        assert_checksums(answer)
    assert connection.step(">A", seq=1005, ack=1013) is not None
    assert connection.step("<FA", seq=1013, ack=1005) is not None
    assert connection.step(">A", seq=1005, ack=1014) is not None


@requirement("RFC 5382 REQ-2a", "MUST", "simultaneous open")
def test_rfc5382_req2a_simultaneous_open(net: Network) -> None:
    connection = Connection(net, ">S", "<S", ">SA", "<SA", ">A", "<A")
    assert connection.left >= ESTABLISHED_S - SLOW


@requirement("RFC 9293 3.6.1", "MUST", "a connection may be opened again out of TIME_WAIT")
def test_rfc9293_reopening(net: Network) -> None:
    connection = Connection(net, *OPEN, ">FA", "<FA")
    connection.step(">A", seq=1002, ack=1002)
    again = connection.step(">S", seq=200_000)
    assert again is not None and source_port(again) == connection.outside
    assert connection.step("<SA", seq=300_000, ack=200_001) is not None


@requirement("RFC 9293 3.8.1", "MUST", "a SYN may be repeated, also with another number")
def test_rfc9293_a_syn_again(net: Network) -> None:
    connection = Connection(net, ">S", ">S")
    assert connection.step(">S", seq=77_000) is not None
    assert connection.step("<SA", ack=77_001) is not None


@requirement("RFC 7413", "SHOULD", "data in a SYN passes (TCP Fast Open)")
def test_rfc7413_data_in_a_syn(net: Network) -> None:
    connection = Connection(net)
    sent = connection.step(">S", b"GET /")
    assert sent is not None and sent.endswith(b"GET /")
    assert connection.step("<SA", ack=1006) is not None


@requirement("RFC 5382 REQ-4", "MUST NOT", "a SYN that nobody waits for is answered within 6 s; then ICMP 3/3")
def test_rfc5382_req4_an_unsolicited_syn(net: Network) -> None:
    stranger = tcp(f"{U0}:4444 > {G}:{net.port()}", "S")
    assert net.exchange(stranger).outside == [], "RST at once"
    error = net.wait_outside(lambda packet: packet[9] == 1)
    assert (error[20], error[21]) == (3, 3)
    assert describe(quote_of(error)) == describe(stranger)


@requirement("RFC 5382 REQ-6", "RECOMMENDED", "application gateways are off: an FTP command keeps its address")
def test_rfc5382_req6_no_alg(net: Network) -> None:
    port = net.port()
    net.out(tcp(f"{W1}:{port} > {U0}:21", "S"))
    net.back(tcp(f"{U0}:21 > {G}:{port}", "SA"))
    command = f"PORT {W1.replace('.', ',')},19,136\r\n".encode()
    sent = net.out(tcp(f"{W1}:{port} > {U0}:21", "PA", command))
    assert sent is not None and sent.endswith(command)


# ── timers ───────────────────────────────────────────────────────────────────────────────────────


@requirement("RFC 5382 REQ-5", "MUST NOT", "an idle established connection ends before 2 h 4 min")
def test_rfc5382_req5_established(net: Network) -> None:
    left = Connection(net, *OPEN).left
    assert left >= ESTABLISHED_S - SLOW, f"{left + 1} s"


@requirement("RFC 5382 REQ-5", "MUST NOT", "nor one with data under way")
def test_rfc5382_req5_unacknowledged_data(net: Network) -> None:
    connection = Connection(net, *OPEN)
    connection.step(">PA", b"question")
    left = connection.left
    assert left >= ESTABLISHED_S - SLOW, f"{left + 1} s"


@requirement("RFC 6146 3.5.2.2", "as REQ-5", "nor one that one side has closed")
@pytest.mark.parametrize("closing", [">FA", "<FA"])
def test_rfc6146_half_closed(net: Network, closing: str) -> None:
    connection = Connection(net, *OPEN, closing)
    connection.step("<A" if closing[0] == ">" else ">A", ack=1002)
    left = connection.left
    assert left >= ESTABLISHED_S - SLOW, f"{left + 1} s"


TRANSITORY = {
    "SYN_SENT": (">S",),
    "SYN_RECV": (">S", "<SA"),
    "LAST_ACK": (*OPEN, ">FA", "<FA"),
}


@requirement("RFC 5382 REQ-5", "MUST NOT", "one that is being opened or closed ends before 4 min")
@pytest.mark.parametrize("state", [*TRANSITORY, "TIME_WAIT"])
def test_rfc5382_req5_transitory(net: Network, state: str) -> None:
    connection = Connection(net, *TRANSITORY.get(state, TRANSITORY["LAST_ACK"]))
    if state == "TIME_WAIT":
        connection.step(">A", seq=1002, ack=1002)
    left = connection.left
    assert left >= TRANSITORY_S - SLOW, f"{state} {left + 1} s"


@requirement("RFC 7857 2.2", "SHOULD", "after a RST the mapping stays for 4 min: the RST may have been lost")
def test_rfc7857_22_after_a_rst(net: Network) -> None:
    connection = Connection(net, *OPEN, "<R")
    left = connection.left
    assert left >= TRANSITORY_S - SLOW, f"{left + 1} s"


@requirement("RFC 5382 REQ-5a", "MAY", "the timers can be set", settings="[timeouts]\ntcp_syn_sent = 33\n")
def test_rfc5382_req5a_timers_can_be_set(net: Network) -> None:
    # conntrack's sysctl of the same name, for who has one
    name = ["net.netfilter.nf_conntrack_tcp_timeout_syn_sent"]
    head = net.lab.node("head")
    before = head.run(["sysctl", "-n", *name], timeout=20, check=False).stdout.strip()
    head.run(["sysctl", "-qw", f"{name[0]}=33"], timeout=20, check=False)
    try:
        assert 0 < Connection(net, ">S").left <= 33
    finally:
        if before:
            head.run(["sysctl", "-qw", f"{name[0]}={before}"], timeout=20)


# ── ICMP about TCP ───────────────────────────────────────────────────────────────────────────────


@requirement("RFC 5382 REQ-9", "SHOULD", "ICMP 3/4 reaches who sent the segment, which recognises it")
def test_rfc5382_req9_path_mtu_discovery(net: Network) -> None:
    connection = Connection(net, *OPEN)
    sent = connection.step(">PA", b"x" * 100)
    assert sent is not None
    error = net.back(icmp_error(f"{U1} > {G}", sent, 3, 4, rest=b"\0\0\5\0", quote_len=28))
    assert error is not None and error[26:28] == b"\5\0"
    assert quote_of(error)[20:28] == tcp(connection.there, "PA", b"x" * 100)[20:28]


@requirement("RFC 5382 REQ-10", "MUST NOT", "an ICMP message ends a connection")
def test_rfc5382_req10_icmp_ends_nothing(net: Network) -> None:
    connection = Connection(net, *OPEN)
    sent = connection.step(">PA", b"x")
    assert sent is not None
    kinds = [(3, code) for code in range(16)] + [(11, 0), (11, 1), (12, 0)]
    net.exchange(*(icmp_error(f"{U0} > {G}", sent, kind, code) for kind, code in kinds))
    assert connection.step("<A", ack=1002) is not None
    assert connection.left > TRANSITORY_S


# ── segments that do not belong ──────────────────────────────────────────────────────────────────


@requirement("RFC 1918 3", "MUST", "a segment that fits no connection does not leave with its inside address")
def test_rfc1918_segments_without_a_connection(net: Network) -> None:
    strays = [tcp(f"{W1}:{net.port()} > {U0}:80", flags) for flags in ("A", "FA", "R", "RA", "SA", "", "SF", "FPU")]
    leaks = [each for each in net.exchange(*strays).outside if describe(each).startswith("10.")]
    assert not leaks, f"{len(leaks)} of {len(strays)} do"


@requirement("RFC 1918 3", "MUST", "nor does one that lies outside the window of its connection")
def test_rfc1918_segments_outside_the_window(net: Network) -> None:
    connection = Connection(net, *OPEN)
    sent = connection.step(">A", b"x", seq=1001 + 10**8)
    assert sent is None, "it does" if describe(sent).startswith("10.") else "it is translated"


@requirement("RFC 5961 3", "MUST", "a RST in the window that is not exact is passed on, and ends nothing")
def test_rfc5961_3_a_guess_in_the_window(net: Network) -> None:
    connection = Connection(net, *OPEN)
    assert connection.step("<R", seq=1101) is not None
    left = connection.left
    assert left >= ESTABLISHED_S - SLOW, f"{left + 1} s are left"


@requirement("RFC 5961 3", "MUST", "a RST outside the window is dropped")
def test_rfc5961_3_a_guess_outside_the_window(net: Network) -> None:
    connection = Connection(net, *OPEN)
    seen = net.exchange(connection.from_peer("R", seq=1001 + 10**8))
    assert seen.inside == []
    assert connection.left > TRANSITORY_S


@requirement("RFC 5961 4", "MUST", "a SYN from outside does not reset an open connection")
def test_rfc5961_4_a_syn_into_a_connection(net: Network) -> None:
    connection = Connection(net, *OPEN)
    seen = net.exchange(connection.from_peer("S", seq=5000))
    assert seen.outside == [], "the gateway answers with RST"
    assert connection.step("<A") is not None


@requirement("RFC 5961 5", "MAY", "an ACK of what was never sent is dropped, in silence")
def test_rfc5961_5_an_ack_of_the_future(net: Network) -> None:
    connection = Connection(net, *OPEN)
    seen = net.exchange(connection.from_peer("A", ack=1001 + 500_000))
    assert seen.inside == []
    assert seen.outside == [], "the gateway answers with RST"


@requirement("RFC 5961 5", "MUST", "data outside the window is dropped, in silence; the connection lives")
def test_rfc5961_5_data_outside_the_window(net: Network) -> None:
    connection = Connection(net, *OPEN)
    seen = net.exchange(connection.from_peer("A", b"injected", seq=1001 + 10**8))
    assert seen.inside == []
    assert seen.outside == [], "the gateway resets it"
    assert connection.step("<A") is not None


@requirement("RFC 6056 3.1", "SHOULD", "no port that the gateway itself uses")
def test_rfc6056_ports_of_the_gateway(net: Network) -> None:
    port = net.port()
    with net.lab.node("head").enter():
        own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with own:
        own.bind((G, port))
        own.sendto(b"own", (U0, 7))
        net.wait_outside(lambda packet: packet.endswith(b"own"))
        found = net.mapped(f"{W1}:{port} > {U1}:7", udp)
        assert found is not None and found != port, "given away"
