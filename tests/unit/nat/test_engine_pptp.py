"""PPTP: call ids take the place of ports, from the control connection to the packets of the call (RFC 2637)."""

from __future__ import annotations

import mmap
import random
from types import ModuleType

import pytest
from support.engines import BOND_DEF, INTERFACES, KEY, OWNER_RULES, Gateway, reason_of, ruleset
from support.packets import address, assert_checksums, assert_error_checksums, icmp_error, quote_of, tcp
from support.pptp import (
    CALL_CLEAR_REQUEST,
    CALL_DISCONNECT_NOTIFY,
    INCOMING_CALL_CONNECTED,
    INCOMING_CALL_REPLY,
    INCOMING_CALL_REQUEST,
    OUTGOING_CALL_REPLY,
    OUTGOING_CALL_REQUEST,
    SET_LINK_INFO,
    WAN_ERROR_NOTIFY,
    ControlConnection,
    call,
    call_id,
    control,
)

from natengine.app.conntrack import format_flow
from natengine.fastpath import configure
from natengine.flow.image import RECORD_BYTES
from natengine.nat.engine import NatEngine
from natengine.nat.interfaces import InterfaceTable
from natengine.settings import MappingBehaviour, Settings
from natengine.vocab import Proto, Reason, Route

W1, W2, HEAD, PEER = "10.1.0.11", "10.1.0.12", "203.0.113.1", "203.0.113.2"


@pytest.fixture
def one(gateway: Gateway) -> ControlConnection:
    return ControlConnection(gateway, f"{W1}:40001", f"{HEAD}:40001")


@pytest.fixture
def two(gateway: Gateway) -> ControlConnection:
    return ControlConnection(gateway, f"{W2}:40002", f"{HEAD}:40002")


def calls(gateway: Gateway) -> int:
    return sum(flow.spec.is_call for flow in gateway.engine.flows())


def assert_call(gateway: Gateway, worker: str, ours: int, outside: int, theirs: int) -> None:
    """Packets of a call pass both ways, with nothing changed but the addresses and our id."""
    assert gateway.through(call(f"{worker} > {PEER}", theirs)) == call(f"{HEAD} > {PEER}", theirs)
    assert gateway.returned(call(f"{PEER} > {HEAD}", outside, ack=True)) == call(f"{PEER} > {worker}", ours, ack=True)


def test_two_hosts_call_one_server_with_the_same_id(
    gateway: Gateway, one: ControlConnection, two: ControlConnection
) -> None:
    """What nf_nat_pptp is for: the second one gets an outside id of its own."""
    first, second = one.place_call(7, 900), two.place_call(7, 901)
    assert first == 7
    assert second not in (0, 7)
    for _ in range(2):
        assert_call(gateway, W1, 7, first, 900)
        assert_call(gateway, W2, 7, second, 901)
    assert gateway.count(Reason.PEER_TAKEN) == 0
    assert calls(gateway) == 2


def test_calls_of_two_hosts_interleave(gateway: Gateway, one: ControlConnection, two: ControlConnection) -> None:
    """Requests first, then the replies the other way round; and the server gives both the same id."""
    first, second = (call_id(each.out(control(OUTGOING_CALL_REQUEST, 7))) for each in (one, two))
    assert two.back(control(OUTGOING_CALL_REPLY, 900, second)) == control(OUTGOING_CALL_REPLY, 900, 7)
    assert one.back(control(OUTGOING_CALL_REPLY, 900, first)) == control(OUTGOING_CALL_REPLY, 900, 7)
    assert_call(gateway, W1, 7, first, 900)
    assert_call(gateway, W2, 7, second, 900)


def test_one_host_has_several_calls(gateway: Gateway, one: ControlConnection) -> None:
    theirs = {1: 900, 2: 0, 0x880B: 1, 65535: 0x880B}
    for ours, their in theirs.items():
        assert one.place_call(ours, their) == ours
    for ours, their in theirs.items():
        assert_call(gateway, W1, ours, ours, their)


def test_every_message_that_names_a_call_is_translated(
    gateway: Gateway, one: ControlConnection, two: ControlConnection
) -> None:
    one.place_call(7, 900)
    outside = two.place_call(7, 901)
    assert two.out(control(CALL_CLEAR_REQUEST, 7)) == control(CALL_CLEAR_REQUEST, outside)
    assert two.out(control(SET_LINK_INFO, 901)) == control(SET_LINK_INFO, 901)
    assert two.back(control(SET_LINK_INFO, outside)) == control(SET_LINK_INFO, 7)
    assert two.back(control(WAN_ERROR_NOTIFY, outside)) == control(WAN_ERROR_NOTIFY, 7)
    assert two.back(control(INCOMING_CALL_CONNECTED, outside)) == control(INCOMING_CALL_CONNECTED, 7)
    assert two.out(control(CALL_DISCONNECT_NOTIFY, 7)) == control(CALL_DISCONNECT_NOTIFY, outside)


