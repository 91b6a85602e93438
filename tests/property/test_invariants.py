"""What must hold whatever comes: an engine, packets from both sides at random, and a few promises.

 1. No two flows have the same outside endpoint towards the same peer.
 2. Nothing leaves an uplink but with that uplink's own address.
 3. Whoever answers a translated packet reaches who sent it, with the same bytes otherwise.
 4. A wrong transport checksum stays wrong, a right one right.
 5. `process` never raises, and counts each packet once; what it holds, when it is released.
 6. When all flows have ended, every port is free.
 7. A host inside that is reached through an outside address sees an outside address, too.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from types import ModuleType
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from support.backends import NAMES, load_backend
from support.engines import BOND_2, BOND_3, BOND_DEF, INTERFACES, OWNER_RULES, Gateway, is_held
from support.packets import (
    TCP,
    UDP,
    address,
    dccp,
    describe,
    dotted,
    fragments,
    icmp_error,
    ipv4,
    ones_sum,
    other,
    ping,
    pong,
    sctp,
    tcp,
    udp,
    udplite,
)

from natengine.nat.protocols import MAPPED
from natengine.settings import Settings
from natengine.vocab import Decision, Hook, Interface, Proto, Reason, Verdict

EXAMPLES = int(os.environ.get("NATENGINE_EXAMPLES", "80"))

WORKERS = ("10.1.0.11", "10.1.0.12")
PEERS = {BOND_2: ("203.0.113.2", "203.0.113.3"), BOND_3: ("198.51.100.2",)}
OWN = {BOND_2: "203.0.113.1", BOND_3: "198.51.100.1"}
PORTS = (53, 80, 5000, 5001)

uplinks = st.sampled_from((BOND_2, BOND_3))
ports = st.sampled_from(PORTS)
hooks = st.sampled_from((Hook.PREROUTING, Hook.POSTROUTING))
flags = st.sampled_from(("S", "S", "SA", "A", "A", "PA", "FA", "R", "RA", "SF", ""))
data = st.binary(max_size=12)
rule_changes = st.sampled_from((
    "-P FORWARD DROP", "-P FORWARD ACCEPT", "-F FORWARD", "-A FORWARD -i bond0.def -j ACCEPT",
    "-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT", "-t nat -F",
    *OWNER_RULES, *OWNER_RULES,
    "-t nat -I POSTROUTING -p udp -o bond0.2 -j MASQUERADE --to-ports 5000-5002",
    "-t nat -I POSTROUTING -p tcp -o bond0.3 -j MASQUERADE --random",
))


Builder = Callable[[str, bytes], bytearray]


def gre(text: str, payload: bytes) -> bytearray:
    """Ports are for those who have some."""
    return other(text, Proto.GRE, payload)


def esp(text: str, payload: bytes) -> bytearray:
    return other(text, Proto.ESP, payload)


def transport_is_right(packet: bytes | bytearray) -> bool:
    """Say whether the TCP or UDP checksum of a whole packet holds (no checksum counts as right)."""
    segment = packet[20:int.from_bytes(packet[2:4], "big")]
    if packet[9] == UDP and segment[6:8] == b"\0\0":
        return True
    pseudo = bytes(packet[12:20]) + bytes([0, packet[9]]) + len(segment).to_bytes(2, "big")
    return ones_sum(pseudo + bytes(segment)) == 0xFFFF


def swapped(text: str) -> str:
    """Return the endpoints of the answer."""
    here, there = text.split(" > ")
    return f"{there} > {here}"


class Promises(RuleBasedStateMachine):
    """The steps; a subclass each says on which fast path."""

    backend: ClassVar[ModuleType]

    @initialize(
        seed=st.integers(0, 9), start_ns=st.sampled_from((0, 2**62)), room=st.sampled_from((3, 50)),
        sharing=st.booleans(),
    )
    def start(self, seed: int, start_ns: int, room: int, sharing: bool) -> None:
        config = Settings(max_flows=room, max_fragment_trains=2, port_overloading=sharing)
        self.sharing = sharing
        self.gateway = Gateway(self.backend, seed=seed, now_ns=start_ns, settings=config)
        self.sent = 0
        self.known: list[bytes] = []            # packets that went out translated, for answers and errors
        self.held: dict[int, tuple[bytes, bytearray, Hook, int, int]] = {}  # by ticket: what `check` wants

    def step(self, packet: bytearray, hook: Hook, came: int, via: int) -> Decision:
        """Let the engine decide, and check what may be checked of every decision."""
        before = bytes(packet)
        decision = self.gateway.process(packet, hook, came, via)
        self.sent += 1
        if is_held(decision):
            self.held[decision.ticket] = before, packet, hook, came, via
        else:
            self.check(decision, before, packet, hook, came, via)
        self.check_released()
        return decision

    def check_released(self) -> None:
        """Look at what has become of held packets, each of which was held and is no longer."""
        for decision in self.gateway.released():
            self.check(decision, *self.held.pop(decision.ticket))

    @staticmethod
    def check(decision: Decision, before: bytes, packet: bytearray, hook: Hook, came: int, via: int) -> None:
        """Promise 2, and that verdict, reason and bytes agree."""
        assert decision.verdict is decision.reason.verdict
        if decision.packet is None:
            assert bytes(packet) == before
        elif len(before) >= 20 and ones_sum(before[:20]) == 0xFFFF:
            assert ones_sum(decision.packet[:20]) == 0xFFFF, "IP header checksum"
        accepted = decision.verdict is Verdict.ACCEPT
        if hook == Hook.POSTROUTING and via in PEERS and accepted and (came or decision.packet is not None):
            source = dotted(int.from_bytes(packet[12:16], "big"))
            assert source == OWN[via], f"{source} leaves over {via}: {decision.reason.name}"

    # ── packets that make sense ─────────────────────────────────────────────────────────────────

    @rule(
        worker=st.sampled_from(WORKERS), sport=ports, via=uplinks, dport=ports, n=st.integers(0, 1),
        proto=st.sampled_from(("udp", "udp", "tcp", "tcp", "ping")), letters=flags, payload=data,
        wrong=st.booleans(), routed_to=st.sampled_from((BOND_2, BOND_3, BOND_3)),
    )
    def out(
        self, worker: str, sport: int, via: int, dport: int, n: int, proto: str, letters: str, payload: bytes,
        wrong: bool, routed_to: int,
    ) -> None:
        """A worker sends, now and then by another route than before; the promises 3 and 4."""
        peer = PEERS[routed_to][n % len(PEERS[routed_to])]
        text = f"{worker}:{sport} > {peer}:{dport}"
        if proto == "ping":
            packet = ping(f"{worker} > {peer}", sport, payload)
        else:
            packet = tcp(text, letters, payload) if proto == "tcp" else udp(text, payload)
            if wrong:
                packet[-1] ^= 0x5A
        before = bytes(packet)
        decision = self.step(packet, Hook.POSTROUTING, BOND_DEF, via)
        if decision.packet is None:
            return
        self.known = [*self.known[-4:], bytes(packet)]
        if proto != "ping":
            assert transport_is_right(packet) == transport_is_right(before)
        assert packet[20 + 8:] == before[20 + 8:] or packet[9] == TCP
        self.answer_comes_back(before, packet, via)

    def answer_comes_back(self, before: bytes, packet: bytearray, via: int) -> None:
        """An answer to `packet` reaches whoever sent `before` (or FORWARD stops it)."""
        if packet[9] == Proto.ICMP:
            outside, ident = describe(packet).split(" id ")
            answer = pong(swapped(outside), int(ident))
            inside, ident = describe(before).split(" id ")
            wanted = pong(swapped(inside), int(ident))
        elif packet[9] == UDP:
            answer, wanted = udp(swapped(describe(packet))), udp(swapped(describe(before)))
        else:
            syn = packet[33] & 0x12 == 0x02
            letters, ack = ("SA", 1001 + len(packet[40:])) if syn else ("R", 1001)  # an exact RST
            answer = tcp(swapped(describe(packet)), letters, ack=ack)
            wanted = tcp(swapped(describe(before)), letters, ack=ack)
        decision = self.step(answer, Hook.PREROUTING, via, 0)
        if decision.verdict is Verdict.ACCEPT:
            assert answer == wanted
        else:
            assert decision.reason is Reason.FORWARD_DROP

    @rule(
        worker=st.sampled_from(WORKERS), sport=ports, via=uplinks, dport=ports, payload=data,
        build=st.sampled_from((udplite, dccp, sctp, gre, esp)), n=st.integers(0, 1),
    )
    def out_of_another_kind(
        self, worker: str, sport: int, via: int, dport: int, payload: bytes, build: Builder, n: int
    ) -> None:
        """A worker sends: as if the head had sent it, and the answer is the worker's; or nobody hears of it."""
        peer = PEERS[via][n % len(PEERS[via])]
        packet = build(f"{worker}:{sport} > {peer}:{dport}", payload)
        decision = self.step(packet, Hook.POSTROUTING, BOND_DEF, via)
        if decision.packet is None:
            return
        outside = describe(packet)
        assert packet[20:] == build(outside, payload)[20:]
        answer = build(swapped(outside), payload)
        decision = self.step(answer, Hook.PREROUTING, via, 0)
        if decision.verdict is Verdict.ACCEPT:
            wanted = f"{peer}:{dport} > {worker}:{sport}"
            assert answer == build(wanted, payload)
        else:
            assert decision.reason is Reason.FORWARD_DROP

    @rule(sport=ports, via=uplinks, dport=ports, letters=flags, is_tcp=st.booleans(), inside=st.booleans())
    def head(self, sport: int, via: int, dport: int, letters: str, is_tcp: bool, inside: bool) -> None:
        """The head sends, from its outside address or from its inside one."""
        text = f"{'10.1.0.1' if inside else OWN[via]}:{sport} > {PEERS[via][0]}:{dport}"
        self.step(tcp(text, letters) if is_tcp else udp(text), Hook.POSTROUTING, 0, via)

    @rule(
        via=uplinks, sport=ports, dport=st.sampled_from(PORTS) | st.integers(0, 65535), is_tcp=st.booleans(),
        letters=flags, aim=st.sampled_from((*WORKERS, *OWN.values())),
    )
    def stranger(self, via: int, sport: int, dport: int, is_tcp: bool, letters: str, aim: str) -> None:
        """Somebody outside sends: it reaches the head, a worker who wrote to them, or nobody."""
        text = f"{PEERS[via][0]}:{sport} > {aim}:{dport}"
        packet = tcp(text, letters) if is_tcp else udp(text)
        decision = self.step(packet, Hook.PREROUTING, via, 0)
        if aim in WORKERS:
            assert decision.reason is Reason.UNSOLICITED
        elif decision.reason is Reason.LOCAL_IN:
            assert describe(packet) == text

    @rule(
        pick=st.integers(0, 4), length=st.sampled_from((20, 27, 28, 36, 40, 99)),
        kind=st.sampled_from((3, 11, 12)),
    )
    def error(self, pick: int, length: int, kind: int) -> None:
        """A router outside complains about something that was sent."""
        if self.known:
            quoted = self.known[pick % len(self.known)]
            own = dotted(int.from_bytes(quoted[12:16], "big"))
            packet = icmp_error(f"192.0.2.1 > {own}", quoted, kind, quote_len=length)
            self.step(packet, Hook.PREROUTING, BOND_2, 0)
            assert ones_sum(packet[20:]) == 0xFFFF

    @rule(
        worker=st.sampled_from(WORKERS), sport=ports, ident=st.integers(1, 3),
        order=st.lists(st.integers(0, 2), max_size=4), is_tcp=st.booleans(),
    )
    def in_pieces(self, worker: str, sport: int, ident: int, order: list[int], is_tcp: bool) -> None:
        """A datagram in three fragments, in any order; some twice, some not at all."""
        text = f"{worker}:{sport} > 203.0.113.2:53"
        whole = tcp(text, "S", bytes(28)) if is_tcp else udp(text, bytes(60))
        pieces = fragments(whole, 24, ident)[:3]
        for i in order:
            self.step(pieces[i % len(pieces)][:], Hook.POSTROUTING, BOND_DEF, BOND_2)

    @rule(
        worker=st.sampled_from(WORKERS), sport=ports, via=uplinks, dport=ports, is_tcp=st.booleans(), letters=flags,
        payload=data,
    )
    def hairpin(
        self, worker: str, sport: int, via: int, dport: int, is_tcp: bool, letters: str, payload: bytes
    ) -> None:
        """A worker writes to an outside address of the head, through both hooks; promise 7, and the answer."""
        text = f"{worker}:{sport} > {OWN[via]}:{dport}"
        packet = tcp(text, letters, payload) if is_tcp else udp(text, payload)
        if not self.crosses(packet):
            return
        assert describe(packet).startswith(f"{OWN[via]}:")
        assert transport_is_right(packet)
        back = swapped(describe(packet))
        answer = tcp(back, "R", ack=1001) if is_tcp else udp(back)
        if self.crosses(answer):
            assert describe(answer) == swapped(text)

    def crosses(self, packet: bytearray) -> bool:
        """Whether a packet goes from one worker to another one."""
        if self.step(packet, Hook.PREROUTING, BOND_DEF, 0).packet is None:
            return False
        decision = self.step(packet, Hook.POSTROUTING, BOND_DEF, BOND_DEF)
        assert decision.verdict is Verdict.DROP or decision.packet is not None, "shows its inside address"
        return decision.packet is not None

    # ── packets that make none ──────────────────────────────────────────────────────────────────

    @rule(
        raw=st.binary(max_size=64), proto=st.sampled_from((0, 1, 1, 6, 17, 47)), hook=hooks,
        fragment=st.sampled_from((0, 0, 0x2000, 3)), came=st.integers(0, 6), via=st.integers(0, 6),
        headed=st.booleans(), cut=st.integers(0, 30),
    )
    def noise(
        self, raw: bytes, proto: int, hook: Hook, fragment: int, came: int, via: int, headed: bool, cut: int
    ) -> None:
        """Bytes at random, most of them behind an IP header that is right."""
        packet = bytearray(raw)
        if headed:
            packet = ipv4(WORKERS[0], PEERS[BOND_2][0], proto, raw, fragment=fragment)
        if cut < 20:
            del packet[len(packet) - cut:]
        self.step(packet, *self.place(hook, came, via))

    @staticmethod
    def place(hook: Hook, came: int, via: int) -> tuple[Hook, int, int]:
        """Interfaces as the kernel names them: none where there is none."""
        return (hook, came, 0) if hook == Hook.PREROUTING else (hook, came, via)

    # ── everything else that happens ────────────────────────────────────────────────────────────

    @rule(line=rule_changes)
    def rules_change(self, line: str) -> None:
        self.gateway.rules(line)

    @rule(seconds=st.sampled_from((1, 61, 301, 8000)), budget=st.sampled_from((1, 1000)))
    def time_passes(self, seconds: int, budget: int) -> None:
        self.gateway.clock.advance(seconds)
        self.gateway.engine.expire(self.gateway.clock.now_ns, budget)
        self.check_released()

    @rule(gone=st.booleans())
    def address_changes(self, gone: bool) -> None:
        self.gateway.interfaces(Interface(BOND_3, "bond0.3", ()) if gone else INTERFACES[3])

    @rule(n=st.integers(0, 5))
    def flow_is_deleted(self, n: int) -> None:
        flows = self.gateway.engine.flows()
        if flows:
            assert self.gateway.engine.remove_flow(flows[n % len(flows)].flow_id, self.gateway.clock.now_ns)

    # ── the promises ────────────────────────────────────────────────────────────────────────────

    @invariant()
    def one_owner_for_each_outside_tuple(self) -> None:
        specs = [flow.spec for flow in self.gateway.engine.flows()]
        assert len({spec.arriving for spec in specs}) == len(specs)
        assert len({spec.leaving for spec in specs}) == len(specs)

    @invariant()
    def one_inside_endpoint_for_each_outside_port(self) -> None:
        """But a service of the head's own may share its port, with other peers than its owner's."""
        if self.sharing:
            return
        owner: dict[tuple[int, int, int], tuple[int, int]] = {}
        for flow in self.gateway.engine.flows():
            spec = flow.spec
            if spec.inside_ifindex and spec.proto in MAPPED:
                outside = (spec.proto, spec.outside_ip, spec.outside_port)
                assert owner.setdefault(outside, (spec.inside_ip, spec.inside_port)) == (
                    spec.inside_ip, spec.inside_port
                )

    @invariant()
    def each_packet_was_counted_once(self) -> None:
        stats = self.gateway.engine.stats()
        assert sum(stats.by_reason.values()) + stats.held_fragments == self.sent
        assert stats.held_fragments == len(self.held)

    def teardown(self) -> None:
        """All ends; then every port is free."""
        if not hasattr(self, "gateway"):
            return
        self.gateway.expire_all()
        self.check_released()
        stats = self.gateway.engine.stats()
        assert stats[:4] == (0, 0, 0, 0)
        assert not self.held
        self.gateway.interfaces(*INTERFACES)
        self.gateway.rules(*OWNER_RULES, "-P FORWARD ACCEPT", fresh=True)
        for via in PEERS:
            for port in PORTS:
                for build in (udp, tcp):
                    packet = self.gateway.through(build(f"10.1.0.77:{port} > {PEERS[via][0]}:9"), via)
                    assert describe(packet) == f"{OWN[via]}:{port} > {PEERS[via][0]}:9"


