"""RFC 4787 (UDP), RFC 6888 and RFC 3022: mappings, filtering, timers, headers."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter

import pytest
from support.packets import (
    assert_checksums,
    dccp,
    describe,
    icmp_error,
    ipv4,
    ping,
    quote_of,
    sctp,
    source_port,
    tcp,
    udp,
    udplite,
)

from conformance.network import U0, U1, U2, U3, W1, W2, G, Network
from conformance.rows import requirement

pytestmark = pytest.mark.lab

SLOW = 10                   # seconds that a busy machine may take to tell what a flow has left

ALL_ICMP_ERRORS = [(3, code) for code in range(16)] + [(11, 0), (11, 1), (12, 0)]


# ── mapping ──────────────────────────────────────────────────────────────────────────────────────


@requirement("RFC 4787 REQ-1", "MUST", "one outside endpoint for an inside endpoint, whatever its peer")
def test_rfc4787_req1_endpoint_independent_mapping(net: Network) -> None:
    port = net.port()
    first = net.mapped(f"{W1}:{port} > {U0}:7")
    assert first is not None
    assert {net.mapped(f"{W1}:{port} > {peer}") for peer in (f"{U1}:7", f"{U0}:8")} == {first}
    net.mapped(f"{W2}:{port} > {U2}:9")
    assert net.mapped(f"{W1}:{port} > {U2}:9") == first, "another port where two hosts clash"


@requirement("RFC 4787 REQ-1", "MUST", "the same if the peer's packet comes first (hole punching)")
def test_rfc4787_req1_a_peer_that_is_early_spoils_nothing(net: Network) -> None:
    port = net.port()
    net.back(udp(f"{U3}:7777 > {G}:{port}"))
    first = net.mapped(f"{W1}:{port} > {U0}:7")
    assert net.mapped(f"{W1}:{port} > {U3}:7777") == first, "another port for that peer"


@requirement("RFC 4787 REQ-3", "MUST NOT", "two inside endpoints with one outside endpoint")
def test_rfc4787_req3_no_port_overloading(net: Network) -> None:
    port = net.port()
    assert net.mapped(f"{W1}:{port} > {U0}:7") != net.mapped(f"{W2}:{port} > {U2}:7"), "shared"


@requirement("RFC 4787 REQ-3a", "RECOMMENDED", "a port below 1024 stays below, one above stays above")
def test_rfc4787_req3a_port_classes(net: Network) -> None:
    for port in (300, 700, 1023, 1024, 60001):
        for host in (W1, W2):
            found = net.mapped(f"{host}:{port} > {U1}:7")
            assert found is not None and (found < 1024) == (port < 1024), f"{port} became {found}"


@requirement("RFC 4787 REQ-4", "RECOMMENDED", "an even port stays even, an odd one odd")
def test_rfc4787_req4_parity(net: Network) -> None:
    for odd in (0, 1):
        for _ in range(8):
            port = net.port() + odd
            net.mapped(f"{W1}:{port} > {U0}:7")
            found = net.mapped(f"{W2}:{port} > {U0}:7")
            assert found is not None and found % 2 == odd, "any port where two hosts clash"


@requirement("RFC 6056 3", "SHOULD", "a port that replaces another one is hard to guess")
def test_rfc6056_replacement_ports_are_random(net: Network) -> None:
    found = []
    for _ in range(16):
        port = net.port()
        net.mapped(f"{W1}:{port} > {U0}:7")
        found.append(net.mapped(f"{W2}:{port} > {U0}:7") or 0)
    steps = Counter(abs(one - other) for one, other in itertools.pairwise(found))
    assert len(steps) > 8, f"one after the other: {found}"


@requirement("RFC 6888 REQ-8", "SHOULD NOT", "a port that was given back goes to another host within 120 s")
def test_rfc6888_req8_a_port_rests(net: Network) -> None:
    port = net.port()
    assert net.mapped(f"{W1}:{port} > {U0}:7") == port
    net.forget("udp", port)
    assert net.mapped(f"{W2}:{port} > {U0}:7") != port, "at once"


@requirement(
    "RFC 6888 REQ-4", "MUST", "the ports of one host can be limited, and the limit leaves others alone",
    settings="max_ports_per_host = 12\n",
)
def test_rfc6888_req4_limit_of_ports(net: Network) -> None:
    mapped = [net.mapped(f"{W1}:{net.port()} > {U0}:7") for _ in range(14)]
    assert mapped.count(None) >= 2, "no such limit"
    assert net.mapped(f"{W2}:{net.port()} > {U0}:7") is not None


@requirement("RFC 6888 REQ-6", "MUST", "translation can be switched off for a destination",
             rules=(f"-t nat -I POSTROUTING -o bond0.2 -d {U3} -j ACCEPT",))
def test_rfc6888_req6_untranslated_on_purpose(net: Network) -> None:
    port = net.port()
    sent = net.out(udp(f"{W1}:{port} > {U3}:7"))
    assert sent is not None and describe(sent) == f"{W1}:{port} > {U3}:7"
    assert net.mapped(f"{W1}:{port} > {U0}:7") == port


@requirement(
    "RFC 6888 REQ-13", "SHOULD", "every port there is can be used: 300 flows, 300 ports",
    rules=("-t nat -I POSTROUTING -o bond0.2 -p udp --sport 20000:20299 -j MASQUERADE --to-ports 30000-30299",),
)
def test_rfc6888_req13_every_port_can_be_used(net: Network) -> None:
    seen = net.exchange(*(udp(f"{W1}:{port} > {U0}:7") for port in range(20_000, 20_300))).outside
    used = {source_port(each) for each in seen}
    assert used == set(range(30_000, 30_300)), f"{len(used)} flows"


@requirement("RFC 4787 REQ-2", "RECOMMENDED", "all sessions of a host have one outside address (RFC 7857 4)")
def test_rfc4787_req2_paired_pooling(net: Network) -> None:
    ends = f"{W1}:{net.port()} > {U0}:7"
    packets = (udp(ends), tcp(ends), ping(f"{W1} > {U0}", net.port()), ipv4(W1, U0, 50, bytes(20)))
    assert {bytes(each[12:16]) for each in net.exchange(*packets).outside} == {bytes(map(int, G.split(".")))}


@requirement(
    "RFC 4787 REQ-11", "MUST", "a nearly full pool changes nothing about it",
    rules=("-t nat -I POSTROUTING -o bond0.2 -p udp --sport 21000:21099 -j MASQUERADE --to-ports 31000-31019",),
)
def test_rfc4787_req11_the_same_when_nearly_full(net: Network) -> None:
    for port in range(21_000, 21_018):
        net.mapped(f"{W2}:{port} > {U0}:7")
    first = net.mapped(f"{W1}:21050 > {U0}:7")
    assert first is not None
    assert {net.mapped(f"{W1}:21050 > {peer}:9") for peer in (U1, U2, U3)} == {first}, "another port for some peers"
    assert net.back(udp(f"{U3}:1 > {G}:{first}")) is None


# ── filtering ────────────────────────────────────────────────────────────────────────────────────


def let_in(net: Network) -> tuple[bool, bool]:
    """Whether another port of a known peer, and another peer, may send to a mapped port."""
    port = net.port()
    outside = net.mapped(f"{W1}:{port} > {U0}:7")
    one, other = (net.back(udp(f"{text} > {G}:{outside}")) is not None for text in (f"{U0}:9999", f"{U3}:1"))
    return one, other


@requirement("RFC 4787 REQ-8", "RECOMMENDED", "endpoint-independent filtering can be had",
             settings='filtering = "endpoint-independent"\n')
def test_rfc4787_req8_endpoint_independent_filtering(net: Network) -> None:
    assert let_in(net) == (True, True), "nobody but who was written to gets in"


@requirement("RFC 4787 REQ-8", "RECOMMENDED", "address-dependent filtering can be had",
             settings='filtering = "address-dependent"\n')
def test_rfc4787_req8_address_dependent_filtering(net: Network) -> None:
    assert let_in(net) == (True, False), "nobody but who was written to gets in"


@requirement("RFC 4787 5", "default", "without being asked nobody gets in but who was written to")
def test_rfc4787_5_address_and_port_dependent_filtering(net: Network) -> None:
    assert let_in(net) == (False, False)


# ── timers ───────────────────────────────────────────────────────────────────────────────────────


@requirement("RFC 4787 REQ-5", "MUST NOT", "a UDP mapping ends before 120 s")
def test_rfc4787_req5_two_minutes(net: Network) -> None:
    port = net.port()
    net.mapped(f"{W1}:{port} > {U0}:7")
    left = net.left("udp", port)
    assert left >= 120 - SLOW, f"{left + 1} s"


@requirement("RFC 4787 REQ-5c", "RECOMMENDED", "it lasts 300 s")
def test_rfc4787_req5c_five_minutes(net: Network) -> None:
    port = net.port()
    outside = net.mapped(f"{W1}:{port} > {U0}:7")
    net.back(udp(f"{U0}:7 > {G}:{outside}"))
    net.mapped(f"{W1}:{port} > {U0}:7")
    left = net.left("udp", port)
    assert left >= 300 - SLOW, f"{left + 1} s"


@requirement("RFC 4787 REQ-6", "MUST", "outbound packets refresh the mapping")
def test_rfc4787_req6_outbound_refresh(net: Network) -> None:
    port = net.port()
    net.mapped(f"{W1}:{port} > {U0}:7")
    before = net.later("udp", port)
    net.mapped(f"{W1}:{port} > {U0}:7")
    assert net.left("udp", port) > before


@requirement("RFC 4787 REQ-6", "MAY", "whether inbound packets do can be chosen",
             settings="udp_inbound_refresh = false\n")
def test_rfc4787_req6_inbound_refresh_can_be_switched_off(net: Network) -> None:
    port = net.port()
    outside = net.mapped(f"{W1}:{port} > {U0}:7")
    before = net.later("udp", port)
    assert net.back(udp(f"{U0}:7 > {G}:{outside}")) is not None
    assert net.left("udp", port) <= before, "they always do"


@requirement("RFC 4787 REQ-5a", "MAY", "a well-known service can have a time of its own (DNS)",
             settings="[timeouts]\nudp_dns = 7\n")
def test_rfc4787_req5a_dns(net: Network) -> None:
    port = net.port()
    outside = net.mapped(f"{W1}:{port} > {U0}:53")
    net.back(udp(f"{U0}:53 > {G}:{outside}"))
    left = net.left("udp", port)
    assert 0 < left <= 7, "by hand, for each flow (CT --timeout)"


# ── ICMP about UDP ───────────────────────────────────────────────────────────────────────────────


@requirement("RFC 4787 REQ-12", "MUST NOT", "an ICMP message ends a mapping")
def test_rfc4787_req12_icmp_ends_nothing(net: Network) -> None:
    port = net.port()
    sent = net.out(udp(f"{W1}:{port} > {U0}:7"))
    assert sent is not None
    net.exchange(*(icmp_error(f"{U0} > {G}", sent, kind, code) for kind, code in [*ALL_ICMP_ERRORS, (4, 0)]))
    assert net.back(udp(f"{U0}:7 > {G}:{int.from_bytes(sent[20:22], 'big')}")) is not None


@requirement("RFC 4787 REQ-12a", "SHOULD NOT", "ICMP errors are filtered by their source")
def test_rfc4787_req12a_errors_from_any_router(net: Network) -> None:
    sent = net.out(udp(f"{W1}:{net.port()} > {U0}:7"))
    assert sent is not None
    assert net.back(icmp_error(f"{U1} > {G}", sent, 11, 0)) is not None


@requirement("RFC 4787 REQ-12b", "RECOMMENDED", "Destination Unreachable passes, of every code")
def test_rfc4787_req12b_destination_unreachable(net: Network) -> None:
    inside = udp(f"{W1}:{net.port()} > {U0}:7")
    sent = net.out(inside)
    assert sent is not None
    for code in range(16):
        arrived = net.back(icmp_error(f"{U0} > {G}", sent, 3, code))
        assert arrived is not None and arrived[21] == code, f"not code {code}"
        assert describe(quote_of(arrived)) == describe(inside)


@requirement("RFC 4787 REQ-13", "MUST", "what does not fit outwards and may not be cut: ICMP 3/4 with the MTU")
def test_rfc4787_req13_too_big_outwards(net: Network) -> None:
    packet = udp(f"{W1}:{net.port()} > {U0}:7", bytes(1400), fragment=0x4000)
    with net.mtu("head", "bond0.2", 1300):
        seen = net.exchange(packet)
    assert seen.outside == []
    (error,) = seen.inside
    assert (error[20], error[21], int.from_bytes(error[26:28], "big")) == (3, 4, 1300)
    assert describe(quote_of(error)) == describe(packet)


@requirement("RFC 4787 REQ-13", "MUST", "the same inwards; the peer is shown its own packet")
def test_rfc4787_req13_too_big_inwards(net: Network) -> None:
    outside = net.mapped(f"{W1}:{net.port()} > {U0}:7")
    packet = udp(f"{U0}:7 > {G}:{outside}", bytes(1400), fragment=0x4000)
    with net.mtu("head", "bond0.def", 1300):
        seen = net.exchange(packet)
    assert seen.inside == []
    (error,) = seen.outside
    assert (error[20], error[21], int.from_bytes(error[26:28], "big")) == (3, 4, 1300)
    assert describe(quote_of(error)) == describe(packet), "shows an inside address"


@requirement("RFC 4787 REQ-13a", "MUST", "what does not fit and may be cut is cut, and sent in order")
def test_rfc4787_req13a_cut_in_order(net: Network) -> None:
    packet = udp(f"{W1}:{net.port()} > {U0}:7", bytes(1400))
    with net.mtu("head", "bond0.2", 1300):
        seen = net.exchange(packet).outside
    offsets = [int.from_bytes(each[6:8], "big") & 0x1FFF for each in seen]
    assert offsets == sorted(offsets) and offsets[0] == 0 and len(offsets) == 2
    assert sum(len(each) - 20 for each in seen) == len(packet) - 20


# ── headers ──────────────────────────────────────────────────────────────────────────────────────


@requirement("RFC 4787 REQ-10", "SHOULD", "application gateways are off: a SIP message keeps its addresses")
def test_rfc4787_req10_no_alg(net: Network) -> None:
    text = f"REGISTER sip:{U0} SIP/2.0\r\nVia: SIP/2.0/UDP {W1}:5060\r\nContact: <sip:me@{W1}>\r\n\r\n".encode()
    sent = net.out(udp(f"{W1}:5060 > {U0}:5060", text))
    assert sent is not None and sent.endswith(text)


@requirement("RFC 3022 4.1", "MUST", "address, port and all checksums are right, both ways, with IP options too")
@pytest.mark.parametrize("options", [b"", b"\1" * 4, b"\1" * 40])
def test_rfc3022_addresses_ports_and_checksums(net: Network, options: bytes) -> None:
    port = net.port()
    sent = net.out(udp(f"{W1}:{port} > {U0}:7", b"odd", options=options))
    assert sent is not None
    assert_checksums(sent)
    arrived = net.back(udp(f"{U0}:7 > {G}:{port}", b"odd!!", options=options))
    assert arrived is not None and describe(arrived) == f"{U0}:7 > {W1}:{port}"
    assert_checksums(arrived)


@requirement("RFC 768", "MUST", "a datagram without checksum stays without")
def test_rfc768_no_checksum_stays_none(net: Network) -> None:
    sent = net.out(udp(f"{W1}:{net.port()} > {U0}:7", checksum=False))
    assert sent is not None and sent[26:28] == b"\0\0"


@requirement("RFC 768", "MUST", "a checksum that comes to 0 is sent as FFFF")
def test_rfc768_zero_is_written_as_ffff(net: Network) -> None:
    port = net.port()
    zero = next(
        data.to_bytes(2, "big") for data in range(0x1_0000)
        if udp(f"{G}:{port} > {U0}:7", data.to_bytes(2, "big"))[26:28] == b"\xff\xff"
    )
    sent = net.out(udp(f"{W1}:{port} > {U0}:7", zero))
    assert sent is not None and sent[26:28] == b"\xff\xff"


@requirement("RFC 1624", "MUST", "a wrong checksum does not become right, nor the packet leave untranslated")
def test_rfc1624_a_wrong_checksum_stays_wrong(net: Network) -> None:
    packet = udp(f"{W1}:{net.port()} > {U0}:7")
    packet[26] ^= 1
    sent = net.out(packet)
    assert sent is None or describe(sent).startswith(G), "leaves with its inside address"
    if sent is not None:
        with contextlib.suppress(AssertionError):
            assert_checksums(sent)
            pytest.fail("repaired")


@requirement("RFC 1812 5.3.1", "MUST", "the TTL is one less, once")
def test_rfc1812_ttl(net: Network) -> None:
    port = net.port()
    sent = net.out(udp(f"{W1}:{port} > {U0}:7", ttl=64))
    arrived = net.back(udp(f"{U0}:7 > {G}:{port}", ttl=64))
    assert sent is not None and arrived is not None
    assert (sent[8], arrived[8]) == (63, 63)


@requirement("RFC 2474", "MUST", "DSCP and ECN stay")
def test_rfc2474_tos_stays(net: Network) -> None:
    sent = net.out(udp(f"{W1}:{net.port()} > {U0}:7", tos=0xB9))
    assert sent is not None and sent[1] == 0xB9


@requirement("RFC 1918 3", "MUST", "no packet leaves with an inside source: the rule goes while a flow lives")
def test_rfc1918_no_inside_address_leaves_when_the_rule_goes(net: Network) -> None:
    port = net.port()
    for _ in range(2):
        assert net.mapped(f"{W1}:{port} > {U0}:7") == port
    rule = "POSTROUTING -o bond0.2 -j MASQUERADE"
    net.subject.iptables("-t nat -F")
    try:
        seen = net.exchange_without_marks(udp(f"{W1}:{port} > {U0}:7"), udp(f"{W1}:{net.port()} > {U0}:7"))
    finally:
        net.subject.iptables(f"-t nat -A {rule}")
        net.forget_marks()
    leaks = [describe(each) for each in seen if describe(each).startswith("10.")]
    assert leaks == [], "it leaves untranslated"


# ── other protocols ──────────────────────────────────────────────────────────────────────────────


@requirement("RFC 3022", "scope", "a protocol without ports: the address alone, both ways (ESP, GRE, IPIP, 253)")
def test_rfc3022_protocols_without_ports(net: Network) -> None:
    for proto in (4, 47, 50, 253):
        sent = net.out(ipv4(W1, U1, proto, b"\0\0\x08\0 data"))
        assert sent is not None and describe(sent) == f"{G} > {U1}", f"not {proto}"
        arrived = net.back(ipv4(U1, G, proto, b"\0\0\x08\0 data"))
        assert arrived is not None and describe(arrived) == f"{U1} > {W1}", f"not {proto}"


@requirement("RFC 5597 REQ-1", "MUST", "DCCP: one outside endpoint for an inside one, and a port for each host")
def test_rfc5597_req1_dccp(net: Network) -> None:
    port = net.port()
    sent = net.out(dccp(f"{W1}:{port} > {U0}:7"))
    assert sent is not None
    first = source_port(sent)
    assert sent == dccp(f"{G}:{first} > {U0}:7", ttl=63), "its checksum becomes wrong"
    assert net.mapped(f"{W1}:{port} > {U1}:7", dccp) == first
    other = net.mapped(f"{W2}:{port} > {U0}:7", dccp)
    assert other is not None and other != first


@requirement("RFC 3828", "as UDP", "UDP-Lite: a port for each host, the checksum right with any coverage")
def test_rfc3828_udplite(net: Network) -> None:
    port = net.port()
    for host in (W1, W2):
        for coverage in (0, 8, 10):
            sent = net.out(udplite(f"{host}:{port} > {U0}:7", b"some data", coverage=coverage))
            assert sent is not None, "a second host with that port is dropped"
            right = udplite(f"{G}:{source_port(sent)} > {U0}:7", b"some data", coverage=coverage, ttl=63)
            assert sent == right, "its checksum becomes wrong"


@requirement("RFC 9260", "scope", "SCTP: two hosts may have associations with one peer; the CRC-32c is right")
def test_rfc9260_sctp(net: Network) -> None:
    port = net.port()
    for number, host in enumerate((W1, W2)):
        sent = net.out(sctp(f"{host}:{port + number} > {U0}:2905"))
        assert sent is not None, "the second one is dropped"
        assert sent == sctp(f"{G}:{port + number} > {U0}:2905", ttl=63)
        arrived = net.back(sctp(f"{U0}:2905 > {G}:{port + number}"))
        assert arrived == sctp(f"{U0}:2905 > {host}:{port + number}", ttl=63)


@requirement("RFC 4302", "scope", "AH, which signs the addresses, is not passed on to be refused")
def test_rfc4302_ah(net: Network) -> None:
    assert net.out(ipv4(W1, U0, 51, bytes(24))) is None, "it is translated, for nothing"


@requirement("RFC 5508 REQ-8", "SHOULD", "a second host with such a protocol to the same peer is told, not ignored")
def test_rfc5508_req8_a_second_host_without_ports_is_told(net: Network) -> None:
    net.out(ipv4(W1, U2, 50, b"spi=seq=data"))
    seen = net.exchange(ipv4(W2, U2, 50, b"spi=seq=data"))
    assert [each for each in seen.outside if each[9] == 50] == []
    assert [(each[20], each[21]) for each in seen.inside] == [(3, 13)], "dropped in silence"