def test_checksums_hold(gateway: Gateway, one: ControlConnection, two: ControlConnection) -> None:
    """RFC 1624, in TCP's checksum; also where the message begins at an odd place."""
    one.out(control(OUTGOING_CALL_REQUEST, 7))
    for prefix in (b"", b"x", b"xy"):
        packet = gateway.through(two.says(prefix + control(OUTGOING_CALL_REQUEST, 7)))
        assert call_id(packet[40 + len(prefix):]) != 7
        assert_checksums(packet)


def test_damage_stays_damage(gateway: Gateway, one: ControlConnection, two: ControlConnection) -> None:
    one.out(control(OUTGOING_CALL_REQUEST, 7))
    packet = two.says(control(OUTGOING_CALL_REQUEST, 7))
    packet[-1] ^= 1
    with pytest.raises(AssertionError):
        assert_checksums(gateway.through(packet))


def test_an_incoming_call(gateway: Gateway, one: ControlConnection, two: ControlConnection) -> None:
    """The server rings; the client's reply is the first that names its own id."""
    one.place_call(7, 900)
    assert two.back(control(INCOMING_CALL_REQUEST, 901)) == control(INCOMING_CALL_REQUEST, 901)
    reply = two.out(control(INCOMING_CALL_REPLY, 7, 901))
    outside = call_id(reply)
    assert outside != 7
    assert call_id(reply, 1) == 901
    assert two.back(control(INCOMING_CALL_CONNECTED, outside)) == control(INCOMING_CALL_CONNECTED, 7)
    assert_call(gateway, W2, 7, outside, 901)


def test_a_server_inside(gateway: Gateway) -> None:
    """The client is outside; no rule for GRE is needed."""
    inside = Route(address("10.1.0.0"), 0xFFFF_FF00, BOND_DEF)
    gateway.engine.replace_interfaces(InterfaceTable(INTERFACES, (inside,)), 0)
    gateway.rules(f"-t nat -A PREROUTING -i bond0.2 -p tcp --dport 1723 -j DNAT --to-destination {W1}")
    connection = ControlConnection(gateway, f"{W1}:1723", f"{HEAD}:1723", by_peer=True)
    assert connection.back(control(OUTGOING_CALL_REQUEST, 900)) == control(OUTGOING_CALL_REQUEST, 900)
    outside = call_id(connection.out(control(OUTGOING_CALL_REPLY, 7, 900)))
    assert gateway.returned(call(f"{PEER} > {HEAD}", outside)) == call(f"{PEER} > {W1}", 7)
    assert_call(gateway, W1, 7, outside, 900)


def test_the_heads_own_call_and_a_workers(gateway: Gateway, two: ControlConnection) -> None:
    """The head's ids count, too: what it uses no worker gets."""
    for packet, way in ((tcp(f"{HEAD}:40009 > {PEER}:1723", "S"), gateway.head),
                        (tcp(f"{PEER}:1723 > {HEAD}:40009", "SA"), gateway.back)):
        assert reason_of(way(packet)) is Reason.UNCHANGED
    request = tcp(f"{HEAD}:40009 > {PEER}:1723", "PA", control(OUTGOING_CALL_REQUEST, 7))
    assert reason_of(gateway.head(request[:])) is Reason.UNCHANGED
    reply = tcp(f"{PEER}:1723 > {HEAD}:40009", "PA", control(OUTGOING_CALL_REPLY, 900, 7), ack=1001 + 168)
    assert reason_of(gateway.back(reply)) is Reason.UNCHANGED
    outside = two.place_call(7, 901)
    assert outside != 7
    assert reason_of(gateway.back(call(f"{PEER} > {HEAD}", 7))) is Reason.UNCHANGED
    assert_call(gateway, W2, 7, outside, 901)


# ── the end of a call ────────────────────────────────────────────────────────────────────────────


