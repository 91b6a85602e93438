"""Packets that nobody sends, through whole engines on both fast paths.

Whatever comes: no exception, no byte changed that the decision does not hold, the twins agree, nothing with an
inside source leaves an uplink, what is held is released once, and when time has passed no flow, no mapping and
no fragment is left.

A `Life` is an engine with some rules and settings, all drawn by a seed; the packets of the corpus are its honest
traffic, and mutations of them, and of what has shown something new, are the rest.  The seed brings all of it back.
"""

from __future__ import annotations

import functools
import random
from pathlib import Path

from support.backends import load_backend
from support.engines import BOND_2, BOND_3, BOND_DEF, INTERFACES, OWNER_RULES, Gateway, is_held
from support.packets import address

from natengine.nat.interfaces import InterfaceTable
from natengine.settings import SECOND_NS, FilteringBehaviour, MappingBehaviour, Settings
from natengine.vocab import Decision, Hook, PacketMeta, Reason, Route, Verdict

CORPUS = Path(__file__).parents[1] / "corpus" / "packets"
HOW = {b"<": Hook.PREROUTING, b">": Hook.POSTROUTING}       # a corpus file: one of these, then the packet
OURS = frozenset(ip for each in INTERFACES for ip in each.addresses)
UPLINKS = (BOND_2, BOND_2, BOND_2, BOND_3)
ROUTES = (Route(address("10.1.0.0"), 0xFFFF_FF00, BOND_DEF), Route(0, 0, BOND_2))
LINKS = (b"", bytes(6), bytes((2, 0, 0, 0, 0, 17)))
RULES = (
    OWNER_RULES,
    (
        *OWNER_RULES, "-P FORWARD DROP", "-A FORWARD -i bond0.def -j ACCEPT",
        "-A FORWARD -m state --state ESTABLISHED -j ACCEPT",
    ),
    ("-t nat -A POSTROUTING -o bond0.+ -p tcp -j MASQUERADE --to-ports 5000-5003 --random", *OWNER_RULES[:1]),
    (
        *OWNER_RULES, "-A FORWARD -p icmp --icmp-type echo-request -j ACCEPT",
        "-A FORWARD -p tcp --syn --dport 80 -j DROP",
    ),
    (
        *OWNER_RULES, "-t nat -A PREROUTING -d 203.0.113.1 -p tcp -j CONNMARK --set-mark 7",
        "-t nat -A PREROUTING -d 203.0.113.1 -p tcp --dport 80 -j DNAT --to-destination 10.1.0.11:8080",
        "-t nat -A PREROUTING -d 203.0.113.1 -p udp --dport 1:4000 -j DNAT --to-destination 10.1.0.12:4000-4100",
        "-A FORWARD -m connmark --mark 7 -j ACCEPT", "-A FORWARD -j CONNMARK --xor-mark 1",
        "-A FORWARD -p udp -m mark --mark 1/1 -j REJECT", "-A FORWARD -j CONNMARK --save-mark --mask 0xf0",
        "-A FORWARD -m mac --mac-source 02:00:00:00:00:11 -j LOG",
        "-A FORWARD -p tcp -m statistic --mode nth --every 5 --packet 0 -j REJECT --reject-with tcp-reset",
        "-A FORWARD -p icmp -m limit --limit 5/s -j ACCEPT", "-A FORWARD -p icmp -j DROP",
    ),
)
# where a change decides something: version, lengths, fragments, protocol, addresses, the first words of transport
PLACES = (0, 0, 2, 3, 6, 6, 7, 9, 9, 12, 15, 16, 19, 20, 21, 22, 23, 24, 28, 32, 33, 34, 36, 40, 48)
BYTES = (0, 1, 2, 3, 4, 5, 6, 8, 11, 12, 13, 17, 0x20, 0x40, 0x45, 0x46, 0x4F, 0x50, 0x7F, 0x80, 0xF0, 0xFF)
KEPT = 4096                                                 # packets that have shown something new

Packet = tuple[int, bytes]                                  # hook, and the bytes from the IP header on
Waiting = tuple[int, int, int, bytes]                       # what `Life.check` wants of a held packet


@functools.cache
def corpus() -> list[Packet]:
    """Return the packets of the corpus, in the order of their names."""
    return [(HOW[data[:1]], data[1:]) for data in (path.read_bytes() for path in sorted(CORPUS.iterdir()))]


def mutated(dice: random.Random, packet: bytes, others: list[Packet]) -> bytearray:
    """The packet with some things wrong about it; sometimes with none."""
    data = bytearray(packet)
    for _ in range(dice.choice((0, 0, 1, 1, 1, 2, 4))):
        kind = dice.random()
        if not data:
            break
        if kind < 0.45:
            data[dice.choice(PLACES) % len(data)] = dice.choice(BYTES)
        elif kind < 0.75:
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        elif kind < 0.8:
            del data[dice.randrange(len(data)):]
        elif kind < 0.88:
            data += dice.randbytes(dice.randrange(64))
        elif kind < 0.92 and len(data) > 4:
            data[2:4] = dice.randrange(len(data) + 40).to_bytes(2, "big")
        else:
            other = dice.choice(others)[1]
            at = dice.randrange(len(data))
            data[at:] = other[at:]
    return data


