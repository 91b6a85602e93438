"""Whole connections, as the RFCs want a NAT to treat them: what ends, what begins again, what is not touched."""

from __future__ import annotations

import struct
from types import ModuleType

import pytest
from support.engines import Gateway, reason_of
from support.packets import address, icmp, other, ping, source_port, tcp, udp

from natengine.flow.tcp_state import TcpState
from natengine.vocab import Reason, Verdict

OUT, BACK = "10.1.0.11:5000 > 203.0.113.2:80", "203.0.113.2:80 > 203.0.113.1:5000"


def opened(gateway: Gateway) -> None:
    gateway.through(tcp(OUT, "S"))
    gateway.returned(tcp(BACK, "SA"))
    gateway.through(tcp(OUT, "A"))


def closed(gateway: Gateway) -> None:
    """Open a connection and close it from inside: TIME_WAIT."""
    opened(gateway)
    gateway.through(tcp(OUT, "FA"))
    gateway.returned(tcp(BACK, "FA", ack=1002))
    gateway.through(tcp(OUT, "A", seq=1002, ack=1002))
    assert gateway.flow().tcp_state == TcpState.TIME_WAIT


# ── TIME_WAIT ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("isn", [1002, 70_000, 0x7000_0000])
def test_rfc9293_361_a_higher_number_opens_again_out_of_time_wait(gateway: Gateway, isn: int) -> None:
    """The same flow and port; what is left of the old connection is not part of the new one."""
    closed(gateway)
    assert gateway.through(tcp(OUT, "S", seq=isn)) == tcp(OUT.replace("10.1.0.11", "203.0.113.1"), "S", seq=isn)
    assert gateway.flow().tcp_state == TcpState.SYN_SENT
    gateway.returned(tcp(BACK, "SA", seq=900_000, ack=isn + 1))
    gateway.through(tcp(OUT, "A", seq=isn + 1, ack=900_001))
    assert gateway.flow().tcp_state == TcpState.ESTABLISHED
    assert reason_of(gateway.back(tcp(BACK, "A", b"old", seq=1001, ack=1002))) is Reason.TCP_WINDOW
    assert gateway.returned(tcp(BACK, "A", b"new", seq=900_001, ack=isn + 1))


def test_rfc9293_361_an_old_syn_in_time_wait_is_for_its_receiver_to_judge(gateway: Gateway) -> None:
    """A lower number may be a new connection (RFC 6191: its timestamp tells).  If not, the receiver asks back."""
    closed(gateway)
    gateway.through(tcp(OUT, "S", seq=900))
    assert gateway.returned(tcp(BACK, "A", seq=1002, ack=1002))         # "I am in TIME_WAIT"
    assert gateway.through(tcp(OUT, "R", seq=1002))                     # "then forget it"
    gateway.through(tcp(OUT, "S", seq=900))
    gateway.returned(tcp(BACK, "SA", seq=900_000, ack=901))
    gateway.through(tcp(OUT, "A", seq=901, ack=900_001))
    assert gateway.flow().tcp_state == TcpState.ESTABLISHED


def test_rfc9293_361_the_peer_does_not_open_again_what_the_inside_has_closed(gateway: Gateway) -> None:
    """Nobody has asked for a connection the other way; TIME_WAIT goes on for the one that there was."""
    closed(gateway)
    deadline = gateway.flow().deadline_ns
    gateway.clock.advance(1)
    assert reason_of(gateway.back(tcp(BACK, "S", seq=70_000))) is Reason.TCP_STATE
    assert (gateway.flow().tcp_state, gateway.flow().deadline_ns) == (TcpState.TIME_WAIT, deadline)


# ── options ──────────────────────────────────────────────────────────────────────────────────────

