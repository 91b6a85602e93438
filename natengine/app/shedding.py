"""Who floods: whose packets the hooks are to drop for a moment, before they are queued.

To take a packet from the queue only to drop it costs most of what a known one costs, so a sender at full speed takes
everybody's time although its flows are refused (`nat/rates.py`).  Who is refused again and again is named to the
hooks, and shed for `SHED_S`; then it is seen whether others still have to wait for it.  Refused is only who keeps
others waiting, so on an idle gateway nobody is named.

Senders are hosts inside.  From an uplink, where sources are forged, nobody is shed: one could only shed all that
comes from there.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from natengine.adapters.hook_plan import SHED_S, Flood, Flooder
from natengine.settings import SECOND_NS
from natengine.vocab import Hook, PacketMeta, Proto
from natengine.wire.tcp import ACK, FIN, RST, SYN

REFUSALS = 16                       # in WINDOW_NS.  The adapter asks about a sender that was refused once a millisecond
WINDOW_NS = SECOND_NS // 10
SHED_NS = SHED_S * SECOND_NS
SENDERS_REMEMBERED = 256
HEADER_BYTES = 20                   # of IPv4, at least


@dataclass(slots=True)
class _Refused:
    since_ns: int
    times: int = 0
    shed_until_ns: int | None = None


class Shedding:
    """Counts refusals by sender and kind of packet.

    Attributes:
        named: How often a sender was named to the hooks.
    """

    def __init__(self) -> None:
        self.named = 0
        self._until_ns: int | None = None       # by then nobody is shed, as far as is known
        self._refused: OrderedDict[Flooder, _Refused] = OrderedDict()       # the one refused last at the end

    def refuse(self, packet: bytearray, meta: PacketMeta, now_ns: int) -> Flooder | None:
        """Note a packet that was refused for its sender's rate; return the sender if the hooks are to shed it now."""
        flooder = flooder_of(packet, meta)
        if flooder is None:
            return None
        refused = self._refused.pop(flooder, None) or _Refused(now_ns)
        self._refused[flooder] = refused
        if len(self._refused) > SENDERS_REMEMBERED:
            self._refused.popitem(last=False)
        if refused.shed_until_ns is not None and now_ns < refused.shed_until_ns:
            return None                         # what was in the queue already, or within the hooks' rate
        if now_ns - refused.since_ns > WINDOW_NS:
            refused.since_ns, refused.times = now_ns, 0
        refused.times += 1
        if refused.times < REFUSALS:
            return None
        self._until_ns = refused.shed_until_ns = now_ns + SHED_NS
        refused.times = 0
        self.named += 1
        return flooder

    def sheds(self, packet: bytearray, meta: PacketMeta, now_ns: int) -> bool:
        """Whether a packet is of a flood that is being shed: such a sender has its share, also while nobody waits."""
        if self._until_ns is None or now_ns >= self._until_ns:
            return False
        flooder = flooder_of(packet, meta)
        return flooder is not None and self._is_shed(flooder, now_ns)

    def senders(self, now_ns: int) -> list[Flooder]:
        """Return who is being shed."""
        return [flooder for flooder in self._refused if self._is_shed(flooder, now_ns)]

    def _is_shed(self, flooder: Flooder, now_ns: int) -> bool:
        refused = self._refused.get(flooder)
        return refused is not None and refused.shed_until_ns is not None and now_ns < refused.shed_until_ns


def flooder_of(packet: bytearray, meta: PacketMeta) -> Flooder | None:
    """Return who would be shed for such packets, and as what; None if the hooks would shed nobody."""
    kind = kind_of(packet)
    if meta.hook != Hook.POSTROUTING or meta.in_ifindex == 0 or kind is None:
        return None
    return Flooder(int.from_bytes(packet[12:16], "big"), kind)


def kind_of(packet: bytearray) -> Flood | None:
    """What kind of flood a packet may be part of; None if the hooks could not tell it from one of a known flow."""
    if len(packet) < HEADER_BYTES:
        return None
    if packet[9] != Proto.TCP:
        return Flood.OTHER
    flags = packet[4 * (packet[0] & 0xF) + 13:][:1]
    is_syn = bool(flags) and flags[0] & (FIN | SYN | RST | ACK) == SYN
    is_first = int.from_bytes(packet[6:8], "big") & 0x1FFF == 0
    return Flood.SYN if is_syn and is_first else None
