"""IPv4 packets from text, and back.

    udp("10.1.0.11:5000 > 203.0.113.2:53")        describe(…) == "10.1.0.11:5000 > 203.0.113.2:53"
    ping("10.1.0.11 > 203.0.113.2", 77)           describe(…) == "10.1.0.11 > 203.0.113.2 id 77"
    icmp_error("198.51.100.9 > 203.0.113.1", quoted)

The builders know nothing of natengine but struct's idea of a header; checksums are summed here, the
slow way.  `assert_checksums` asks scapy, which shares no code with either.
"""

from __future__ import annotations

import struct

FIN, SYN, RST, PSH, ACK, URG = 1, 2, 4, 8, 16, 32
_FLAGS = {"F": FIN, "S": SYN, "R": RST, "P": PSH, "A": ACK, "U": URG}
ICMP, TCP, UDP, DCCP, GRE, ESP, AH, SCTP, UDPLITE = 1, 6, 17, 33, 47, 50, 51, 132, 136
MORE_FRAGMENTS = 0x2000


def address(text: str) -> int:
    """Return a dotted quad as a host-order integer."""
    return int.from_bytes(bytes(map(int, text.split("."))), "big")


def dotted(value: int) -> str:
    """Return a host-order integer as a dotted quad."""
    return ".".join(map(str, value.to_bytes(4, "big")))


def ones_sum(data: bytes | bytearray) -> int:
    """Return the one's complement sum of 16-bit words, not complemented."""
    total = 0
    for i in range(0, len(data), 2):
        total += int.from_bytes(bytes(data[i:i + 2]).ljust(2, b"\0"), "big")
        total = (total & 0xFFFF) + (total >> 16)
    return total


def ipv4(
    src: str, dst: str, proto: int, payload: bytes, *,
    ident: int = 1, ttl: int = 64, options: bytes = b"", fragment: int = 0, tos: int = 0,
) -> bytearray:
    """Return a packet; `fragment` is the word with the flags and the offset in units of 8 bytes."""
    header_len = 20 + len(options)
    packet = bytearray(struct.pack(
        "!BBHHHBBHII", 0x40 | header_len // 4, tos, header_len + len(payload), ident, fragment, ttl, proto, 0,
        address(src), address(dst),
    ) + options)
    packet[10:12] = (~ones_sum(packet) & 0xFFFF).to_bytes(2, "big")
    return packet + payload


def _sides(text: str) -> tuple[str, int, str, int]:
    """Split "A:1 > B:2"; a port that is not there is 0."""
    (src, _, sport), (dst, _, dport) = (side.strip().partition(":") for side in text.split(">"))
    return src, int(sport or 0), dst, int(dport or 0)


def _with_checksum(segment: bytearray, at: int, src: str, dst: str, proto: int) -> bytes:
    pseudo = struct.pack("!IIHH", address(src), address(dst), proto, len(segment))
    value = ~ones_sum(pseudo + bytes(segment)) & 0xFFFF
    segment[at:at + 2] = (0xFFFF if value == 0 and proto == UDP else value).to_bytes(2, "big")
    return bytes(segment)


def udp(text: str, data: bytes = b"data", *, checksum: bool = True, **header: int | bytes) -> bytearray:
    """Return a UDP datagram; without `checksum` the sender computed none."""
    src, sport, dst, dport = _sides(text)
    segment = bytearray(struct.pack("!HHHH", sport, dport, 8 + len(data), 0) + data)
    payload = _with_checksum(segment, 6, src, dst, UDP) if checksum else bytes(segment)
    return ipv4(src, dst, UDP, payload, **header)  # type: ignore[arg-type]


def udplite(text: str, data: bytes = b"data", *, coverage: int = 8, **header: int | bytes) -> bytearray:
    """Return a UDP-Lite datagram, the first `coverage` bytes of it under its checksum; 0: all (RFC 3828)."""
    src, sport, dst, dport = _sides(text)
    segment = bytearray(struct.pack("!HHHH", sport, dport, coverage, 0) + data)
    covered = coverage or len(segment)
    pseudo = struct.pack("!IIHH", address(src), address(dst), UDPLITE, len(segment))
    value = ~ones_sum(pseudo + bytes(segment[:covered])) & 0xFFFF or 0xFFFF
    segment[6:8] = value.to_bytes(2, "big")
    return ipv4(src, dst, UDPLITE, bytes(segment), **header)  # type: ignore[arg-type]