class Life:
    """Two engines that are told the same, and what they are told."""

    def __init__(self, seed: int, backends: tuple[str, ...], honest: list[Packet]) -> None:
        self.dice = dice = random.Random(seed)
        settings = Settings(
            max_flows=dice.choice((4, 64, 1024)), max_fragment_trains=dice.choice((2, 64)),
            filtering=dice.choice(list(FilteringBehaviour)), mapping=dice.choice(list(MappingBehaviour)),
            port_overloading=dice.random() < 0.5, tcp_liberal=dice.random() < 0.3,
            max_flows_per_host=dice.choice((0, 3)), new_flows_when_busy=dice.choice((0, 50)),
        )
        rules, start = dice.choice(RULES), dice.choice((0, 2**62))
        self.gateways = [
            Gateway(load_backend(name), rules, settings=settings, seed=seed, now_ns=start) for name in backends
        ]
        self.packets = list(honest)
        self.honest = honest
        self.seen: set[tuple[int, ...]] = set()
        self.held: list[dict[int, Waiting]] = [{} for _ in backends]        # by ticket
        for gateway in self.gateways:
            gateway.engine.replace_interfaces(InterfaceTable(INTERFACES, ROUTES), start)
        for hook, packet in honest:
            self.send(hook, bytearray(packet), BOND_2, BOND_DEF)

    def send(self, hook: int, packet: bytearray, uplink: int, inside: int) -> Reason:
        """Let each engine decide about the packet, and hold them to what they have promised."""
        before = bytes(packet)
        answers: list[list[tuple[Reason, bytes]]] = []
        busy = self.dice.random() < 0.1
        mark, link = self.dice.choice((0, 0, 1, 0x2F)), self.dice.choice(LINKS)
        for gateway, held in zip(self.gateways, self.held, strict=True):
            ours = bytearray(before)
            came, via = (uplink, 0) if hook == Hook.PREROUTING else (inside, uplink)
            meta = PacketMeta(hook, came, via, mark, link)
            decision = gateway.engine.process(ours, meta, gateway.clock.now_ns, busy=busy)
            if is_held(decision):
                held[decision.ticket] = hook, inside, uplink, before
                answers.append([(decision.reason, before)])
            else:
                assert decision.packet is None or decision.packet is ours
                assert decision.packet is not None or ours == before, "changed, and not said"
                answers.append([self.check(decision, hook, inside, uplink, before)])
            answers[-1] += self.released(gateway, held)
        assert all(answer == answers[0] for answer in answers), f"the twins differ: {answers}"
        return answers[0][0][0]

    @staticmethod
    def check(decision: Decision, hook: int, inside: int, uplink: int, before: bytes) -> tuple[Reason, bytes]:
        """Hold one decision to what is promised of all; return why, and the bytes that go on."""
        packet = before if decision.packet is None else bytes(decision.packet)
        assert decision.verdict is decision.reason.verdict
        assert len(packet) == len(before)
        if hook == Hook.POSTROUTING and uplink != BOND_DEF and decision.verdict is Verdict.ACCEPT:
            source = int.from_bytes(packet[12:16], "big")
            assert source in OURS or not (inside or source), f"a leak, for {decision.reason.name}"
        return decision.reason, packet

    def released(self, gateway: Gateway, held: dict[int, Waiting]) -> list[tuple[Reason, bytes]]:
        """Return what has become of packets that waited; each was held, and is no longer."""
        return [self.check(decision, *held.pop(decision.ticket)) for decision in gateway.released()]

    def step(self) -> None:
        """One packet, and now and then something else."""
        dice = self.dice
        chance = dice.random()
        if chance < 0.01:
            self.pass_time(dice.choice((0, 1, SECOND_NS, 7 * SECOND_NS, 61 * SECOND_NS, 301 * SECOND_NS)))
        elif chance < 0.012:
            for gateway in self.gateways:
                gateway.engine.replace_ruleset(gateway.engine.ruleset)
        hook, packet = dice.choice(self.packets if chance < 0.6 else self.honest)
        data = mutated(dice, packet, self.packets)
        before = bytes(data)
        uplink = dice.choice(UPLINKS) if dice.random() < 0.97 else BOND_DEF         # a hairpin, either half
        reason = self.send(hook, data, uplink, BOND_DEF if chance < 0.95 else 0)
        sign = (hook, reason, *before[:1], *before[6:7], *before[9:10], *before[20:21], *before[33:34])
        if sign not in self.seen and len(self.packets) < KEPT:
            self.seen.add(sign)
            self.packets.append((hook, before))

    def pass_time(self, step_ns: int) -> None:
        for gateway, held in zip(self.gateways, self.held, strict=True):
            gateway.clock.now_ns += step_ns
            gateway.engine.expire(gateway.clock.now_ns)
            gateway.engine.outbox.take()
            self.released(gateway, held)

    def end(self) -> None:
        """Both tables are the same, and empty when all time has passed."""
        assert len({repr(gateway.engine.flows()) for gateway in self.gateways}) == 1
        for gateway, held in zip(self.gateways, self.held, strict=True):
            gateway.expire_all()
            self.released(gateway, held)
            assert not held
            stats = gateway.engine.stats()
            assert (stats.flows, stats.mappings, stats.fragment_trains, stats.held_fragments) == (0, 0, 0, 0), stats
            assert len(gateway.engine.marks) == 0


def one_input(data: bytes) -> None:
    """A short life from bytes, for a fuzzer that sees which lines they reach: how, length, packet; and again."""
    life = Life(data[0] if data else 0, ("python",), corpus()[:8])
    at = 1
    while at + 2 < len(data):
        how, length = data[at], data[at + 1]
        life.send(
            Hook.POSTROUTING if how & 1 else Hook.PREROUTING, bytearray(data[at + 2:at + 2 + length]),
            BOND_3 if how & 2 else BOND_2, 0 if how & 4 else BOND_DEF,
        )
        if how & 8:
            life.pass_time((how >> 4) * 20 * SECOND_NS)
        at += 2 + length
