"""RFC 5508 (ICMP): queries as sessions, errors by what they quote."""

from __future__ import annotations

import struct

import pytest
from support.packets import (
    assert_error_checksums,
    describe,
    icmp,
    icmp_error,
    ping,
    pong,
    quote_of,
    source_port,
    tcp,
    udp,
)

from conformance.network import INSIDE_G, U0, U1, U2, W1, W2, G, Network
from conformance.rows import requirement

pytestmark = pytest.mark.lab

SLOW = 10                   # seconds that a busy machine may take to tell what a flow has left

QUERIES = {"echo": (8, 0, b"abcdefgh"), "timestamp": (13, 14, bytes(12)), "address mask": (17, 18, bytes(4))}


# ── queries ──────────────────────────────────────────────────────────────────────────────────────


@requirement("RFC 5508 REQ-1", "MUST", "queries from inside and their replies pass: echo, timestamp, address mask")
@pytest.mark.parametrize("name", QUERIES)
def test_rfc5508_req1_queries(net: Network, name: str) -> None:
    request, reply, data = QUERIES[name]
    ident = net.port()
    rest = struct.pack("!HH", ident, 3)
    sent = net.out(icmp(f"{W1} > {U0}", request, rest, data))
    assert sent is not None and describe(sent).startswith(G), f"{name} does not"
    arrived = net.back(icmp(f"{U0} > {G}", reply, bytes(sent[24:26]) + rest[2:], data))
    assert arrived is not None, f"no reply to {name}"
    assert arrived[20:] == icmp(f"{U0} > {W1}", reply, rest, data)[20:]


@requirement("RFC 5508 REQ-1a", "SHOULD", "one outside identifier for an inside one, whatever its peer")
def test_rfc5508_req1a_identifiers(net: Network) -> None:
    ident = net.port()

    def outside(host: str, peer: str) -> int | None:
        return net.mapped(f"{host} > {peer}", lambda text: ping(text, ident))

    first = outside(W1, U0)
    assert outside(W1, U1) == first
    outside(W2, U2)
    assert outside(W1, U2) == first, "another one where two hosts clash"


@requirement("RFC 5508 REQ-2", "MUST NOT", "a query session ends before 60 s")
def test_rfc5508_req2_a_minute(net: Network) -> None:
    net.subject.conntrack("-D", "-p", "icmp", "-s", W1)
    net.out(ping(f"{W1} > {U0}", net.port()))
    left = net.left("icmp")
    assert left >= 60 - SLOW, f"{left + 1} s"


@requirement("RFC 5508 REQ-2a", "RECOMMENDED", "that time can be set", settings="[timeouts]\nicmp_query = 17\n")
def test_rfc5508_req2a_the_time_can_be_set(net: Network) -> None:
    head, name = net.lab.node("head"), "net.netfilter.nf_conntrack_icmp_timeout"
    before = head.run(["sysctl", "-n", name], timeout=20, check=False).stdout.strip()
    head.run(["sysctl", "-qw", f"{name}=17"], timeout=20, check=False)
    try:
        net.subject.conntrack("-D", "-p", "icmp", "-s", W1)
        net.out(ping(f"{W1} > {U0}", net.port()))
        assert 0 < net.left("icmp") <= 17
    finally:
        if before:
            head.run(["sysctl", "-qw", f"{name}={before}"], timeout=20)


@requirement("RFC 5508 REQ-11", "MAY", "other types are dropped; none leaves with an inside address")
def test_rfc5508_req11_other_types(net: Network) -> None:
    strays = [icmp(f"{W1} > {U0}", kind) for kind in (200, 10, 9, 30, 40)] + [pong(f"{W1} > {U0}", 9)]
    leaks = [each for each in net.exchange(*strays).outside if describe(each).startswith("10.")]
    assert not leaks, f"{len(leaks)} of {len(strays)} leave untranslated"