def dccp(text: str, data: bytes = b"data", **header: int | bytes) -> bytearray:
    """Return a short DCCP-Data packet, all of it under its checksum (RFC 4340 5.1)."""
    src, sport, dst, dport = _sides(text)
    segment = bytearray(struct.pack("!HHBBHBBH", sport, dport, 3, 0, 0, 2 << 1, 0, 77) + data)
    return ipv4(src, dst, DCCP, _with_checksum(segment, 6, src, dst, DCCP), **header)  # type: ignore[arg-type]


def sctp(text: str, data: bytes = b"\1\0\0\x14" + bytes(16), **header: int | bytes) -> bytearray:
    """Return an SCTP packet, an INIT if nothing is said, with its checksum (RFC 9260 3.1, Appendix A)."""
    src, sport, dst, dport = _sides(text)
    packet = bytearray(struct.pack("!HHII", sport, dport, 0, 0) + data)
    packet[8:12] = crc32c(packet).to_bytes(4, "little")
    return ipv4(src, dst, SCTP, bytes(packet), **header)  # type: ignore[arg-type]


def crc32c(data: bytes | bytearray) -> int:
    """Return the CRC of RFC 3720 B.4, bit by bit."""
    value = 0xFFFF_FFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F6_3B78 if value & 1 else 0)
    return ~value & 0xFFFF_FFFF


def tcp(
    text: str, flags: str = "S", data: bytes = b"", *, seq: int | None = None, ack: int = 1001,
    tcp_options: bytes = b"", **header: int | bytes,
) -> bytearray:
    """Return a TCP segment; `flags` are letters of FSRPAU.  Both sides begin with number 1000."""
    src, sport, dst, dport = _sides(text)
    bits = sum(_FLAGS[letter] for letter in flags)
    if seq is None:
        seq = 1000 if bits & SYN else 1001
    offset = 5 + len(tcp_options) // 4
    segment = bytearray(struct.pack("!HHIIBBHHH", sport, dport, seq, ack, offset << 4, bits, 512, 0, 0))
    segment += tcp_options + data
    return ipv4(src, dst, TCP, _with_checksum(segment, 16, src, dst, TCP), **header)  # type: ignore[arg-type]


def icmp(
    text: str, icmp_type: int, rest: bytes = b"\0\0\0\0", data: bytes = b"", *, code: int = 0,
    **header: int | bytes,
) -> bytearray:
    """Return an ICMP message; `rest` are the four bytes behind its checksum."""
    src, _, dst, _ = _sides(text)
    message = bytearray([icmp_type, code, 0, 0]) + rest + data
    message[2:4] = (~ones_sum(message) & 0xFFFF).to_bytes(2, "big")
    return ipv4(src, dst, ICMP, bytes(message), **header)  # type: ignore[arg-type]


def ping(
    text: str, ident: int, data: bytes = b"abcdefgh", *, seq: int = 1, **header: int | bytes
) -> bytearray:
    """Return an echo request."""
    return icmp(text, 8, struct.pack("!HH", ident, seq), data, **header)


def pong(
    text: str, ident: int, data: bytes = b"abcdefgh", *, seq: int = 1, **header: int | bytes
) -> bytearray:
    """Return an echo reply."""
    return icmp(text, 0, struct.pack("!HH", ident, seq), data, **header)


def icmp_error(
    text: str, quoted: bytes | bytearray, icmp_type: int = 3, code: int = 1, *,
    quote_len: int | None = None, rest: bytes = b"\0\0\0\0",
) -> bytearray:
    """Return an ICMP error that quotes the first `quote_len` bytes of a packet (None: all)."""
    return icmp(text, icmp_type, rest, bytes(quoted[:quote_len]), code=code)


