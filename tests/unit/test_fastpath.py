"""The flow table and the packet path of a known flow, told as stories; every one on both twins.

    inside 10.1.0.11:40000   outside 203.0.113.1:50000   peer 203.0.113.2:80
"""

from __future__ import annotations

import random
import struct
from types import ModuleType
from typing import Any

import pytest
from differential.packets import ACK, FIN, RST, SYN, icmp_payload, ipv4, packet_of, tcp_payload, udp_payload
from support.backends import fastpath_backend, table_config

from natengine.fastpath import FULL, NOT_FOUND, TAKEN, FastPath
from natengine.flow.records import Allow, FlowKey, FlowSpec, Path
from natengine.flow.tcp_state import TcpState
from natengine.settings import SECOND_NS, Timeouts
from natengine.vocab import Hook, Proto
from natengine.wire.checksum import checksum

__all__ = ["fastpath_backend"]

LEAVING, ARRIVING = Hook.POSTROUTING, Hook.PREROUTING
INSIDE, OUTSIDE, PEER = 0x0A01000B, 0xCB007101, 0xCB007102
UDP = FlowSpec(Proto.UDP, INSIDE, 40000, OUTSIDE, 50000, PEER, 80, True, 3, 4, Allow.ALL)
TCP = UDP._replace(proto=Proto.TCP)
UDPLITE, DCCP, SCTP = (UDP._replace(proto=proto) for proto in (Proto.UDPLITE, Proto.DCCP, Proto.SCTP))
PING = UDP._replace(proto=Proto.ICMP, inside_port=7, outside_port=9, peer_port=8)

UDP_NS, ICMP_NS = Timeouts().udp_ns, Timeouts().icmp_query_ns
ESTABLISHED_NS, TRANSITORY_NS = Timeouts().tcp_established_ns, Timeouts().tcp_transitory_ns

EPOCHS = (0, 2**62)                         # for who tests `if now_ns`, and for who adds in 63 bits


@pytest.fixture
def table(fastpath_backend: ModuleType) -> FastPath:
    return fastpath_backend.FastPath(table_config(8))


def send(table: FastPath, spec: FlowSpec, hook: int, now_ns: int = 0, **how: Any) -> tuple[int, bytes]:
    """Send a packet of a flow; return the path and what became of the packet."""
    packet = packet_of(spec, hook, **how)
    return table.translate(packet, hook, now_ns), bytes(packet)


def ending(table: FastPath, now_ns: int) -> list[int]:
    """Return the ids of the flows that end now."""
    return [flow.flow_id for flow in table.expire(now_ns, 1000)]


# ── rewriting ────────────────────────────────────────────────────────────────────────────────────

@pytest.mark.parametrize("spec", [UDP, TCP, PING], ids=["udp", "tcp", "icmp"])
@pytest.mark.parametrize("from_inside", [True, False])
def test_leaving_source_becomes_outside_and_arriving_destination_becomes_inside(
    table: FastPath, spec: FlowSpec, from_inside: bool
) -> None:
    spec = spec._replace(from_inside=from_inside)
    assert table.install(spec, 0) == 0
    beyond = spec._replace(inside_ip=spec.outside_ip, inside_port=spec.outside_port)
    order = (LEAVING, ARRIVING) if from_inside else (ARRIVING, LEAVING)
    for hook, flags in zip(order, (SYN, SYN | ACK), strict=True):
        path, packet = send(table, spec, hook, flags=flags, data=b"hello")
        assert path == Path.TRANSLATED
        as_there = spec._replace(outside_ip=spec.inside_ip, outside_port=spec.inside_port)
        expected = packet_of(beyond if hook == LEAVING else as_there, hook, flags=flags, data=b"hello")
        assert bytes(expected) == packet


def test_unchanged_flow_is_counted_and_left_alone(table: FastPath) -> None:
    """The head's own connections: tracked, so that nobody else gets their port."""
    own = UDP._replace(inside_ip=OUTSIDE, inside_port=50000)
    table.install(own, 0)
    path, packet = send(table, own, LEAVING)
    assert path == Path.UNCHANGED
    assert packet == bytes(packet_of(own, LEAVING))
    info = table.info(0)
    assert info is not None and info.original_packets == 1


