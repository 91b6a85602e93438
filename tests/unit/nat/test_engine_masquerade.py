"""MASQUERADE as the wire sees it: endpoints, ports, checksums, both directions."""

from __future__ import annotations

import pytest
from support.engines import BOND_2, BOND_3, Gateway, reason_of
from support.packets import assert_checksums, describe, ping, pong, source_port, tcp, udp

from natengine.vocab import Reason, Verdict


def test_udp_both_ways(gateway: Gateway) -> None:
    """The first packet makes the flow, the answer finds it, and everything else stays as it was."""
    header = {"ident": 99, "tos": 0x10, "ttl": 17}
    sent = udp("10.1.0.11:5000 > 203.0.113.2:53", b"question", **header)
    decision = gateway.out(bytearray(sent))
    assert (decision.verdict, decision.reason) == (Verdict.ACCEPT, Reason.NEW_FLOW)
    assert decision.packet == udp("203.0.113.1:5000 > 203.0.113.2:53", b"question", **header)
    answer = gateway.back(udp("203.0.113.2:53 > 203.0.113.1:5000", b"answer"))
    assert answer.reason is Reason.TRANSLATED
    assert answer.packet == udp("203.0.113.2:53 > 10.1.0.11:5000", b"answer")
    assert gateway.out(bytearray(sent)).reason is Reason.TRANSLATED


def test_tcp_connection(gateway: Gateway) -> None:
    """Open, talk, close: every segment passes, and the state is what conntrack would show."""
    out, back = "10.1.0.11:5000 > 203.0.113.2:80", "203.0.113.2:80 > 203.0.113.1:5000"
    for flags, data in (("S", b""), ("A", b""), ("PA", b"GET"), ("FA", b""), ("A", b"")):
        packet = gateway.through(tcp(out, flags, data))
        assert packet == tcp("203.0.113.1:5000 > 203.0.113.2:80", flags, data)
        reply = {"S": "SA", "PA": "PA", "FA": "FA"}.get(flags)
        if reply:
            assert gateway.returned(tcp(back, reply)) == tcp("203.0.113.2:80 > 10.1.0.11:5000", reply)
    assert gateway.flow().tcp_state == 7      # TIME_WAIT


def test_ping_both_ways(gateway: Gateway) -> None:
    """An echo keeps its identifier where it can, and its payload always (RFC 5508 REQ-1)."""
    assert gateway.through(ping("10.1.0.11 > 203.0.113.2", 77)) == ping("203.0.113.1 > 203.0.113.2", 77)
    assert gateway.returned(pong("203.0.113.2 > 203.0.113.1", 77)) == pong("203.0.113.2 > 10.1.0.11", 77)


def test_ping_with_an_identifier_that_is_taken(gateway: Gateway) -> None:
    """Two workers may use one identifier; each gets its own answers."""
    gateway.through(ping("10.1.0.11 > 203.0.113.2", 77))
    other = gateway.through(ping("10.1.0.12 > 203.0.113.2", 77))
    ident = source_port(other)
    assert ident != 77
    assert_checksums(other)
    answer = gateway.returned(pong("203.0.113.2 > 203.0.113.1", ident))
    assert answer == pong("203.0.113.2 > 10.1.0.12", 77)


def test_both_sides_ping_with_one_identifier(gateway: Gateway) -> None:
    """A peer that pings the head with a worker's identifier is not taken for its answer."""
    gateway.through(ping("10.1.0.11 > 203.0.113.2", 77))
    assert reason_of(gateway.back(ping("203.0.113.2 > 203.0.113.1", 77))) is Reason.LOCAL_IN
    assert reason_of(gateway.head(pong("203.0.113.1 > 203.0.113.2", 77))) is Reason.LOCAL_OUT


@pytest.mark.parametrize("build", [udp, tcp])
def test_mapping_does_not_depend_on_the_peer(gateway: Gateway, build: object) -> None:
    """RFC 4787 REQ-1, RFC 5382 REQ-1: one inside endpoint, one outside endpoint, even after a clash."""
    gateway.through(build("10.1.0.12:5000 > 203.0.113.9:1"))  # type: ignore[operator]
    ports = {
        source_port(gateway.through(build(f"10.1.0.11:5000 > {peer}")))  # type: ignore[operator]
        for peer in ("203.0.113.2:53", "203.0.113.2:80", "203.0.113.7:53")
    }
    assert len(ports) == 1
    assert ports != {5000}