@requirement("RFC 5508 REQ-10c", "SHOULD NOT", "Information Request and Reply, Source Quench")
def test_rfc5508_req10c_what_is_obsolete(net: Network) -> None:
    assert net.out(icmp(f"{W1} > {U0}", 15, b"\0\7\0\1")) is None, "they pass"
    sent = net.out(udp(f"{W1}:{net.port()} > {U0}:7"))
    assert sent is not None
    assert net.back(icmp_error(f"{U0} > {G}", sent, 4, 0)) is None, "they pass"


# ── errors from outside ──────────────────────────────────────────────────────────────────────────

QUOTED = {
    "udp": lambda port, **how: udp(f"{W1}:{port} > {U0}:7", **how),
    "tcp": lambda port, **how: tcp(f"{W1}:{port} > {U0}:7", **how),
    "echo": lambda port, **how: ping(f"{W1} > {U0}", port, **how),
}


def quoted_pair(net: Network, name: str = "udp", **how: bytes) -> tuple[bytearray, bytearray]:
    """A packet as w1 has sent it, and as it has arrived outside."""
    packet = QUOTED[name](net.port(), **how)
    sent = net.out(packet)
    assert sent is not None
    return packet, sent


@requirement("RFC 5508 REQ-4", "MUST", "an error from outside becomes one about the inside packet, to its sender")
@pytest.mark.parametrize("name", QUOTED)
@pytest.mark.parametrize("quote_len", [28, None])
def test_rfc5508_req4_errors_from_outside(net: Network, name: str, quote_len: int | None) -> None:
    inside, sent = quoted_pair(net, name)
    error = net.back(icmp_error(f"{U1} > {G}", sent, 11, 0, quote_len=quote_len))
    assert error is not None and describe(error) == f"{U1} > {W1}"
    assert (error[20], error[21]) == (11, 0)
    quote = quote_of(error)
    assert describe(quote) == describe(inside)
    assert quote[20:] == inside[20:quote_len]
    assert_error_checksums(error)


@requirement("RFC 5508 REQ-3", "SHOULD", "an error with a wrong checksum is dropped, either way")
def test_rfc5508_req3_wrong_checksum(net: Network) -> None:
    _, sent = quoted_pair(net)
    inward = icmp_error(f"{U1} > {G}", sent)
    inward[22] ^= 1
    assert net.back(inward) is None
    arrived = net.back(udp(f"{U0}:7 > {G}:{source_port(sent)}"))
    assert arrived is not None
    outward = icmp_error(f"{W1} > {U0}", arrived)
    outward[22] ^= 1
    assert net.out(outward) is None, "from inside it leaves untranslated"


@requirement("RFC 5508 REQ-3a", "SHOULD", "one that quotes an IP header with a wrong checksum is dropped")
def test_rfc5508_req3a_wrong_quoted_checksum(net: Network) -> None:
    _, sent = quoted_pair(net)
    sent[10] ^= 0x11
    assert net.back(icmp_error(f"{U1} > {G}", sent)) is None, "passed on"


@requirement("RFC 5508 REQ-3b", "MUST", "IP options in the quoted packet are skipped")
def test_rfc5508_req3b_quoted_options(net: Network) -> None:
    inside, sent = quoted_pair(net, options=b"\1" * 8)
    error = net.back(icmp_error(f"{U1} > {G}", sent))
    assert error is not None and quote_of(error)[28:] == inside[28:]


@requirement("RFC 5508 REQ-3c", "SHOULD NOT", "the quoted transport checksum is judged")
def test_rfc5508_req3c_quoted_transport_checksum(net: Network) -> None:
    _, sent = quoted_pair(net)
    sent[-1] ^= 1
    assert net.back(icmp_error(f"{U1} > {G}", sent)) is not None


@requirement("RFC 5508 REQ-3d", "MUST", "extensions behind the quote (RFC 4884) stay as they are")
def test_rfc5508_req3d_extensions(net: Network) -> None:
    _, sent = quoted_pair(net)
    behind = bytes(128 - len(sent)) + b"\x20\0\xdf\x53\0\x08\1\1\x12\x34\x51\x40"
    error = net.back(icmp_error(f"{U1} > {G}", sent + behind, 11, 0))
    assert error is not None and error.endswith(behind)
    assert_error_checksums(error)