def test_udp_without_checksum_stays_without(table: FastPath) -> None:
    """RFC 768: zero means that the sender computed none."""
    table.install(UDP, 0)
    path, packet = send(table, UDP, LEAVING, no_checksum=True)
    assert path == Path.TRANSLATED
    assert packet[26:28] == b"\0\0"
    assert checksum(packet[:20]) == 0


def test_udp_checksum_never_becomes_zero(table: FastPath) -> None:
    """RFC 768: a computed zero is sent as 0xFFFF."""
    table.install(UDP, 0)
    beyond = UDP._replace(inside_ip=OUTSIDE, inside_port=50000)
    for word in range(0x10000):                              # the one payload for which the sum is zero
        expected = packet_of(beyond, LEAVING, data=struct.pack("!H", word))
        if expected[26:28] == b"\xff\xff":
            break
    path, packet = send(table, UDP, LEAVING, data=struct.pack("!H", word))
    assert path == Path.TRANSLATED
    assert packet == bytes(expected)


def test_padding_behind_the_packet_is_not_touched_and_not_counted(table: FastPath) -> None:
    table.install(UDP, 0)
    packet = packet_of(UDP, LEAVING) + b"\xaa" * 18
    assert table.translate(packet, LEAVING, 0) == Path.TRANSLATED
    assert packet[28:] == b"\xaa" * 18
    info = table.info(0)
    assert info is not None and info.original_bytes == 28


# ── what is not for the fast path ────────────────────────────────────────────────────────────────

def altered(at: int, value: bytes, spec: FlowSpec = UDP) -> bytearray:
    packet = packet_of(spec, LEAVING)
    packet[at:at + len(value)] = value
    return packet


NOT_TRANSLATED = [
    # no such flow
    ("another source", altered(15, b"\x0c"), Path.MISS),
    ("another port", altered(21, b"\x00"), Path.MISS),
    ("another peer", altered(19, b"\x77"), Path.MISS),
    ("another protocol", packet_of(TCP, LEAVING), Path.MISS),
    # the engine's business
    ("first fragment", altered(6, b"\x20\x00"), Path.SPECIAL),
    ("later fragment", altered(6, b"\x00\x01"), Path.SPECIAL),
    ("GRE", altered(9, b"\x2f"), Path.MISS),
    ("ICMP error", ipv4(1, INSIDE, PEER, icmp_payload(3, 0, data=bytes(28))), Path.SPECIAL),
    ("ICMP redirect", ipv4(1, INSIDE, PEER, icmp_payload(5, 7)), Path.SPECIAL),
    ("ICMP timestamp", ipv4(1, INSIDE, PEER, icmp_payload(13, 7)), Path.MISS),
    # headers that contradict themselves
    ("version 6", altered(0, b"\x65"), Path.BAD_HEADER),
    ("IHL 4", altered(0, b"\x44"), Path.BAD_HEADER),
    ("IHL beyond the total length", altered(0, b"\x4f"), Path.BAD_HEADER),
    ("total length 19", altered(2, b"\x00\x13"), Path.BAD_HEADER),
    ("no room for the UDP header", altered(2, b"\x00\x1b"), Path.BAD_HEADER),
    ("UDP length 7", altered(24, b"\x00\x07"), Path.BAD_HEADER),
    ("UDP length beyond the packet", altered(24, b"\x00\x09"), Path.BAD_HEADER),
    ("TCP data offset 4", altered(32, b"\x40", TCP), Path.BAD_HEADER),
    ("TCP data offset beyond the packet", altered(32, b"\x60", TCP), Path.BAD_HEADER),
    ("no room for the TCP header", altered(2, b"\x00\x27", TCP), Path.BAD_HEADER),
    ("no room for the ICMP header", altered(2, b"\x00\x1b", PING), Path.BAD_HEADER),
    ("no room for the SCTP header", altered(2, b"\x00\x1f", SCTP), Path.BAD_HEADER),
    ("no room for the DCCP header", altered(2, b"\x00\x1f", DCCP), Path.BAD_HEADER),
    ("DCCP data offset 2", altered(24, b"\x02", DCCP), Path.BAD_HEADER),
    ("DCCP data offset beyond the packet", altered(24, b"\x04", DCCP), Path.BAD_HEADER),
    ("UDP-Lite coverage 7", altered(24, b"\x00\x07", UDPLITE), Path.BAD_HEADER),
    ("UDP-Lite coverage beyond the packet", altered(24, b"\x00\x09", UDPLITE), Path.BAD_HEADER),
    # fewer bytes than announced
    ("nothing", bytearray(), Path.TRUNCATED),
    ("19 bytes", packet_of(UDP, LEAVING)[:19], Path.TRUNCATED),
    ("one byte missing", packet_of(UDP, LEAVING)[:-1], Path.TRUNCATED),
    ("no transport header", packet_of(UDP, LEAVING)[:20], Path.TRUNCATED),
]