def test_a_disconnect_from_either_side_ends_the_call(
    gateway: Gateway, one: ControlConnection, two: ControlConnection
) -> None:
    outside = one.place_call(7, 900), two.place_call(7, 901)
    one.out(control(CALL_CLEAR_REQUEST, 7))
    assert calls(gateway) == 2                  # it is asked for, and not done yet
    one.back(control(CALL_DISCONNECT_NOTIFY, 900))
    assert calls(gateway) == 1
    assert reason_of(gateway.back(call(f"{PEER} > {HEAD}", outside[0]))) is Reason.LOCAL_IN
    assert_call(gateway, W2, 7, outside[1], 901)
    two.out(control(CALL_DISCONNECT_NOTIFY, 7))
    assert calls(gateway) == 0


def test_a_call_ends_when_it_is_idle_and_its_id_rests(gateway: Gateway, one: ControlConnection) -> None:
    one.place_call(7, 900)
    gateway.clock.advance(601)
    gateway.engine.expire(gateway.clock.now_ns)
    assert calls(gateway) == 0
    gateway.expire_all()
    assert gateway.engine.stats().mappings == 0


def test_a_refused_call_holds_nothing_for_long(gateway: Gateway, one: ControlConnection) -> None:
    outside = call_id(one.out(control(OUTGOING_CALL_REQUEST, 7)))
    answer = one.back(control(OUTGOING_CALL_REPLY, 0, outside, result=2))
    assert answer == control(OUTGOING_CALL_REPLY, 0, 7, result=2)
    assert calls(gateway) == 0
    assert gateway.engine.stats().mappings == 2
    gateway.clock.advance(241)
    gateway.engine.expire(gateway.clock.now_ns)
    assert gateway.engine.stats().mappings == 1


def test_one_host_cannot_hold_all_ids_by_asking(gateway: Gateway, one: ControlConnection) -> None:
    for ours in range(1, 200):
        one.out(control(OUTGOING_CALL_REQUEST, ours))
        gateway.returned(one.hears(b""))
    assert gateway.engine.stats().mappings == 1 + 64


def test_an_id_that_is_used_again_is_a_new_call(gateway: Gateway, one: ControlConnection) -> None:
    """The end of the first one was not seen: a host that was switched off."""
    one.place_call(7, 900)
    assert one.place_call(7, 950) == 7
    assert_call(gateway, W1, 7, 7, 950)
    assert one.place_call(8, 950) == 8
    assert_call(gateway, W1, 8, 8, 950)
    assert calls(gateway) == 1


def test_a_limit_of_ports_holds_for_call_ids(fastpath_backend: ModuleType) -> None:
    gateway = Gateway(fastpath_backend, settings=Settings(max_flows=64, max_ports_per_host=2))
    one = ControlConnection(gateway, f"{W1}:40001", f"{HEAD}:40001")
    one.place_call(7, 900)
    assert reason_of(gateway.out(one.says(control(OUTGOING_CALL_REQUEST, 8)))) is Reason.HOST_LIMIT


def test_rfc5382_req6_it_can_be_switched_off(fastpath_backend: ModuleType) -> None:
    """Then nothing is read, and GRE has one host for each peer."""
    gateway = Gateway(fastpath_backend, settings=Settings(max_flows=64, pptp=False))
    one = ControlConnection(gateway, f"{W1}:40001", f"{HEAD}:40001")
    two = ControlConnection(gateway, f"{W2}:40002", f"{HEAD}:40002")
    assert one.place_call(7, 900) == two.place_call(7, 901) == 7
    gateway.through(call(f"{W1} > {PEER}", 900))
    assert reason_of(gateway.out(call(f"{W2} > {PEER}", 901))) is Reason.PEER_TAKEN


# ── segments ─────────────────────────────────────────────────────────────────────────────────────


def test_what_is_sent_again_gets_the_same_id(gateway: Gateway, one: ControlConnection, two: ControlConnection) -> None:
    """Also after the end: the first copy may have been lost behind us."""
    one.place_call(7, 900)
    for kind in (OUTGOING_CALL_REQUEST, CALL_DISCONNECT_NOTIFY):
        segment = two.says(control(kind, 7))
        first = gateway.through(segment[:])
        assert call_id(first[40:]) != 7
        assert gateway.through(segment[:]) == first
        if kind == OUTGOING_CALL_REQUEST:
            reply = two.hears(control(OUTGOING_CALL_REPLY, 901, call_id(first[40:])))
            assert gateway.returned(reply[:]) == gateway.returned(reply[:])
            assert calls(gateway) == 2
    assert calls(gateway) == 1


