"""So many a second, and not more: for each of many, and for all of them together."""

from __future__ import annotations

from collections import OrderedDict

from natengine.settings import SECOND_NS
from natengine.vocab import Hook, PacketMeta

MEMBERS_REMEMBERED = 1024
FRAGMENTS_A_FLOW = 10               # so many more fragments than new flows a sender may have while others wait


class TokenBucket:
    """So many a second, and so many at once after a pause."""

    def __init__(self, a_second: int, at_once: int) -> None:
        self._interval_ns = SECOND_NS // a_second
        self._full_ns = at_once * self._interval_ns
        self._empty_at_ns = -self._full_ns              # the bucket holds the time since then

    def take(self, now_ns: int) -> bool:
        """Take one; False if there is none."""
        start_ns = max(self._empty_at_ns, now_ns - self._full_ns)
        if now_ns - start_ns < self._interval_ns:
            return False
        self._empty_at_ns = start_ns + self._interval_ns
        return True


class RateLimit:
    """A bucket for each member, whoever it is, and one for all.

    Members who come and go do not fill the memory: the one heard of least recently is forgotten, and
    begins with a full bucket when it comes again.  The bucket for all is the bound on those who forge names.
    """

    def __init__(self, *, each: tuple[int, int], all: tuple[int, int]) -> None:
        """Each pair says how many a second, and how many at once."""
        self._each = each
        self._all = TokenBucket(*all)
        self._buckets: OrderedDict[int, TokenBucket] = OrderedDict()        # the one heard of last at the end

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, member: int, now_ns: int) -> bool:
        """Take one for a member; False if it, or all together, have had enough."""
        bucket = self._buckets.pop(member, None) or TokenBucket(*self._each)
        self._buckets[member] = bucket
        if len(self._buckets) > MEMBERS_REMEMBERED:
            self._buckets.popitem(last=False)
        return bucket.take(now_ns) and self._all.take(now_ns)


class Turns:
    """Whose turn it is while packets wait, so that a flood of new flows does not keep the known ones waiting.

    From inside each host is a sender; from outside, where sources are forged, each uplink; the head itself always
    has its turn.
    """

    def __init__(self, flows_a_second: int) -> None:
        """`flows_a_second` is how many a sender may begin, and all together eight times that; 0: no limit."""
        self._flows: RateLimit | None = None
        self._fragments: RateLimit | None = None
        if flows_a_second:
            self._flows = _fair(flows_a_second)
            self._fragments = _fair(FRAGMENTS_A_FLOW * flows_a_second)

    def take(self, packet: bytearray, meta: PacketMeta, now_ns: int) -> bool:
        """Whether this packet's sender may have the time that a packet without a flow takes."""
        rate = self._fragments if int.from_bytes(packet[6:8], "big") & 0x3FFF else self._flows
        if rate is None:
            return True
        if meta.hook == Hook.PREROUTING:
            return rate.take(meta.in_ifindex, now_ns)
        return meta.in_ifindex == 0 or rate.take(int.from_bytes(packet[12:16], "big"), now_ns)


def _fair(a_second: int) -> RateLimit:
    return RateLimit(each=(a_second, a_second), all=(8 * a_second, 8 * a_second))