SACK = struct.pack("!BBBBIIII", 1, 1, 5, 18, 2001, 3001, 4001, 4501)
OPTIONS = {
    "maximum segment size": b"\2\4\x05\xb4", "window scale": b"\1\3\3\7", "SACK permitted": b"\1\1\4\2",
    "SACK": SACK, "timestamps": b"\1\1\x08\x0a" + bytes(range(8)), "Fast Open": b"\x22\x0a" + bytes(8) + b"\1\1",
    "Multipath": b"\x1e\x0c\0\x81" + bytes(range(8)), "MD5": b"\x13\x12" + bytes(range(16)) + b"\1\1",
    "of no use to anybody": b"\xfd\4\xf9\x89", "malformed": b"\5\1\0\0", "all 40 bytes": b"\1" * 40,
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("flags", ["S", "A"])
def test_rfc9293_31_options_are_not_touched(gateway: Gateway, name: str, flags: str) -> None:
    """Not a byte of them, in either direction, on SYNs and later, with the checksum right."""
    options = OPTIONS[name]
    if flags == "A":
        opened(gateway)
    sent = gateway.through(tcp(OUT, flags, b"x", tcp_options=options))
    assert sent == tcp("203.0.113.1:5000 > 203.0.113.2:80", flags, b"x", tcp_options=options)
    back = {"S": "SA", "A": "A"}[flags]
    got = gateway.returned(tcp(BACK, back, b"x", ack=1002, tcp_options=options))
    assert got == tcp("203.0.113.2:80 > 10.1.0.11:5000", back, b"x", ack=1002, tcp_options=options)


def test_rfc2018_holes_are_reported_and_filled(gateway: Gateway) -> None:
    """The window moves with the ACKs alone: segments behind a hole, SACK blocks about them, what is sent once more."""
    gateway.through(tcp(OUT, "S", tcp_options=b"\1\1\4\2"))
    gateway.returned(tcp(BACK, "SA", tcp_options=b"\1\1\4\2"))
    gateway.through(tcp(OUT, "A"))
    for start in (101, 201, 301):                                       # 1..100 are lost behind us
        gateway.through(tcp(OUT, "A", bytes(100), seq=1000 + start))
        block = struct.pack("!BBBBII", 1, 1, 5, 10, 1101, 1000 + start + 100)
        assert gateway.returned(tcp(BACK, "A", tcp_options=block))[40:] == block
    gateway.through(tcp(OUT, "A", bytes(100), seq=1001))
    gateway.returned(tcp(BACK, "A", ack=1401))
    duplicate = struct.pack("!BBBBII", 1, 1, 5, 10, 1001, 1101)         # RFC 2883: it has come twice
    gateway.through(tcp(OUT, "A", bytes(100), seq=1001))
    assert gateway.returned(tcp(BACK, "A", ack=1401, tcp_options=duplicate))


# ── what cannot be translated ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("source", ["10.9.9.9", "192.168.0.5", "8.8.8.8", "10.1.1.11", "127.0.0.1", "0.0.0.0"])
def test_rfc1918_3_a_source_that_no_rule_covers_does_not_leave(fastpath_backend: ModuleType, source: str) -> None:
    """MASQUERADE for the workers' network only: of a forged source nothing passes, of no protocol and in no state."""
    gateway = Gateway(fastpath_backend, ["-t nat -A POSTROUTING -s 10.1.0.0/24 -o bond0.2 -j MASQUERADE"])
    gateway.through(udp("10.1.0.11:5000 > 203.0.113.2:53"))
    ends = f"{source} > 203.0.113.2"
    packets = [
        udp(f"{source}:5000 > 203.0.113.2:53"), ping(ends, 7), other(ends), other(ends, 50),
        icmp(ends, 5), icmp(ends, 3),
        *(tcp(f"{source}:5000 > 203.0.113.2:80", flags) for flags in ("S", "A", "SA", "FA", "R", "", "SF")),
    ]
    packets += [packet[:19] + bytes([9]) + packet[20:] for packet in packets]          # and wrong IP checksums
    for packet in packets:
        assert address(source).to_bytes(4, "big") == packet[12:16]
        assert gateway.out(packet).verdict is Verdict.DROP
    assert len(gateway.engine.flows()) == 1


def test_whom_the_rule_covers_leaves(fastpath_backend: ModuleType) -> None:
    """The same rule still serves whom it is for."""
    gateway = Gateway(fastpath_backend, ["-t nat -A POSTROUTING -s 10.1.0.0/24 -o bond0.2 -j MASQUERADE"])
    assert source_port(gateway.through(udp("10.1.0.12:5000 > 203.0.113.2:53"))) == 5000
