"""What the engine wants to say itself: packets of its own, which the program around it sends.

Rule 1: no error about what must not have one (RFC 1812 4.3.2.7): an ICMP error, a later fragment, a packet
        to or from more than one host.
Rule 2: not too many (RFC 1812 4.3.2.8): so many a second in all, and fewer to one host, with the kernel's
        figures (icmp_msgs_per_sec, icmp_msgs_burst, icmp_ratelimit).

Whoever may be answered is told; nobody can make us a source of packets for others.
"""

from __future__ import annotations

from natengine.nat.interfaces import LIMITED_BROADCAST, LOOPBACK, MULTICAST
from natengine.nat.rates import RateLimit
from natengine.vocab import Proto
from natengine.wire.build import icmp_error
from natengine.wire.ipv4 import Buffer, Ipv4Fields

UNREACHABLE, TIME_EXCEEDED = 3, 11
PORT_UNREACHABLE = 3                # of type 3
ADMINISTRATIVELY_PROHIBITED = 13    # of type 3
REASSEMBLY_TIME_EXCEEDED = 1        # of type 11

# an error about one of these may be answered by an error for ever (RFC 1122 3.2.2)
ICMP_ERRORS = frozenset({3, 4, 5, 11, 12})

ALL_A_SECOND, ALL_AT_ONCE = 1000, 50
EACH_A_SECOND, EACH_AT_ONCE = 1, 6


class Outbox:
    """Packets waiting to be sent."""

    def __init__(self) -> None:
        self._waiting: list[bytearray] = []
        self._rate = RateLimit(each=(EACH_A_SECOND, EACH_AT_ONCE), all=(ALL_A_SECOND, ALL_AT_ONCE))
        self.suppressed = 0             # errors not sent for rule 2

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self) -> list[bytearray]:
        """Return what is to be sent, in order, and forget it."""
        waiting, self._waiting = self._waiting, []
        return waiting

    def put(self, packet: bytearray) -> None:
        """Send a packet that is not an error: for a RST that answers one segment there is no limit."""
        self._waiting.append(packet)

    def error(
        self, source: int, icmp_type: int, code: int, packet: Buffer, ip: Ipv4Fields, now_ns: int, rest: int = 0
    ) -> bool:
        """Send an ICMP error about `packet` to its source, if the rules let us; see `wire.build.icmp_error`."""
        if not may_be_told(packet, ip):
            return False
        if not self._rate.take(ip.src, now_ns):
            self.suppressed += 1
            return False
        self._waiting.append(icmp_error(source, icmp_type, code, packet, ip, rest))
        return True


def may_be_told(packet: Buffer, ip: Ipv4Fields) -> bool:
    """Whether an ICMP error about this packet may be sent at all (rule 1)."""
    if ip.fragment_offset or not _is_one_host(ip.src) or not _is_one_host(ip.dst):
        return False
    return not (
        ip.proto == Proto.ICMP and (ip.total_len <= ip.header_len or packet[ip.header_len] in ICMP_ERRORS)
    )


def _is_one_host(address: int) -> bool:
    return not (
        address >> 24 == 0 or address == LIMITED_BROADCAST or MULTICAST.contains(address) or LOOPBACK.contains(address)
        or address >> 28 == 15
    )
