"""Who is named to the hooks as flooding, and for how long; the packets that a gateway refuses are given by hand."""

from __future__ import annotations

import pytest
from support.packets import fragments, ping, tcp, udp

from natengine.adapters.hook_plan import Flood, Flooder
from natengine.app.shedding import REFUSALS, SENDERS_REMEMBERED, SHED_NS, WINDOW_NS, Shedding, flooder_of
from natengine.settings import SECOND_NS
from natengine.vocab import Hook, PacketMeta
from natengine.wire.addr import parse_ipv4

LEAVING = PacketMeta(Hook.POSTROUTING, 2, 3, 0)
MILLISECOND_NS = SECOND_NS // 1000
WORKER = parse_ipv4("10.1.0.11")
SCAN = tcp("10.1.0.11:4000 > 203.0.113.2:80")
SPRAY = udp("10.1.0.11:4000 > 203.0.113.2:53")


def refuse(shedding: Shedding, packet: bytearray, times: int, start_ns: int, every_ns: int) -> list[Flooder]:
    """Refuse a packet so many times; return who was named."""
    named = (shedding.refuse(packet, LEAVING, start_ns + i * every_ns) for i in range(times))
    return [flooder for flooder in named if flooder is not None]


@pytest.mark.parametrize("start_ns", [0, 2**62])
def test_who_is_refused_again_and_again_is_named_once(start_ns: int) -> None:
    """And may be named again when it has been shed for its time, and is refused anew."""
    shedding = Shedding()
    assert refuse(shedding, SCAN, REFUSALS - 1, start_ns, MILLISECOND_NS) == []
    assert not shedding.sheds(SCAN, LEAVING, start_ns)
    named_ns = start_ns + REFUSALS * MILLISECOND_NS
    assert refuse(shedding, SCAN, 1, named_ns, 0) == [Flooder(WORKER, Flood.SYN)]
    every_ns = SHED_NS // 1000
    assert refuse(shedding, SCAN, 1000, named_ns, every_ns) == [], "what is refused meanwhile is no new flood"
    assert shedding.senders(named_ns + SHED_NS - 1) == [Flooder(WORKER, Flood.SYN)]
    over_ns = named_ns + SHED_NS
    assert shedding.senders(over_ns) == []
    assert refuse(shedding, SCAN, REFUSALS, over_ns, 1) == [Flooder(WORKER, Flood.SYN)]
    assert shedding.named == 2


def test_who_is_refused_now_and_then_is_not_named() -> None:
    """A little more than one's share is no flood."""
    shedding = Shedding()
    assert refuse(shedding, SCAN, 1000, 0, WINDOW_NS // (REFUSALS - 2)) == []
    assert shedding.named == 0


def test_a_sender_that_is_shed_has_its_share() -> None:
    """For that kind of packets, and nobody else has less."""
    shedding = Shedding()
    refuse(shedding, SCAN, REFUSALS, 0, 0)
    assert shedding.sheds(SCAN, LEAVING, SHED_NS - 1)
    assert not shedding.sheds(SCAN, LEAVING, SHED_NS)
    for other in (SPRAY, tcp("10.1.0.12:4000 > 203.0.113.2:80"), tcp("10.1.0.11:4000 > 203.0.113.2:80", "A")):
        assert not shedding.sheds(other, LEAVING, 1)


@pytest.mark.parametrize(
    ("packet", "kind"),
    [
        (SCAN, Flood.SYN),
        (SPRAY, Flood.OTHER),
        (ping("10.1.0.11 > 203.0.113.2", 7), Flood.OTHER),
        (fragments(udp("10.1.0.11:4000 > 203.0.113.2:53", bytes(64)), 32)[1], Flood.OTHER),
        # of known flows, for all that a hook can tell
        (tcp("10.1.0.11:4000 > 203.0.113.2:80", "A"), None),
        (tcp("10.1.0.11:4000 > 203.0.113.2:80", "SA"), None),
        (tcp("10.1.0.11:4000 > 203.0.113.2:80", "R"), None),
        (SCAN[:20], None),
        (SCAN[:6] + b"\0\1" + SCAN[8:], None),
    ],
)
def test_kinds(packet: bytearray, kind: Flood | None) -> None:
    """Of TCP what `--syn` matches; of others all."""
    assert flooder_of(packet, LEAVING) == (kind and Flooder(WORKER, kind))


@pytest.mark.parametrize("meta", [PacketMeta(Hook.PREROUTING, 3, 0, 0), PacketMeta(Hook.POSTROUTING, 0, 3, 0)])
def test_only_hosts_inside_are_shed(meta: PacketMeta) -> None:
    """From an uplink sources are forged; the head's own packets are not refused."""
    assert flooder_of(SCAN, meta) is None


def test_forged_sources_do_not_fill_the_memory() -> None:
    """None of them is refused often enough, and a host that floods among them is found all the same."""
    shedding = Shedding()
    for i in range(4 * SENDERS_REMEMBERED):
        packet = bytearray(SCAN)
        packet[12:16] = (WORKER + 1 + i).to_bytes(4, "big")
        assert shedding.refuse(packet, LEAVING, 0) is None
        shedding.refuse(SCAN, LEAVING, 0)
    assert len(shedding._refused) == SENDERS_REMEMBERED
    assert shedding.senders(1) == [Flooder(WORKER, Flood.SYN)]


@pytest.mark.parametrize("length", range(25))
def test_what_is_cut_short_is_nobodys_flood(length: int) -> None:
    """The portable adapter asks before anybody has looked at the packet: no length raises."""
    flooder = flooder_of(SCAN[:length], LEAVING)
    assert flooder is None
