"""Reading an IPv4 packet: the IP header, and of the header inside it what NAT looks at.

Every reader takes bytes from the network, whatever they say, and either returns fields that lie
within the captured bytes or raises `BadPacket` (`Truncated` where the capture is too short);
nothing else.  Offsets count from the start of the IP header.

Source: RFC 791 (IP), RFC 9293 (TCP), RFC 768 (UDP), RFC 792 (ICMP), RFC 2637 4.1 (the GRE of PPTP).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from natengine.errors import BadPacket, Truncated
from natengine.vocab import Proto

Buffer = bytes | bytearray | memoryview

MIN_HEADER = 20                     # IHL 5
IP_IDENTIFICATION, IP_FRAGMENT_WORD, IP_CHECKSUM, IP_SRC, IP_DST = 4, 6, 10, 12, 16
MORE_FRAGMENTS = 0x2000
OFFSET_MASK = 0x1FFF                # in units of 8 bytes

# of these a header is read; to all other protocols it is data
MIN_TRANSPORT = {Proto.TCP: 20, Proto.UDP: 8, Proto.ICMP: 8, Proto.DCCP: 12, Proto.SCTP: 12, Proto.UDPLITE: 8}
WITH_PORTS = frozenset({Proto.TCP, Proto.UDP, Proto.DCCP, Proto.SCTP, Proto.UDPLITE})       # in the first four bytes
# where each protocol keeps its checksum, from the start of its own header; SCTP's CRC-32c cannot be updated, but
# does not cover the addresses either (RFC 9260 6.8)
TRANSPORT_CHECKSUM = {Proto.TCP: 16, Proto.UDP: 6, Proto.ICMP: 2, Proto.DCCP: 6, Proto.UDPLITE: 6}

ICMP_ECHO_REPLY, ICMP_ECHO_REQUEST = 0, 8
ICMP_TIMESTAMP_REQUEST, ICMP_TIMESTAMP_REPLY = 13, 14
ICMP_MASK_REQUEST, ICMP_MASK_REPLY = 17, 18
# queries with an identifier (RFC 5508 1); not Information Request, which RFC 5508 REQ-10c and RFC 6918 are against
ICMP_REPLY_TO = {
    ICMP_ECHO_REQUEST: ICMP_ECHO_REPLY,
    ICMP_TIMESTAMP_REQUEST: ICMP_TIMESTAMP_REPLY,
    ICMP_MASK_REQUEST: ICMP_MASK_REPLY,
}
ICMP_COUNTERPART = ICMP_REPLY_TO | {reply: request for request, reply in ICMP_REPLY_TO.items()}

PPP_IN_GRE = 0x880B                 # GRE's protocol type; in PPTP's version of GRE a call id stands for a port
CALL_ID = 6                         # where it is in the GRE header
_CALL_FLAGS, _CALL_MASK = 0x2001, 0xA007        # no checksum, a key, version 1

_HEADER = struct.Struct("!BBHHHBBHII")
_ENHANCED_GRE = struct.Struct("!HHHH")
_PORTS = struct.Struct("!HH")
_ECHO = struct.Struct("!BBHH")


class Ipv4Fields(NamedTuple):
    """An IPv4 header."""

    header_len: int                 # bytes, 20..60
    total_len: int                  # bytes, header included; at most what was captured
    tos: int
    identification: int
    more_fragments: bool
    fragment_offset: int            # bytes
    ttl: int
    proto: int
    src: int
    dst: int

    @property
    def is_fragment(self) -> bool:
        """Whether this is any part of a fragmented datagram, the first one included."""
        return self.more_fragments or self.fragment_offset > 0


class Transport(NamedTuple):
    """The ports of a protocol that has some, or type, code and identifier of ICMP; else zeros.

    PPTP's GRE has as its destination port the call id that it carries, which is the receiver's; as its source port
    PPP_IN_GRE, for the sender's is not in it.
    """

    src_port_or_icmp_id: int
    dst_port_or_icmp_id: int
    tcp_flags: int                  # 0 unless TCP
    icmp_type: int                  # 0 unless ICMP
    icmp_code: int


def parse_header_untrusted(packet: Buffer) -> Ipv4Fields:
    """Read the IP header at the start of `packet`, the rest of which may be missing.

    This is for the packet that an ICMP error quotes.  `total_len` may exceed `len(packet)`.

    Raises:
        Truncated: Fewer bytes than the header.
        BadPacket: Not version 4, IHL below 5, or a total length shorter than the header.
    """
    if len(packet) < MIN_HEADER:
        raise Truncated(f"{len(packet)} bytes are less than an IPv4 header")
    version_ihl, tos, total_len, ident, fragment, ttl, proto, _sum, src, dst = _HEADER.unpack_from(packet)
    header_len = (version_ihl & 15) * 4
    if version_ihl >> 4 != 4 or header_len < MIN_HEADER or total_len < header_len:
        raise BadPacket(f"version {version_ihl >> 4}, header {header_len} bytes, total {total_len} bytes")
    if header_len > len(packet):
        raise Truncated(f"a header of {header_len} bytes, {len(packet)} captured")
    return Ipv4Fields(
        header_len, total_len, tos, ident, bool(fragment & MORE_FRAGMENTS), (fragment & OFFSET_MASK) * 8,
        ttl, proto, src, dst,
    )


def parse_ipv4_untrusted(packet: Buffer) -> Ipv4Fields:
    """Read the IP header of a whole packet; bytes behind `total_len` are padding.

    Raises:
        Truncated: Fewer bytes than the header or its total length say.
        BadPacket: As `parse_header_untrusted`.
    """
    ip = parse_header_untrusted(packet)
    if ip.total_len > len(packet):
        raise Truncated(f"{ip.total_len} bytes announced, {len(packet)} captured")
    return ip


def parse_transport_untrusted(packet: Buffer, ip: Ipv4Fields) -> Transport:
    """Read the transport header of an unfragmented packet or of a first fragment.

    Raises:
        BadPacket: The header does not fit into the packet, or contradicts itself.  A first fragment
            must hold the whole minimal header (RFC 1858's tiny-fragment rule).
    """
    start, length = ip.header_len, ip.total_len - ip.header_len
    if length < MIN_TRANSPORT.get(ip.proto, 0):    # type: ignore[call-overload]
        raise BadPacket(f"{length} bytes are less than a header of protocol {ip.proto}")
    if ip.proto in WITH_PORTS:
        src, dst = _PORTS.unpack_from(packet, start)
        announced = _announced_len(packet, start, ip.proto, length)
        # of a first fragment the rest may be in the next one
        if announced < MIN_TRANSPORT[Proto(ip.proto)] or (announced > length and not ip.more_fragments):
            raise BadPacket(f"protocol {ip.proto} announces {announced} bytes, of {length}")
        return Transport(src, dst, packet[start + 13] if ip.proto == Proto.TCP else 0, 0, 0)
    if ip.proto == Proto.ICMP:
        icmp_type, code, _sum, ident = _ECHO.unpack_from(packet, start)
        return Transport(ident, ident, 0, icmp_type, code)
    return read_call(packet, start, length) if ip.proto == Proto.GRE else Transport(0, 0, 0, 0, 0)


def read_call(packet: Buffer, start: int, length: int) -> Transport:
    """Read a GRE header of `length` bytes, more or less; all is 0 unless it is PPTP's."""
    if length >= _ENHANCED_GRE.size:
        flags, protocol, _payload, call_id = _ENHANCED_GRE.unpack_from(packet, start)
        if flags & _CALL_MASK == _CALL_FLAGS and protocol == PPP_IN_GRE:
            return Transport(PPP_IN_GRE, call_id, 0, 0, 0)
    return Transport(0, 0, 0, 0, 0)


def parse_packet_untrusted(packet: Buffer) -> tuple[Ipv4Fields, Transport]:
    """Read the IP header and the transport header of a whole packet.

    That of a fragment is left unread: all its fields are 0.

    Raises:
        Truncated, BadPacket: As `parse_ipv4_untrusted` and `parse_transport_untrusted`.
    """
    ip = parse_ipv4_untrusted(packet)
    return ip, Transport(0, 0, 0, 0, 0) if ip.is_fragment else parse_transport_untrusted(packet, ip)
def _announced_len(packet: Buffer, start: int, proto: int, length: int) -> int:
    """Return how many bytes a transport header says there are: of the header, or all, or under its checksum."""
    if proto == Proto.TCP:
        return (packet[start + 12] >> 4) * 4
    if proto == Proto.DCCP:
        return packet[start + 4] * 4                                        # RFC 4340 5.1
    if proto == Proto.SCTP:
        return MIN_TRANSPORT[Proto.SCTP]                                    # says nothing
    announced = int.from_bytes(packet[start + 4:start + 6], "big")
    return length if proto == Proto.UDPLITE and announced == 0 else announced       # RFC 3828 3.1: 0 is all
