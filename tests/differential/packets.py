"""Packets for tests, made from nothing but struct and `wire.checksum`; scapy gives its own opinion."""

from __future__ import annotations

import struct

from natengine.flow.records import FlowSpec
from natengine.vocab import Hook, Proto
from natengine.wire.checksum import checksum, pseudo_header_sum
from natengine.wire.ipv4 import ICMP_COUNTERPART

FIN, SYN, RST, ACK = 1, 2, 4, 16


def ipv4(
    proto: int, src: int, dst: int, payload: bytes, *, options: bytes = b"", fragment: int = 0, ttl: int = 64
) -> bytearray:
    """Return an IPv4 packet with a right header checksum; `options` in multiples of 4 bytes."""
    header_len = 20 + len(options)
    header = struct.pack(
        "!BBHHHBBHII",
        0x40 | header_len // 4, 0, header_len + len(payload), 0x1234, fragment, ttl, proto, 0, src, dst,
    )
    packet = bytearray(header + options + payload)
    struct.pack_into("!H", packet, 10, checksum(packet[:header_len]))
    return packet


def udp_payload(
    src: int, sport: int, dst: int, dport: int, data: bytes = b"", *, no_checksum: bool = False
) -> bytes:
    """Return a UDP header and its data."""
    segment = bytearray(struct.pack("!HHHH", sport, dport, 8 + len(data), 0) + data)
    if not no_checksum:
        value = checksum(segment, pseudo_header_sum(src, dst, Proto.UDP, len(segment)))
        struct.pack_into("!H", segment, 6, value or 0xFFFF)
    return bytes(segment)


def tcp_payload(
    src: int, sport: int, dst: int, dport: int, flags: int, data: bytes = b"", *, options: bytes = b"",
    seq: int | None = None, ack: int = 8, window: int = 512,
) -> bytes:
    """Return a TCP header and its data; `options` in multiples of 4 bytes.  Both sides begin with number 7."""
    offset = (20 + len(options)) // 4
    if seq is None:
        seq = 7 if flags & SYN else 8
    header = struct.pack("!HHIIBBHHH", sport, dport, seq, ack, offset << 4, flags, window, 0, 0)
    segment = bytearray(header + options + data)
    value = checksum(segment, pseudo_header_sum(src, dst, Proto.TCP, len(segment)))
    struct.pack_into("!H", segment, 16, value)
    return bytes(segment)


def icmp_payload(
    icmp_type: int, identifier: int, sequence: int = 1, data: bytes = b"", *, code: int = 0
) -> bytes:
    """Return an ICMP query and its data."""
    message = bytearray(struct.pack("!BBHHH", icmp_type, code, 0, identifier, sequence) + data)
    struct.pack_into("!H", message, 2, checksum(message))
    return bytes(message)


def udplite_payload(src: int, sport: int, dst: int, dport: int, data: bytes = b"", *, coverage: int = 0) -> bytes:
    """Return a UDP-Lite header and its data; `coverage` 0: all of it (RFC 3828)."""
    segment = bytearray(struct.pack("!HHHH", sport, dport, coverage, 0) + data)
    value = checksum(segment[:coverage or None], pseudo_header_sum(src, dst, Proto.UDPLITE, len(segment)))
    struct.pack_into("!H", segment, 6, value or 0xFFFF)
    return bytes(segment)


def dccp_payload(src: int, sport: int, dst: int, dport: int, data: bytes = b"") -> bytes:
    """Return a short DCCP-Data header and its data, all of it under the checksum (RFC 4340 5.1)."""
    segment = bytearray(struct.pack("!HHBBHBBH", sport, dport, 3, 0, 0, 2 << 1, 0, 77) + data)
    struct.pack_into("!H", segment, 6, checksum(segment, pseudo_header_sum(src, dst, Proto.DCCP, len(segment))))
    return bytes(segment)


def call_payload(call_id: int, data: bytes = b"", sequence: int = 1) -> bytes:
    """Return PPTP's GRE header (RFC 2637 4.1), with a sequence number, and its data."""
    return struct.pack("!HHHHI", 0x3001, 0x880B, len(data), call_id, sequence) + data


def packet_of(
    spec: FlowSpec, hook: int, *, flags: int = ACK, data: bytes = b"", options: bytes = b"",
    tcp_options: bytes = b"", no_checksum: bool = False, sequence: int = 1, **tcp: int | None,
) -> bytearray:
    """Return a packet of a flow as it is before translation: leaving (POSTROUTING) or arriving.

    `tcp` goes to `tcp_payload`: seq, ack, window.
    """
    leaving = hook == Hook.POSTROUTING
    if leaving:
        src, sport, dst, dport = spec.inside_ip, spec.inside_port, spec.peer_ip, spec.peer_port
    else:
        src, sport, dst, dport = spec.peer_ip, spec.peer_port, spec.outside_ip, spec.outside_port
    if spec.proto == Proto.UDP:
        payload = udp_payload(src, sport, dst, dport, data, no_checksum=no_checksum)
    elif spec.proto == Proto.TCP:
        payload = tcp_payload(src, sport, dst, dport, flags, data, options=tcp_options, **tcp)  # type: ignore[arg-type]
    elif spec.proto == Proto.ICMP:
        icmp_type = spec.peer_port if leaving else ICMP_COUNTERPART.get(spec.peer_port, 0)
        payload = icmp_payload(icmp_type & 0xFF, sport if leaving else dport, sequence, data)
    elif spec.proto == Proto.UDPLITE:
        payload = udplite_payload(src, sport, dst, dport, data, coverage=8 if no_checksum else 0)
    elif spec.proto == Proto.DCCP:
        payload = dccp_payload(src, sport, dst, dport, data)
    elif spec.proto == Proto.SCTP:
        payload = struct.pack("!HHII", sport, dport, 0x5EED, 0xC0FFEE) + data
    elif spec.is_call:
        payload = call_payload(dport, data, sequence)
    else:
        payload = data
    return ipv4(spec.proto, src, dst, payload, options=options)