@pytest.mark.parametrize(("what", "packet", "path"), NOT_TRANSLATED, ids=[row[0] for row in NOT_TRANSLATED])
def test_packet_that_is_not_translated_changes_nothing(
    table: FastPath, what: str, packet: bytearray, path: Path
) -> None:
    table.install(UDP, 0)
    table.install(PING, 0)
    before, flows = bytes(packet), table.snapshot()
    assert path == table.translate(packet, LEAVING, 5)
    assert before == bytes(packet)
    assert flows == table.snapshot()


def test_tuple_belongs_to_its_hook(table: FastPath) -> None:
    """A packet that comes from the uplink with an inside tuple is not the inside's."""
    table.install(UDP, 0)
    assert table.translate(packet_of(UDP, LEAVING), ARRIVING, 0) == Path.MISS
    assert table.translate(packet_of(UDP, LEAVING), Hook.FORWARD, 0) == Path.MISS


def test_our_echo_and_the_peers_are_two_flows(table: FastPath) -> None:
    """RFC 5508 REQ-1: the same identifier in both directions is two sessions."""
    ours = PING._replace(outside_port=7)
    theirs = ours._replace(peer_port=0, from_inside=False)      # the inside answers: it sends type 0
    assert table.install(ours, 0) == 0
    assert table.install(theirs, 0) == 1
    for spec in (ours, theirs):
        for hook in (ARRIVING, LEAVING) if spec is theirs else (LEAVING, ARRIVING):
            assert send(table, spec, hook)[0] == Path.TRANSLATED
    assert [(flow.original_packets, flow.reply_packets) for flow in table.snapshot()] == [(1, 1), (1, 1)]


# ── TCP ──────────────────────────────────────────────────────────────────────────────────────────

def test_tcp_connection_from_syn_to_time_wait(table: FastPath) -> None:
    """RFC 5382 REQ-5: the long timeout only while the connection is open, or half open."""
    table.install(TCP, 0)
    story = [
        (LEAVING, SYN, TcpState.SYN_SENT, TRANSITORY_NS),
        (ARRIVING, SYN | ACK, TcpState.SYN_RECV, TRANSITORY_NS),
        (LEAVING, ACK, TcpState.ESTABLISHED, ESTABLISHED_NS),
        (LEAVING, FIN | ACK, TcpState.FIN_WAIT, ESTABLISHED_NS),
        (ARRIVING, ACK, TcpState.FIN_WAIT, ESTABLISHED_NS),
        (ARRIVING, FIN | ACK, TcpState.LAST_ACK, TRANSITORY_NS),
        (LEAVING, ACK, TcpState.TIME_WAIT, TRANSITORY_NS),
    ]
    for now_ns, (hook, flags, state, timeout_ns) in enumerate(story):
        assert send(table, TCP, hook, now_ns, flags=flags)[0] == Path.TRANSLATED
        info = table.info(0)
        assert info is not None
        assert (info.tcp_state, info.deadline_ns - now_ns) == (state, timeout_ns)
        assert info.assured is (now_ns >= 2)


def test_segment_against_the_state_is_refused_and_changes_nothing(table: FastPath) -> None:
    table.install(TCP, 0)
    send(table, TCP, LEAVING, flags=SYN)
    flows = table.snapshot()
    for hook, flags in ((ARRIVING, FIN | ACK), (LEAVING, ACK), (LEAVING, 0), (ARRIVING, SYN | RST)):
        path, packet = send(table, TCP, hook, 5, flags=flags)
        assert path == Path.REFUSED_STATE
        assert packet == bytes(packet_of(TCP, hook, flags=flags))
    assert flows == table.snapshot()


# ── what the FORWARD chain allows ────────────────────────────────────────────────────────────────