def test_messages_share_segments_and_messages_are_split(
    gateway: Gateway, one: ControlConnection, two: ControlConnection
) -> None:
    """Two in a segment; the end of one in the next, with another behind it; each id that is whole is translated."""
    one.place_call(7, 900)
    one.place_call(8, 901)
    stream = control(OUTGOING_CALL_REQUEST, 7) + control(OUTGOING_CALL_REQUEST, 8) + control(CALL_CLEAR_REQUEST, 7)
    outside = [two.out(stream[:190]), two.out(stream[190:])]
    sent = b"".join(outside)
    ids = [call_id(sent[at:]) for at in (0, 168, 336)]
    assert ids[0] == ids[2] != 7
    assert ids[1] != 8
    untouched = bytearray(stream)
    for at, each in zip((0, 168, 336), ids, strict=True):
        untouched[at + 12:at + 14] = each.to_bytes(2, "big")
    assert sent == bytes(untouched)


def test_a_message_cut_before_its_ids_passes_as_it_is(gateway: Gateway, one: ControlConnection) -> None:
    """Nothing else suffers: the call is then as one whose control connection was not seen."""
    message = control(OUTGOING_CALL_REQUEST, 7)
    assert one.out(message[:13]) + one.out(message[13:]) == message
    assert one.back(control(OUTGOING_CALL_REPLY, 900, 7)) == control(OUTGOING_CALL_REPLY, 900, 7)
    assert calls(gateway) == 0
    assert gateway.through(call(f"{W1} > {PEER}", 900)) == call(f"{HEAD} > {PEER}", 900)
    assert gateway.returned(call(f"{PEER} > {HEAD}", 7)) == call(f"{PEER} > {W1}", 7)


def test_a_segment_outside_the_window_begins_nothing(gateway: Gateway, one: ControlConnection) -> None:
    one.out(control(OUTGOING_CALL_REQUEST, 7))
    forged = tcp(f"{PEER}:1723 > {HEAD}:40001", "PA", control(OUTGOING_CALL_REPLY, 900, 7), seq=900_000_000)
    assert reason_of(gateway.back(forged)) is Reason.TCP_WINDOW
    assert calls(gateway) == 0


def test_a_peer_cannot_name_anothers_call(gateway: Gateway, one: ControlConnection, two: ControlConnection) -> None:
    """In the second one's connection the first one's id is just a number."""
    one.place_call(7, 900)
    answer = control(OUTGOING_CALL_REPLY, 901, 7)
    assert two.back(answer) == answer
    assert calls(gateway) == 1
    assert_call(gateway, W1, 7, 7, 900)


@pytest.mark.parametrize("data", [b"SSH-2.0-x\r\n", control(OUTGOING_CALL_REQUEST, 0), bytes(16)])
def test_other_data_on_that_port_passes(gateway: Gateway, one: ControlConnection, data: bytes) -> None:
    assert one.out(data) == data
    assert gateway.engine.stats().mappings == 1


# ── what else there is about flows ───────────────────────────────────────────────────────────────


def test_a_call_is_related_to_its_control_connection(
    gateway: Gateway, one: ControlConnection, two: ControlConnection
) -> None:
    """FORWARD has no rule for GRE, as with the kernel's helper."""
    gateway.rules(
        "-P FORWARD DROP", "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-A FORWARD -p tcp --dport 1723 -j ACCEPT",
    )
    outside = two.place_call(7, 900)
    assert_call(gateway, W2, 7, outside, 900)
    assert reason_of(gateway.out(call(f"{W1} > {PEER}", 5))) is Reason.FORWARD_DROP
    gateway.rules("-F FORWARD")
    assert reason_of(gateway.out(call(f"{W2} > {PEER}", 900))) is Reason.FORWARD_DROP
    assert reason_of(gateway.out(two.says(control(CALL_CLEAR_REQUEST, 7)))) is Reason.FORWARD_DROP


def test_calls_do_not_mix_with_gre_that_is_none(gateway: Gateway, two: ControlConnection) -> None:
    """A call that began unseen, or any other GRE: one host and peer, as ever, beside the calls that are known."""
    gateway.through(call(f"{W1} > {PEER}", 5))
    outside = two.place_call(7, 900)
    assert_call(gateway, W2, 7, outside, 900)
    assert gateway.returned(call(f"{PEER} > {HEAD}", 9)) == call(f"{PEER} > {W1}", 9)
    assert reason_of(gateway.out(call(f"{W2} > {PEER}", 6))) is Reason.PEER_TAKEN