def test_a_port_serves_each_protocol_and_each_address(gateway: Gateway) -> None:
    """UDP 5000, TCP 5000 and the other uplink's 5000 are different ports."""
    assert source_port(gateway.through(udp("10.1.0.11:5000 > 203.0.113.2:53"))) == 5000
    assert source_port(gateway.through(tcp("10.1.0.12:5000 > 203.0.113.2:53"))) == 5000
    assert source_port(gateway.through(udp("10.1.0.12:5000 > 198.51.100.2:53"), BOND_3)) == 5000


def test_each_uplink_gives_its_own_address(gateway: Gateway) -> None:
    """One worker's port, over both uplinks at once; replies know where they came in."""
    gateway.through(udp("10.1.0.11:5000 > 203.0.113.2:53"), BOND_2)
    packet = gateway.through(udp("10.1.0.11:5000 > 198.51.100.2:53"), BOND_3)
    assert describe(packet) == "198.51.100.1:5000 > 198.51.100.2:53"
    packet = gateway.returned(udp("198.51.100.2:53 > 198.51.100.1:5000"), BOND_3)
    assert describe(packet) == "198.51.100.2:53 > 10.1.0.11:5000"


@pytest.mark.parametrize(
    ("port", "lowest", "highest"),
    # RFC 4787 REQ-3a and REQ-4; 512 is the kernel's own cut
    [
        (22, 1, 511), (123, 1, 511), (600, 512, 1023), (777, 512, 1023),
        (5000, 1024, 65535), (5001, 1024, 65535),
    ],
)
def test_clash_gives_a_port_of_the_same_class_and_parity(
    gateway: Gateway, port: int, lowest: int, highest: int
) -> None:
    """The second worker with this source port gets another one that serves the same purpose."""
    assert source_port(gateway.through(udp(f"10.1.0.11:{port} > 203.0.113.2:53"))) == port
    packet = gateway.through(udp(f"10.1.0.12:{port} > 203.0.113.2:53"))
    assert_checksums(packet)
    other = source_port(packet)
    assert other != port
    assert lowest <= other <= highest
    assert other % 2 == port % 2
    answer = gateway.returned(udp(f"203.0.113.2:53 > 203.0.113.1:{other}"))
    assert describe(answer) == f"203.0.113.2:53 > 10.1.0.12:{port}"


def test_port_comes_back_when_its_flows_have_ended(gateway: Gateway) -> None:
    """The second worker gets the port that the first one had."""
    gateway.through(udp("10.1.0.11:5000 > 203.0.113.2:53"))
    assert gateway.expire_all() == 1
    assert gateway.engine.stats().mappings == 0
    assert source_port(gateway.through(udp("10.1.0.12:5000 > 203.0.113.2:53"))) == 5000


def test_random_does_not_keep_the_port(gateway: Gateway) -> None:
    """`--random`: not the inside port, and another one for each worker; but one for each mapping."""
    gateway.rules("-t nat -A POSTROUTING -o bond0.2 -j MASQUERADE --random", fresh=True)
    ports = [
        source_port(gateway.through(udp(f"10.1.0.{host}:5000 > 203.0.113.2:53"))) for host in range(2, 12)
    ]
    assert len(set(ports)) == 10
    assert ports.count(5000) <= 1
    assert source_port(gateway.through(udp("10.1.0.2:5000 > 203.0.113.3:53"))) == ports[0]


def test_to_ports(gateway: Gateway) -> None:
    """`--to-ports` is an exact range; a port inside it is kept."""
    gateway.rules("-t nat -A POSTROUTING -p udp -o bond0.2 -j MASQUERADE --to-ports 6000-6002", fresh=True)
    assert source_port(gateway.through(udp("10.1.0.11:6001 > 203.0.113.2:53"))) == 6001
    ports = {source_port(gateway.through(udp(f"10.1.0.11:{port} > 203.0.113.2:53"))) for port in (5, 5000)}
    assert ports == {6000, 6002}


def test_udp_without_checksum_has_none_afterwards(gateway: Gateway) -> None:
    """RFC 768: 0 says that the sender computed none, and the NAT must not invent one."""
    packet = gateway.through(udp("10.1.0.11:5000 > 203.0.113.2:53", checksum=False))
    assert packet == udp("203.0.113.1:5000 > 203.0.113.2:53", checksum=False)