def test_each_bit_of_allow_is_asked_in_its_turn(table: FastPath) -> None:
    table.install(UDP._replace(allow=Allow.NEW), 0)
    assert send(table, UDP, LEAVING)[0] == Path.TRANSLATED
    assert send(table, UDP, ARRIVING)[0] == Path.REFUSED_FORWARD
    table.approve(0, Allow.REPLY, 4)
    assert send(table, UDP, LEAVING)[0] == Path.REFUSED_FORWARD      # still new: no reply has passed
    assert send(table, UDP, ARRIVING)[0] == Path.TRANSLATED
    assert send(table, UDP, LEAVING)[0] == Path.REFUSED_FORWARD
    table.approve(0, Allow.ORIGINAL, 4)
    assert send(table, UDP, LEAVING)[0] == Path.TRANSLATED
    assert send(table, UDP, ARRIVING)[0] == Path.REFUSED_FORWARD
    table.approve(0, Allow.ORIGINAL | Allow.ASK, 4)
    assert send(table, UDP, LEAVING)[0] == Path.TRANSLATED
    assert send(table, UDP, ARRIVING)[0] == Path.STALE


def test_one_flow_is_doubted_until_it_is_approved(table: FastPath) -> None:
    table.install(UDP, 0)
    table.install(PING, 0)
    for _ in range(2):
        table.doubt(0)
        assert send(table, UDP, LEAVING)[0] == Path.STALE
        assert send(table, PING, LEAVING)[0] == Path.TRANSLATED
        table.approve(0, Allow.ALL, 4)
        assert send(table, UDP, LEAVING)[0] == Path.TRANSLATED
    with pytest.raises(KeyError):
        table.doubt(7)


def test_flow_is_stale_after_a_rule_change_until_it_is_approved(table: FastPath) -> None:
    table.install(UDP, 0)
    table.invalidate()
    flows = table.snapshot()
    assert send(table, UDP, LEAVING)[0] == Path.STALE
    assert flows == table.snapshot()
    table.approve(0, Allow.ALL, 4)
    assert send(table, UDP, LEAVING)[0] == Path.TRANSLATED
    assert table.install(PING, 0) == 1                   # new flows are asked about when they begin
    assert send(table, PING, LEAVING)[0] == Path.TRANSLATED


# ── the table ────────────────────────────────────────────────────────────────────────────────────

def test_both_tuples_of_a_flow_are_its_own(table: FastPath) -> None:
    assert table.install(UDP, 0) == 0
    assert table.install(UDP._replace(outside_port=1), 0) == TAKEN   # leaving tuple
    assert table.install(UDP._replace(inside_port=1), 0) == TAKEN    # arriving tuple
    assert table.install(UDP._replace(inside_port=1, outside_port=1), 0) == 1
    assert table.install(TCP, 0) == 2
    assert [table.find(key) for key in (UDP.leaving, UDP.arriving, TCP.leaving)] == [0, 0, 2]
    assert table.find(PING.leaving) == NOT_FOUND
    assert table.find(FlowKey(Hook.FORWARD, *UDP.leaving[1:])) == NOT_FOUND


def test_full_table_takes_no_more_and_the_id_freed_last_is_used_first(table: FastPath) -> None:
    specs = [UDP._replace(inside_port=n, outside_port=n) for n in range(10)]
    assert [table.install(spec, 0) for spec in specs] == [0, 1, 2, 3, 4, 5, 6, 7, FULL, FULL]
    assert table.install(specs[0], 0) == TAKEN                       # even when full
    for flow_id in (2, 6, 4):
        removed = table.remove(flow_id)
        assert removed is not None and removed.spec == specs[flow_id]
    assert len(table) == 5
    assert table.remove(2) is None and table.info(2) is None
    assert [table.install(spec, 0) for spec in (specs[8], specs[9], specs[2], specs[4])] == [4, 6, 2, FULL]
    assert [flow.flow_id for flow in table.snapshot()] == list(range(8))


def test_removed_flow_is_forgotten_by_both_tuples(table: FastPath) -> None:
    table.install(UDP, 0)
    table.remove(0)
    assert (table.find(UDP.leaving), table.find(UDP.arriving)) == (NOT_FOUND, NOT_FOUND)
    assert send(table, UDP, LEAVING)[0] == Path.MISS
    assert table.snapshot() == [] and table.oldest_unreplied() == NOT_FOUND
    with pytest.raises(KeyError):
        table.touch(0, LEAVING, 20, 0)
    with pytest.raises(KeyError):
        table.approve(0, Allow.ALL, 4)


