"""What rules say beside yes and no, carried out: the sender that REJECT tells, the line that LOG writes.

`Policy` notes it while it walks the chains; the engine has it carried out once the packet is decided
about.  A refused packet is as its sender made it, so the error can quote it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from natengine.nat.outbox import UNREACHABLE, Outbox, may_be_told
from natengine.nat.rates import TokenBucket
from natengine.rules.facts import NO_FIELD, PacketFacts
from natengine.rules.targets import Log, Reject, RejectWith
from natengine.vocab import Proto
from natengine.wire.addr import format_ipv4
from natengine.wire.build import tcp_reset
from natengine.wire.ipv4 import Buffer, Ipv4Fields, parse_ipv4_untrusted, parse_transport_untrusted
from natengine.wire.tcp import RST, read_segment

# codes of destination unreachable (RFC 792, RFC 1812 5.2.7.1)
CODES = {
    RejectWith.NET_UNREACHABLE: 0, RejectWith.HOST_UNREACHABLE: 1, RejectWith.PROTO_UNREACHABLE: 2,
    RejectWith.PORT_UNREACHABLE: 3, RejectWith.NET_PROHIBITED: 9, RejectWith.HOST_PROHIBITED: 10,
    RejectWith.ADMIN_PROHIBITED: 13,
}

WARNING = 4                         # a level of syslog(3)
LINES_A_SECOND, LINES_AT_ONCE = 100, 200
MAX_LINES = 1000                    # waiting to be written

_FLAG_NAMES = (("URG", 0x20), ("ACK", 0x10), ("PSH", 0x08), ("RST", 0x04), ("SYN", 0x02), ("FIN", 0x01))


class Said(NamedTuple):
    """What a rule said about a packet, and the packet as it looked to the rule."""

    target: Log | Reject
    facts: PacketFacts


class LogLine(NamedTuple):
    """A line for the log; the level as syslog(3) has it."""

    level: int
    text: str


class LogBook:
    """Lines that wait to be written, and not too many of them: a flood of packets is no flood of lines."""

    def __init__(self) -> None:
        self._lines: deque[LogLine] = deque()
        self._bucket = TokenBucket(LINES_A_SECOND, LINES_AT_ONCE)
        self.suppressed = 0             # lines left out so far

    def __len__(self) -> int:
        return len(self._lines)

    def write(self, line: LogLine, now_ns: int) -> None:
        """Write a line, or leave it out and count it."""
        if len(self._lines) < MAX_LINES and self._bucket.take(now_ns):
            self._lines.append(line)
        else:
            self.suppressed += 1

    def take(self) -> list[LogLine]:
        """Return the lines in order, and forget them."""
        lines = list(self._lines)
        self._lines.clear()
        return lines


def carry_out(
    said: Iterable[Said], packet: Buffer, own: int | None, outbox: Outbox, log: LogBook, now_ns: int
) -> None:
    """Do what rules said about a packet.

    Args:
        own: The head's address towards the sender, from which an ICMP error comes; None: there is none.
    """
    for target, facts in said:
        if isinstance(target, Log):
            log.write(log_line(target, facts), now_ns)
        else:
            _reject(outbox, target.how, own, packet, parse_ipv4_untrusted(packet), now_ns)


def _reject(outbox: Outbox, how: RejectWith, own: int | None, packet: Buffer, ip: Ipv4Fields, now_ns: int) -> None:
    if how is not RejectWith.TCP_RESET:
        if own is not None:
            outbox.error(own, UNREACHABLE, CODES[how], packet, ip, now_ns)
        return
    if ip.proto != Proto.TCP or not may_be_told(packet, ip):
        return
    segment = read_segment(packet, ip)
    if not segment.flags & RST:         # two sides could go on for ever (RFC 9293 3.10.7.1)
        transport = parse_transport_untrusted(packet, ip)
        outbox.put(tcp_reset(ip, transport.src_port_or_icmp_id, transport.dst_port_or_icmp_id, segment))


def log_line(target: Log, facts: PacketFacts) -> LogLine:
    """Return what the kernel's LOG writes, of what the rules see of a packet."""
    parts = [
        f"{target.prefix}IN={facts.in_name} OUT={facts.out_name} SRC={format_ipv4(facts.src)} "
        f"DST={format_ipv4(facts.dst)} LEN={facts.length} PROTO={_protocol(facts.proto)}"
    ]
    if facts.sport != NO_FIELD:
        parts.append(f"SPT={facts.sport} DPT={facts.dport}")
    if facts.tcp_flags != NO_FIELD:
        parts += [name for name, bit in _FLAG_NAMES if facts.tcp_flags & bit]
    if facts.icmp_type != NO_FIELD:
        parts.append(f"TYPE={facts.icmp_type} CODE={facts.icmp_code}")
    if facts.mark:
        parts.append(f"MARK={facts.mark:#x}")
    return LogLine(target.level, " ".join(parts))


def _protocol(number: int) -> str:
    return Proto(number).name if number in Proto.__members__.values() else str(number)