@pytest.mark.parametrize("name", NAMES)
def test_promises(name: str) -> None:
    """The state machine, on each fast path."""
    machine = type("Promises", (Promises,), {"backend": load_backend(name)})
    case = machine.TestCase
    case.settings = settings(
        max_examples=EXAMPLES, stateful_step_count=40, deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    case().runTest()


@settings(
    max_examples=EXAMPLES * 5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    raw=st.binary(max_size=100), hook=hooks, came=st.integers(0, 6), via=st.integers(0, 6),
    now_ns=st.sampled_from((0, 2**62)),
)
def test_any_bytes(
    gateway: Gateway, raw: bytes, hook: Hook, came: int, via: int, now_ns: int
) -> None:
    """Promise 5, with nothing that looks like a packet on purpose."""
    gateway.clock.now_ns = now_ns
    counted = sum(gateway.engine.stats().by_reason.values())
    if is_held(gateway.process(bytearray(raw), hook, came, via)):
        gateway.clock.advance(30)
        gateway.engine.expire(gateway.clock.now_ns)
        assert len(gateway.released()) == 1
    assert sum(gateway.engine.stats().by_reason.values()) == counted + 1


@settings(
    max_examples=EXAMPLES * 5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_an_error_with_any_quote(gateway: Gateway, data: st.DataObject) -> None:
    """A known packet is quoted with some bytes of it changed: right sums, or no translation."""
    sent = gateway.through(udp("10.1.0.11:5000 > 203.0.113.2:53", b"some data"))
    quoted = bytearray(sent)
    for _ in range(data.draw(st.integers(0, 3))):
        quoted[data.draw(st.integers(0, len(quoted) - 1))] = data.draw(st.integers(0, 255))
    packet = icmp_error("192.0.2.1 > 203.0.113.1", quoted, quote_len=data.draw(st.integers(0, len(quoted))))
    before = bytes(packet)
    decision = gateway.back(packet)
    if decision.packet is None:
        assert bytes(packet) == before
    else:
        assert decision.reason is Reason.ICMP_ERROR
        assert ones_sum(packet[:20]) == ones_sum(packet[20:]) == 0xFFFF
        assert packet[16:20] == address("10.1.0.11").to_bytes(4, "big")