def test_icmp_errors_about_a_call_find_it(gateway: Gateway, one: ControlConnection, two: ControlConnection) -> None:
    """Path MTU discovery in both directions; eight bytes of GRE are quoted at least (RFC 792)."""
    one.place_call(7, 900)
    outside = two.place_call(7, 901)
    error = gateway.returned(icmp_error(f"192.0.2.1 > {HEAD}", call(f"{HEAD} > {PEER}", 901), 3, 4, quote_len=28))
    assert quote_of(error) == call(f"{W2} > {PEER}", 901)[:28]
    assert_error_checksums(error)
    error = gateway.through(icmp_error(f"{W2} > {PEER}", call(f"{PEER} > {W2}", 7), 3, 2))
    assert quote_of(error) == call(f"{PEER} > {HEAD}", outside)
    assert_error_checksums(error)
    two.back(control(CALL_DISCONNECT_NOTIFY, 901))
    late = icmp_error(f"192.0.2.1 > {HEAD}", call(f"{HEAD} > {PEER}", 901), 3, 4)
    assert reason_of(gateway.back(late)) is Reason.LOCAL_IN


def test_conntrack_shows_the_keys(gateway: Gateway, one: ControlConnection, two: ControlConnection) -> None:
    one.place_call(7, 900)
    outside = two.place_call(7, 901)
    line = next(
        format_flow(flow, 0) for flow in gateway.engine.flows()
        if flow.spec.is_call and flow.spec.inside_ip == address(W2)
    )
    assert f"src={W2} dst={PEER} srckey=0x7 dstkey=0x385 " in line
    assert f"src={PEER} dst={HEAD} srckey=0x385 dstkey={outside:#x} " in line


def test_calls_survive_a_restart(fastpath_backend: ModuleType) -> None:
    """The table's file has all of it; control connections go on being read."""
    memory = mmap.mmap(-1, 16 * RECORD_BYTES)
    settings = Settings(max_flows=16)

    def gateway_on(start_ns: int) -> Gateway:
        gateway = Gateway(fastpath_backend, settings=settings, now_ns=start_ns)
        table = fastpath_backend.FastPath(configure(settings, KEY), memory, start_ns)
        gateway.engine = NatEngine(table, settings=settings, rng=random.Random(1))
        gateway.engine.replace_interfaces(InterfaceTable(INTERFACES), start_ns)
        gateway.engine.replace_ruleset(ruleset(OWNER_RULES))
        gateway.engine.take_over(16, start_ns)
        return gateway

    before = gateway_on(0)
    one, two = (
        ControlConnection(before, f"{worker}:{port}", f"{HEAD}:{port}") for worker, port in ((W1, 40001), (W2, 40002))
    )
    one.place_call(7, 900)
    outside = two.place_call(7, 901)
    after = two.gateway = one.gateway = gateway_on(10**9)
    assert_call(after, W1, 7, 7, 900)
    assert_call(after, W2, 7, outside, 901)
    assert two.back(control(SET_LINK_INFO, outside)) == control(SET_LINK_INFO, 7)
    assert two.out(control(CALL_DISCONNECT_NOTIFY, 7)) == control(CALL_DISCONNECT_NOTIFY, outside)
    assert calls(after) == 1
    assert one.place_call(8, 902) == 8


@pytest.mark.parametrize("mapping", MappingBehaviour)
def test_both_kinds_of_mapping(fastpath_backend: ModuleType, mapping: MappingBehaviour) -> None:
    gateway = Gateway(fastpath_backend, settings=Settings(max_flows=64, mapping=mapping))
    one, two = (
        ControlConnection(gateway, f"{worker}:{port}", f"{HEAD}:{port}") for worker, port in ((W1, 40001), (W2, 40002))
    )
    assert one.place_call(7, 900) != two.place_call(7, 901)
    assert {flow.spec.proto for flow in gateway.engine.flows()} == {Proto.TCP, Proto.GRE}
    gateway.expire_all()
    assert gateway.engine.stats().mappings == 0


def test_a_full_table_makes_room_for_a_call(fastpath_backend: ModuleType) -> None:
    """As for any flow: one without an answer goes."""
    gateway = Gateway(fastpath_backend, settings=Settings(max_flows=2))
    one = ControlConnection(gateway, f"{W1}:40001", f"{HEAD}:40001")
    gateway.through(call(f"{W2} > 203.0.113.9", 5))
    one.place_call(7, 900)
    assert_call(gateway, W1, 7, 7, 900)