def other(text: str, proto: int = GRE, data: bytes = b"\0\0\x08\0payload") -> bytearray:
    """Return a packet of a protocol without ports."""
    src, _, dst, _ = _sides(text)
    return ipv4(src, dst, proto, data)


def fragments(packet: bytes | bytearray, size: int, ident: int = 7) -> list[bytearray]:
    """Cut a packet without options into fragments of `size` bytes of payload (a multiple of 8)."""
    assert size % 8 == 0
    src, dst = dotted(int.from_bytes(packet[12:16], "big")), dotted(int.from_bytes(packet[16:20], "big"))
    payload = bytes(packet[20:])
    return [
        ipv4(
            src, dst, packet[9], payload[at:at + size], ident=ident,
            fragment=at // 8 | (MORE_FRAGMENTS if at + size < len(payload) else 0),
        )
        for at in range(0, len(payload), size)
    ]


def joined(pieces: list[bytearray]) -> bytearray:
    """Put fragments together, as the receiver would."""
    first = pieces[0]
    return ipv4(
        dotted(int.from_bytes(first[12:16], "big")), dotted(int.from_bytes(first[16:20], "big")), first[9],
        b"".join(bytes(piece[20:]) for piece in pieces),
    )


# ── reading back ────────────────────────────────────────────────────────────────────────────────


def describe(packet: bytes | bytearray) -> str:
    """Return the endpoints of a packet as the builders take them; ICMP echo with its identifier."""
    src, dst = dotted(int.from_bytes(packet[12:16], "big")), dotted(int.from_bytes(packet[16:20], "big"))
    at = (packet[0] & 15) * 4
    later_fragment = int.from_bytes(packet[6:8], "big") & 0x1FFF
    if packet[9] in (TCP, UDP, DCCP, SCTP, UDPLITE) and not later_fragment:
        sport, dport = struct.unpack_from("!HH", packet, at)
        return f"{src}:{sport} > {dst}:{dport}"
    if packet[9] == ICMP and not later_fragment and packet[at] in (0, 8):
        return f"{src} > {dst} id {int.from_bytes(packet[at + 4:at + 6], 'big')}"
    return f"{src} > {dst}"


def quote_of(packet: bytes | bytearray) -> bytearray:
    """Return the packet that an ICMP error quotes."""
    return bytearray(packet[(packet[0] & 15) * 4 + 8:])


def source_port(packet: bytes | bytearray) -> int:
    """Return the source port, or the identifier of an ICMP echo."""
    at = (packet[0] & 15) * 4
    return int.from_bytes(packet[at + 4:at + 6] if packet[9] == ICMP else packet[at:at + 2], "big")


def assert_checksums(packet: bytes | bytearray, *, transport: bool = True) -> None:
    """Let scapy compute every checksum anew and compare; `transport` False: the IP header's only."""
    from scapy.layers.inet import ICMP as ScapyICMP
    from scapy.layers.inet import IP as ScapyIP
    from scapy.layers.inet import TCP as ScapyTCP
    from scapy.layers.inet import UDP as ScapyUDP

    found = ScapyIP(bytes(packet))
    wanted = found.copy()
    del wanted.chksum
    for layer in (ScapyTCP, ScapyUDP, ScapyICMP) if transport else ():
        if layer in wanted:
            if layer is ScapyUDP and wanted[layer].chksum == 0:
                continue                        # none was computed
            del wanted[layer].chksum
    assert bytes(found).hex() == bytes(wanted).hex()


def assert_error_checksums(packet: bytes | bytearray) -> None:
    """Check an ICMP error with scapy: both IP headers, ICMP, and the quoted transport if all of it is there."""
    from scapy.utils import checksum

    at = (packet[0] & 15) * 4
    assert checksum(bytes(packet[:at])) == 0, "outer IP header"
    assert checksum(bytes(packet[at:])) == 0, "ICMP"
    quoted = quote_of(packet)
    assert checksum(bytes(quoted[:(quoted[0] & 15) * 4])) == 0, "quoted IP header"
    is_fragment = int.from_bytes(quoted[6:8], "big") & 0x3FFF
    if len(quoted) == int.from_bytes(quoted[2:4], "big") and not is_fragment:
        assert_checksums(quoted)