def test_thousands_of_flows_come_and_go(fastpath_backend: ModuleType) -> None:
    """An index that deletes must still find everything else."""
    rng = random.Random(3)
    table = fastpath_backend.FastPath(table_config(1000))
    installed: dict[int, FlowSpec] = {}
    for n in range(6000):
        if len(installed) == 1000 or (installed and rng.random() < 0.4):
            flow_id = rng.choice(list(installed))
            assert table.remove(flow_id).spec == installed.pop(flow_id)
        else:
            spec = UDP._replace(inside_ip=rng.getrandbits(32), inside_port=n, outside_port=n)
            installed[table.install(spec, 0)] = spec
    assert len(table) == len(installed) > 900
    for flow_id, spec in installed.items():
        assert table.find(spec.leaving) == table.find(spec.arriving) == flow_id
        assert send(table, spec, LEAVING)[0] == Path.TRANSLATED


def test_the_one_to_evict_is_the_least_recently_used_without_a_reply(table: FastPath) -> None:
    specs = [UDP._replace(inside_port=n, outside_port=n) for n in range(4)]
    for spec in specs:
        table.install(spec, 0)
    assert table.oldest_unreplied() == 0
    send(table, specs[0], LEAVING)                      # used again: now 1 is the oldest
    assert table.oldest_unreplied() == 1
    send(table, specs[1], ARRIVING)                     # a reply: never to be evicted
    assert table.oldest_unreplied() == 2
    table.touch(2, LEAVING, 100, 0)
    assert table.oldest_unreplied() == 3
    table.remove(3)
    assert table.oldest_unreplied() == 0
    table.touch(0, ARRIVING, 100, 0)
    table.touch(2, ARRIVING, 100, 0)
    assert table.oldest_unreplied() == NOT_FOUND


def test_counters_and_udp_assurance(table: FastPath) -> None:
    table.install(UDP, 0)
    send(table, UDP, LEAVING, data=b"12")
    send(table, UDP, ARRIVING)
    info = table.info(0)
    assert info is not None and info.seen_reply and not info.assured
    send(table, UDP, LEAVING)
    table.touch(0, ARRIVING, 1480, 5)
    info = table.info(0)
    assert info is not None and info.assured
    assert (info.original_packets, info.original_bytes) == (2, 58)
    assert (info.reply_packets, info.reply_bytes) == (2, 1508)
    assert info.deadline_ns == 5 + UDP_NS


def test_byte_counter_is_wider_than_32_bits(table: FastPath) -> None:
    table.install(UDP, 0)
    for _ in range(3):
        table.touch(0, LEAVING, 2**32 - 1, 0)
    info = table.info(0)
    assert info is not None and info.original_bytes == 3 * (2**32 - 1)


# ── time ─────────────────────────────────────────────────────────────────────────────────────────

@pytest.mark.parametrize("epoch_ns", EPOCHS)
@pytest.mark.parametrize(("spec", "timeout_ns"), [(UDP, UDP_NS), (TCP, TRANSITORY_NS), (PING, ICMP_NS)])
def test_idle_flow_ends_within_a_second_of_its_deadline(
    table: FastPath, spec: FlowSpec, timeout_ns: int, epoch_ns: int
) -> None:
    table.install(spec, epoch_ns)
    send(table, spec, LEAVING, epoch_ns, flags=SYN)
    now_ns = epoch_ns
    while now_ns < epoch_ns + timeout_ns:
        assert ending(table, now_ns) == []
        now_ns += SECOND_NS
    assert ending(table, epoch_ns + timeout_ns - 1) == []
    assert ending(table, epoch_ns + timeout_ns + SECOND_NS) == [0]
    assert len(table) == 0


def test_packet_keeps_a_mapping_alive(table: FastPath) -> None:
    """RFC 4787 REQ-6: outbound traffic refreshes the timer."""
    table.install(UDP, 0)
    for n in range(5):
        send(table, UDP, LEAVING, n * (UDP_NS - 1))
        assert ending(table, (n + 1) * (UDP_NS - 1)) == []
    assert ending(table, 5 * UDP_NS + SECOND_NS) == [0]


def test_shorter_timeout_takes_effect(table: FastPath) -> None:
    """A connection that is reset must not stay for the two hours it was filed under."""
    table.install(TCP, 0)
    for hook, flags in ((LEAVING, SYN), (ARRIVING, SYN | ACK), (LEAVING, ACK)):
        send(table, TCP, hook, flags=flags)
    assert ending(table, 10 * SECOND_NS) == []           # filed again under its two hours
    send(table, TCP, ARRIVING, 10 * SECOND_NS, flags=RST)
    assert ending(table, 10 * SECOND_NS + TRANSITORY_NS - 1) == []
    assert ending(table, 11 * SECOND_NS + TRANSITORY_NS) == [0]


