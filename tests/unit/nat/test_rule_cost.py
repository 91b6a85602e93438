"""What a new flow costs where there are many rules, against what it costs where there is one."""

from __future__ import annotations

import time
from types import ModuleType

from support.engines import Gateway, reason_of
from support.packets import udp

from natengine.frontend.save import parse_restore
from natengine.settings import Settings
from natengine.vocab import Reason

ROUNDS, FLOWS = 7, 300
TIMES = 5                           # at most; it is between one and two


def gateway(backend: ModuleType, rules: int) -> Gateway:
    """MASQUERADE for so many networks, that of the workers last."""
    networks = [f"172.{16 + (n >> 8)}.{n & 255}.0/24" for n in range(rules - 1)] + ["10.1.0.0/16"]
    lines = [f"-A POSTROUTING -s {network} -o bond0.2 -j MASQUERADE" for network in networks]
    ruleset, _ = parse_restore("\n".join(["*nat", *lines, "COMMIT", ""]), source="test")
    made = Gateway(backend, (), settings=Settings(max_flows=1 << 14))
    made.engine.replace_ruleset(ruleset)
    return made


def cost(made: Gateway, host: int) -> float:
    """Seconds of processor time for FLOWS new flows of one host."""
    packets = [udp(f"10.1.{host}.7:{2000 + n} > 203.0.113.2:53") for n in range(FLOWS)]
    before = time.thread_time()
    decisions = [made.out(packet) for packet in packets]
    spent = time.thread_time() - before
    assert {reason_of(each) for each in decisions} == {Reason.NEW_FLOW}
    return spent


def test_a_thousand_rules_cost_a_new_flow_little_more_than_one(fastpath_backend: ModuleType) -> None:
    """In turns, and the best of each: what else the machine does makes it slower only."""
    one, many = gateway(fastpath_backend, 1), gateway(fastpath_backend, 1000)
    costs = [(cost(one, host), cost(many, host)) for host in range(ROUNDS)]
    best_one, best_many = (min(each) for each in zip(*costs, strict=True))
    assert best_many < TIMES * best_one, f"{best_many / best_one:.1f} times"