@requirement("RFC 5508 REQ-6", "MUST NOT", "an error refreshes or ends a session")
def test_rfc5508_req6_errors_and_timers(net: Network) -> None:
    port = net.port()
    sent = net.out(udp(f"{W1}:{port} > {U0}:7"))
    assert sent is not None
    before = net.later("udp", port)
    assert net.back(icmp_error(f"{U1} > {G}", sent)) is not None
    assert 0 < net.left("udp", port) <= before


@requirement("RFC 5508 REQ-10b", "MAY", "a Redirect about a flow does not reach the inside; a Parameter Problem does")
def test_rfc5508_req10b_redirect_and_parameter_problem(net: Network) -> None:
    _, sent = quoted_pair(net)
    assert net.back(icmp(f"{U0} > {G}", 5, b"\1\2\3\4", bytes(sent), code=1)) is None
    error = net.back(icmp_error(f"{U0} > {G}", sent, 12, 0, rest=b"\x14\0\0\0"))
    assert error is not None and error[24] == 0x14


# ── errors from inside, and the gateway's own ────────────────────────────────────────────────────


@requirement("RFC 5508 REQ-5", "MUST", "one from inside, of any router there, shows outside addresses only")
@pytest.mark.parametrize("router", [W1, "10.1.0.99"])
def test_rfc5508_req5_errors_from_inside(net: Network, router: str) -> None:
    _, sent = quoted_pair(net)
    reply = udp(f"{U0}:7 > {G}:{source_port(sent)}")
    arrived = net.back(bytearray(reply))
    assert arrived is not None
    error = net.out(icmp_error(f"{router} > {U0}", arrived, 3, 3))
    assert error is not None and describe(error) == f"{G} > {U0}"
    assert describe(quote_of(error)) == describe(reply)
    assert_error_checksums(error)


@requirement("RFC 5508 REQ-5", "SHOULD", "one about no flow is dropped")
def test_rfc5508_req5_an_error_about_no_flow(net: Network) -> None:
    about = udp(f"{U0}:7 > {W1}:{net.port()}")
    assert net.out(icmp_error(f"{W1} > {U0}", about)) is None, "leaves with inside addresses"


@requirement("RFC 5508 REQ-4", "SHOULD", "one from outside about no flow does not get in")
def test_rfc5508_req4_an_error_about_no_flow(net: Network) -> None:
    assert net.back(icmp_error(f"{U0} > {G}", udp(f"{G}:{net.port()} > {U0}:7"))) is None


@requirement("RFC 5508 REQ-10a", "MUST", "the TTL ends at the gateway: 11/0, to either side about its own packet")
def test_rfc5508_req10a_time_exceeded(net: Network) -> None:
    packet = udp(f"{W1}:{net.port()} > {U0}:7", ttl=1)
    (error,) = net.exchange(packet).inside
    assert (error[20], error[21]) == (11, 0)
    assert describe(error) == f"{INSIDE_G} > {W1}" and describe(quote_of(error)) == describe(packet)
    _, sent = quoted_pair(net)
    packet = udp(f"{U0}:7 > {G}:{source_port(sent)}", ttl=1)
    (error,) = net.exchange(packet).outside
    assert (error[20], error[21]) == (11, 0)
    assert describe(error) == f"{G} > {U0}" and describe(quote_of(error)) == describe(packet)


@requirement(
    "RFC 5508 REQ-8", "SHOULD", "no port is left: ICMP 3/13 to who wanted one",
    rules=("-t nat -I POSTROUTING -o bond0.2 -p udp --sport 3000:3009 -j MASQUERADE --to-ports 3500-3501",),
)
def test_rfc5508_req8_no_port_left(net: Network) -> None:
    mapped = {net.mapped(f"{W1}:{port} > {U0}:7") for port in (3000, 3001)}
    assert mapped == {3500, 3501}
    seen = net.exchange(udp(f"{W1}:3002 > {U0}:7"))
    assert seen.outside == []
    assert [(each[20], each[21]) for each in seen.inside] == [(3, 13)], "dropped in silence"