def test_flow_has_ended_at_its_deadline(table: FastPath) -> None:
    """The deadline is the first moment at which the flow is gone, not the last at which it lives."""
    table.install(UDP, 0)
    send(table, UDP, LEAVING)
    assert ending(table, UDP_NS) == [0]                  # looked at now because nobody asked before


def test_flow_that_gets_no_packet_ends_a_second_after_it_began(table: FastPath) -> None:
    table.install(UDP, 5 * SECOND_NS)
    assert ending(table, 6 * SECOND_NS) == [0]


@pytest.mark.parametrize("epoch_ns", EPOCHS)
def test_timeout_longer_than_the_wheel(fastpath_backend: ModuleType, epoch_ns: int) -> None:
    table = fastpath_backend.FastPath(table_config(timeouts=Timeouts(udp_ns=30_000 * SECOND_NS)))
    table.expire(epoch_ns, 0)
    table.install(UDP, epoch_ns)
    send(table, UDP, LEAVING, epoch_ns)
    for seconds in range(0, 30_000, 100):
        assert ending(table, epoch_ns + seconds * SECOND_NS) == []
    assert ending(table, epoch_ns + 30_001 * SECOND_NS) == [0]


@pytest.mark.parametrize("epoch_ns", EPOCHS)
def test_clock_jump_misses_nobody(table: FastPath, epoch_ns: int) -> None:
    """A suspended machine: all that should have ended in the meantime ends at once."""
    for n in range(8):
        spec = UDP._replace(inside_port=n, outside_port=n)
        table.install(spec, epoch_ns + n * SECOND_NS)
        send(table, spec, LEAVING, epoch_ns + n * SECOND_NS)
    assert sorted(ending(table, epoch_ns + 1_000_000 * SECOND_NS)) == list(range(8))


def test_clock_that_goes_back_ends_nobody_early(table: FastPath) -> None:
    table.expire(1000 * SECOND_NS, 100)
    table.install(UDP, 10 * SECOND_NS)
    send(table, UDP, LEAVING, 10 * SECOND_NS)
    assert ending(table, 20 * SECOND_NS) == []
    assert ending(table, 1001 * SECOND_NS) == [0]


def test_budget_bounds_one_call_and_the_next_goes_on(table: FastPath) -> None:
    for n in range(8):
        table.install(UDP._replace(inside_port=n, outside_port=n), 0)
    assert table.expire(SECOND_NS, 0) == []
    assert [flow.flow_id for flow in table.expire(SECOND_NS, 3)] == [0, 1, 2]
    assert [flow.flow_id for flow in table.expire(SECOND_NS, 3)] == [3, 4, 5]
    assert [flow.flow_id for flow in table.expire(SECOND_NS, 3)] == [6, 7]
    assert table.expire(SECOND_NS, 3) == []


def test_expired_flow_says_what_it_was(table: FastPath) -> None:
    table.install(UDP, 1)
    send(table, UDP, LEAVING, 2)
    before = table.snapshot()
    assert before == table.expire(2 + UDP_NS + SECOND_NS, 10)


# ── packets that are hard to read ────────────────────────────────────────────────────────────────

def test_options_of_every_length(table: FastPath) -> None:
    table.install(TCP, 0)
    table.install(UDP, 0)
    for words in range(11):
        for spec, payload in (
            (TCP, tcp_payload(INSIDE, 40000, PEER, 80, SYN, b"x", options=b"\1" * 4 * words)),
            (UDP, udp_payload(INSIDE, 40000, PEER, 80, b"x" * words)),
        ):
            packet = ipv4(spec.proto, INSIDE, PEER, payload, options=b"\1" * 4 * words)
            assert table.translate(packet, LEAVING, 0) == Path.TRANSLATED
            assert checksum(packet[:20 + 4 * words]) == 0


def test_largest_packet(table: FastPath) -> None:
    table.install(UDP, 0)
    path, packet = send(table, UDP, LEAVING, data=bytes(65535 - 28))
    assert (path, len(packet)) == (Path.TRANSLATED, 65535)
