"""A whole engine is killed between any two stores: hairpinned sessions, PPTP calls, ends of flows.

A flow table knows single flows.  What the engine makes of several (two for a session between hosts inside, a call that
hangs on a control connection) is written one after the other, so the next engine may find a part of it.  Nothing that
passes is changed by that: what was under way is sent again, and each packet is, byte for byte, what it would have been.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from support.backends import load_backend, table_config
from support.clock import ManualClock
from support.engines import BOND_2, BOND_3, BOND_DEF, INTERFACES, OWNER_RULES, Gateway, ruleset
from support.mortal import Killed, LeftBehind, MortalMemory, taken_over
from support.packets import ping, tcp, udp
from support.pptp import CALL_CLEAR_REQUEST, OUTGOING_CALL_REPLY, OUTGOING_CALL_REQUEST, call, control

from natengine.fastpath import FastPath
from natengine.nat.engine import NatEngine
from natengine.nat.interfaces import InterfaceTable
from natengine.settings import Settings
from natengine.vocab import Decision, Hook, Verdict

CAPACITY = 16
SETTINGS = Settings(max_flows=CAPACITY)
RULES = ruleset(OWNER_RULES)
W1, W2, HEAD, PEER = "10.1.0.11", "10.1.0.12", "203.0.113.1", "203.0.113.2"

Step = Callable[["Engine"], object]


class Engine(Gateway):
    """An engine on a table of somebody else's choice."""

    def __init__(self, fast: FastPath, interfaces: tuple = INTERFACES) -> None:  # type: ignore[type-arg]
        self.clock = ManualClock(0)
        self.engine = NatEngine(fast, settings=SETTINGS, rng=random.Random(1))
        self.engine.replace_interfaces(InterfaceTable(interfaces), 0)
        self.engine.take_over(CAPACITY, 0)
        self.engine.replace_ruleset(RULES)


def out(packet: bytearray, via: int = BOND_2) -> Step:
    """A packet of a worker's leaves."""
    return lambda engine: sent_on(packet, engine.out(packet[:], via))


def back(packet: bytearray, via: int = BOND_2) -> Step:
    """A packet comes for a worker."""
    return lambda engine: sent_on(packet, engine.back(packet[:], via))


def across(packet: bytearray) -> Step:
    """A packet between two hosts inside, which meets both hooks."""
    def step(engine: Engine) -> bytes | None:
        first = engine.process(packet[:], Hook.PREROUTING, BOND_DEF, 0)
        between = sent_on(packet, first)
        if first.packet is None or between is None:
            return between                      # for the head
        return sent_on(between, engine.process(bytearray(between), Hook.POSTROUTING, BOND_DEF, BOND_DEF))

    return step


def sent_on(packet: bytes | bytearray, decision: Decision) -> bytes | None:
    """Return what becomes of a packet; None if it is dropped."""
    if decision.verdict is not Verdict.ACCEPT:
        return None
    return bytes(packet if decision.packet is None else decision.packet)


def ended(proto: int, *, from_inside: bool) -> Step:
    """`conntrack -D`: flows end; they may have ended already."""
    def step(engine: Engine) -> None:
        for flow in engine.engine.flows():
            if (flow.spec.proto, flow.spec.from_inside) == (proto, from_inside):
                engine.engine.remove_flow(flow.flow_id, 0)

    return step


def address_gone(engine: Engine) -> None:
    """The second uplink loses its address, and the flows on it end."""
    engine.interfaces(without=BOND_3)


STEPS: tuple[Step, ...] = (
    out(udp(f"{W2}:6000 > {PEER}:7")),
    across(udp(f"{W1}:5000 > {HEAD}:6000")),
    across(udp(f"{W2}:6000 > {HEAD}:5000")),
    across(udp(f"{W1}:5000 > {HEAD}:6000", b"again")),
    out(tcp(f"{W1}:4001 > {PEER}:1723", "S")),
    back(tcp(f"{PEER}:1723 > {HEAD}:4001", "SA")),
    out(tcp(f"{W1}:4001 > {PEER}:1723", "A")),
    out(tcp(f"{W1}:4001 > {PEER}:1723", "PA", control(OUTGOING_CALL_REQUEST, 7), seq=1001, ack=1001)),
    back(tcp(f"{PEER}:1723 > {HEAD}:4001", "PA", control(OUTGOING_CALL_REPLY, 900, 7), seq=1001, ack=1169)),
    out(call(f"{W1} > {PEER}", 900)),
    back(call(f"{PEER} > {HEAD}", 7)),
    out(ping(f"{W2} > 198.51.100.2", 5), BOND_3),
    ended(17, from_inside=False),
    across(udp(f"{W2}:6000 > {HEAD}:5000", b"the other one begins")),
    across(udp(f"{W1}:5000 > {HEAD}:6000", b"and is answered")),
    out(tcp(f"{W1}:4001 > {PEER}:1723", "PA", control(CALL_CLEAR_REQUEST, 7), seq=1169, ack=1033)),
    ended(47, from_inside=True),
    address_gone,
    out(udp(f"{W2}:6000 > {PEER}:8")),
)


@functools.cache
def whole_life() -> tuple[object, ...]:
    """Return what each step gives if nobody is killed."""
    engine = Engine(load_backend("python").FastPath(table_config(CAPACITY)))
    return tuple(step(engine) for step in STEPS)


def goes_on(backend: ModuleType, memory: bytes, at: int, left: LeftBehind) -> None:
    """The engine was killed during step `at`; there is another one, and that step once more."""
    fast = taken_over(backend, memory)
    assert left.is_sound(memory, len(fast))
    gone = tuple(each for each in INTERFACES if each.ifindex != BOND_3)
    engine = Engine(fast, gone if at > STEPS.index(address_gone) else INTERFACES)
    assert tuple(step(engine) for step in STEPS[at:]) == whole_life()[at:]
    for flow in engine.engine.flows():
        engine.engine.remove_flow(flow.flow_id, 0)
    engine.expire_all()                         # ids of calls are held for a while
    engine.engine.expire(engine.clock.now_ns)
    assert (len(fast), engine.engine.stats().mappings) == (0, 0)


def test_killed_at_every_store(tmp_path: Path) -> None:
    """The pure twin's table is killed; what it leaves, either twin goes on with."""
    backends = [load_backend("python"), load_backend("cython")]
    assert None not in [whole_life()[at] for at in range(12)]
    left, stores = LeftBehind(tmp_path, CAPACITY), 0
    while True:
        memory, at = MortalMemory(CAPACITY, stores), 0
        engine = Engine(backends[0].FastPath(table_config(CAPACITY), memory))
        try:
            for at, step in enumerate(STEPS):       # noqa: B007
                step(engine)
        except Killed:
            for backend in backends:
                goes_on(backend, bytes(memory.bytes), at, left)
            stores += 1
            continue
        break
    assert stores > 200