def test_udp_checksum_never_becomes_zero(gateway: Gateway) -> None:
    """A sum that comes out as 0 is sent as 0xFFFF (RFC 768)."""
    # data equal to the checksum over zeros make the sum of the translated packet 0xFFFF
    data = bytes(udp("203.0.113.1:5000 > 203.0.113.2:53", b"\0\0")[26:28])
    packet = gateway.through(udp("10.1.0.11:5000 > 203.0.113.2:53", data))
    assert packet[26:28] == b"\xff\xff"
    assert_checksums(packet)


@pytest.mark.parametrize("build", [udp, tcp])
def test_a_wrong_checksum_stays_wrong(gateway: Gateway, build: object) -> None:
    """A packet damaged on its way must not leave with a checksum that says otherwise."""
    packet = build("10.1.0.11:5000 > 203.0.113.2:53", data=b"some data")  # type: ignore[operator]
    packet[-1] ^= 0x40
    packet = gateway.through(packet)
    assert_checksums(packet, transport=False)
    with pytest.raises(AssertionError):
        assert_checksums(packet)


def test_options_and_padding(gateway: Gateway) -> None:
    """IP options move the ports; bytes behind the total length are not the packet's."""
    sent = udp("10.1.0.11:5000 > 203.0.113.2:53", options=b"\1\1\1\1\1\1\1\1") + b"padding"
    wanted = udp("203.0.113.1:5000 > 203.0.113.2:53", options=b"\1\1\1\1\1\1\1\1") + b"padding"
    assert gateway.through(sent) == wanted


def test_port_zero(gateway: Gateway) -> None:
    """Port 0 is kept where it is free, as the kernel does, and replaced where it is not."""
    assert source_port(gateway.through(udp("10.1.0.11:0 > 203.0.113.2:53"))) == 0
    assert source_port(gateway.through(udp("10.1.0.12:0 > 203.0.113.2:53"))) >= 1024


def test_same_seed_same_bytes(fastpath_backend: object) -> None:
    """Same packets, same times, same dice: same bytes."""
    def run(seed: int) -> list[bytes]:
        gateway = Gateway(fastpath_backend, seed=seed)  # type: ignore[arg-type]
        return [
            bytes(gateway.through(udp(f"10.1.0.{host}:5000 > 203.0.113.2:53"))) for host in range(2, 40)
        ]

    assert run(1) == run(1)
    assert run(1) != run(2)


TCP_OPTIONS = {
    "a SYN's": (b"\2\4\5\xb4\4\2\x08\x0a\0\0\0\1\0\0\0\0\1\3\3\7", "S"),             # MSS, SACK permitted, times, scale
    "a fast open cookie": (b"\x22\x0a\1\2\3\4\5\6\7\x08\0\0", "S"),                         # RFC 7413
    "SACK blocks": (b"\1\1\5\x12" + bytes(range(16)), "A"),
    "a signature": (b"\x13\x12" + bytes(range(16)) + b"\1\1", "A"),                           # RFC 2385
    "an unknown one": (b"\xfd\4\xab\xcd", "A"),
    "one that lies about its length": (b"\5\xff\0\0", "A"),
}


@pytest.mark.parametrize("name", TCP_OPTIONS)
def test_tcp_options_are_not_touched(gateway: Gateway, name: str) -> None:
    """Both ways, byte for byte; what they say is between the two ends."""
    options, flags = TCP_OPTIONS[name]
    inside, outside, peer = "10.1.0.11:5000", "203.0.113.1:5000", "203.0.113.2:80"
    if flags == "S":
        assert gateway.through(tcp(f"{inside} > {peer}", "S", tcp_options=options)) == tcp(
            f"{outside} > {peer}", "S", tcp_options=options)
        assert gateway.returned(tcp(f"{peer} > {outside}", "SA", tcp_options=options)) == tcp(
            f"{peer} > {inside}", "SA", tcp_options=options)
        return
    gateway.through(tcp(f"{inside} > {peer}", "S"))
    gateway.returned(tcp(f"{peer} > {outside}", "SA"))
    assert gateway.through(tcp(f"{inside} > {peer}", "A", tcp_options=options)) == tcp(
        f"{outside} > {peer}", "A", tcp_options=options)
    assert gateway.returned(tcp(f"{peer} > {outside}", "A", tcp_options=options)) == tcp(
        f"{peer} > {inside}", "A", tcp_options=options)
