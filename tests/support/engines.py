"""A `NatEngine` with the lab's interfaces, driven as the kernel would drive it.

        workers 10.1.0.11, .12 ── bond0.def 10.1.0.1 ─ head ─ bond0.2 203.0.113.1 ── 203.0.113.2
                                                          └── bond0.3 198.51.100.1 ── 198.51.100.2

`Gateway.out` and `Gateway.back` are the two hooks; `through` and `returned` are the same for packets
that must pass.  A test that takes the fixture `gateway` runs on both fast paths.
"""

from __future__ import annotations

import random
import shlex
from collections.abc import Iterable
from types import ModuleType

import pytest
from support.backends import KEY
from support.clock import ManualClock
from support.packets import address

from natengine.fastpath import configure
from natengine.flow.records import FlowInfo
from natengine.frontend.iptables import parse_command
from natengine.nat.arriving import LookAtPorts, never_look
from natengine.nat.engine import NatEngine
from natengine.nat.interfaces import InterfaceTable
from natengine.rules.model import RuleSet
from natengine.settings import SECOND_NS, Settings
from natengine.vocab import Decision, Hook, Interface, PacketMeta, Reason, Verdict

LO, BOND_DEF, BOND_2, BOND_3, INSIDE_2 = 1, 2, 3, 4, 5


def _ethernet(ifindex: int, name: str, network: str) -> Interface:
    """The head has .1 of a /24."""
    return Interface(
        ifindex, name, (address(f"{network}.1"),), (address(f"{network}.255"),),
        networks=((address(f"{network}.0"), 0xFFFF_FF00),),
    )


INTERFACES = (
    Interface(LO, "lo", (address("127.0.0.1"),), networks=((address("127.0.0.0"), 0xFF00_0000),)),
    _ethernet(BOND_DEF, "bond0.def", "10.1.0"),
    _ethernet(BOND_2, "bond0.2", "203.0.113")._replace(default_route=True),
    _ethernet(BOND_3, "bond0.3", "198.51.100"),
    _ethernet(INSIDE_2, "bond0.lan", "10.2.0"),
)
HOLD_DOWN = Settings.port_hold_down_ns // SECOND_NS + 1     # seconds, for `ManualClock`
OWNER_RULES = (
    "--table nat --append POSTROUTING --out-interface bond0.2 -j MASQUERADE",
    "--table nat --append POSTROUTING --out-interface bond0.3 -j MASQUERADE",
)


def ruleset(lines: Iterable[str], base: RuleSet | None = None) -> RuleSet:
    """Return what iptables commands make of `base` (None: of no rules)."""
    result = base or RuleSet()
    for line in lines:
        result = parse_command(shlex.split(line)).apply(result)
    return result


class Gateway:
    """An engine, a clock, and who is on which side."""

    def __init__(
        self, backend: ModuleType, rules: Iterable[str] = OWNER_RULES, *,
        settings: Settings | None = None, seed: int = 1, now_ns: int = 0, look_at_ports: LookAtPorts = never_look,
    ) -> None:
        settings = settings or Settings(max_flows=1024)
        self.clock = ManualClock(now_ns)
        config = configure(settings, KEY)
        self.engine = NatEngine(
            backend.FastPath(config), settings=settings, rng=random.Random(seed), look_at_ports=look_at_ports
        )
        self.engine.replace_interfaces(InterfaceTable(INTERFACES), now_ns)
        self.engine.replace_ruleset(ruleset(rules))

    def process(
        self, packet: bytearray, hook: Hook, in_ifindex: int, out_ifindex: int, link_src: bytes = b""
    ) -> Decision:
        """Let the engine decide, now."""
        meta = PacketMeta(hook, in_ifindex, out_ifindex, 0, link_src)
        return self.engine.process(packet, meta, self.clock.now_ns)

    def out(self, packet: bytearray, via: int = BOND_2, *, came: int = BOND_DEF) -> Decision:
        """A forwarded packet on its way out."""
        return self.process(packet, Hook.POSTROUTING, came, via)

    def head(self, packet: bytearray, via: int = BOND_2) -> Decision:
        """A packet of the head's own on its way out."""
        return self.process(packet, Hook.POSTROUTING, 0, via)

    def back(self, packet: bytearray, via: int = BOND_2) -> Decision:
        """A packet that arrives."""
        return self.process(packet, Hook.PREROUTING, via, 0)

    def through(self, packet: bytearray, via: int = BOND_2, *, came: int = BOND_DEF) -> bytearray:
        """The same as `out`, for a packet that must be translated; return it."""
        return translated(self.out(packet, via, came=came))

    def returned(self, packet: bytearray, via: int = BOND_2) -> bytearray:
        """The same as `back`, for a packet that must be translated; return it."""
        return translated(self.back(packet, via))

    def released(self) -> list[Decision]:
        """Return what has become of held packets since the last call."""
        return self.engine.take_released()

    def rules(self, *lines: str, fresh: bool = False) -> None:
        """Carry out iptables commands; `fresh`: on no rules at all."""
        self.engine.replace_ruleset(ruleset(lines, None if fresh else self.engine.ruleset))

    def interfaces(self, *changed: Interface, without: int = 0) -> int:
        """Change some interfaces, or take one away; return how many flows ended."""
        table = {each.ifindex: each for each in (*self.engine.interfaces, *changed)}
        table.pop(without, None)
        return self.engine.replace_interfaces(InterfaceTable(table.values()), self.clock.now_ns)

    def expire_all(self) -> int:
        """Go far into the future, where ports have rested too, and return how many flows ended."""
        self.clock.advance(100_000)
        ended = 0
        while count := self.engine.expire(self.clock.now_ns):
            ended += count
        self.clock.advance(HOLD_DOWN)
        return ended

    def flow(self) -> FlowInfo:
        """Return the one flow there is."""
        (only,) = self.engine.flows()
        return only

    def count(self, reason: Reason) -> int:
        """Return one counter."""
        return self.engine.stats().by_reason[reason.name]


def translated(decision: Decision) -> bytearray:
    """Return the packet of a decision to let it pass, rewritten."""
    assert decision.verdict is Verdict.ACCEPT, decision.reason.name
    assert decision.packet is not None, decision.reason.name
    return decision.packet


def reason_of(decision: Decision) -> Reason:
    """Return the reason, having checked that the rest of the decision agrees with it."""
    assert decision.verdict is decision.reason.verdict or is_held(decision)
    assert decision.packet is None or decision.verdict is Verdict.ACCEPT
    return decision.reason


def is_held(decision: Decision) -> bool:
    """Whether a packet waits for its first fragment, and may be dropped for want of it."""
    held = decision.verdict is Verdict.HELD
    assert not held or (decision.reason, decision.packet) == (Reason.FRAGMENT_ORPHAN, None)
    assert held == (decision.ticket > 0)
    return held


@pytest.fixture
def gateway(fastpath_backend: ModuleType) -> Gateway:
    """The owner's two rules, at time 0."""
    return Gateway(fastpath_backend)
