"""An engine on the table of an earlier one knows whose each port is, and lets go of all of it in the end."""

from __future__ import annotations

import mmap
import random
from types import ModuleType

import pytest
from support.backends import table_config
from support.clock import ManualClock
from support.engines import BOND_2, BOND_3, BOND_DEF, INTERFACES, OWNER_RULES, Gateway, reason_of, ruleset
from support.packets import address, describe, ping, pong, source_port, tcp, udp

from natengine.flow.image import RECORD_BYTES
from natengine.nat.engine import NatEngine
from natengine.nat.interfaces import InterfaceTable
from natengine.settings import FilteringBehaviour, Settings
from natengine.vocab import Reason, Route

CAPACITY = 64
ROUTES = (Route(address("10.1.0.0"), 0xFFFF_FF00, BOND_DEF), Route(0, 0, BOND_2))


class Successive(Gateway):
    """A `Gateway` whose engine can be killed."""

    def __init__(self, backend: ModuleType, settings: Settings) -> None:
        super().__init__(backend, settings=settings)
        self._backend, self._settings = backend, settings
        self._memory = mmap.mmap(-1, CAPACITY * RECORD_BYTES)
        self.clock = ManualClock(1000)
        self.killed()

    def killed(self, interfaces: tuple = INTERFACES) -> int:  # type: ignore[type-arg]
        """Kill the engine and start another; return how many flows it finds."""
        config = table_config(CAPACITY, self._settings.timeouts)
        fast = self._backend.FastPath(config, self._memory, self.clock.now_ns)
        self.engine = NatEngine(fast, settings=self._settings, rng=random.Random(2))
        self.engine.replace_interfaces(InterfaceTable(interfaces, ROUTES), self.clock.now_ns)
        found = self.engine.take_over(CAPACITY, self.clock.now_ns)
        self.engine.replace_ruleset(ruleset(OWNER_RULES))
        return found


@pytest.fixture
def gateway(fastpath_backend: ModuleType) -> Successive:
    settings = Settings(max_flows=CAPACITY, filtering=FilteringBehaviour.ADDRESS_DEPENDENT, max_flows_per_host=3)
    return Successive(fastpath_backend, settings)


def test_ports_and_owners(gateway: Successive) -> None:
    """A host's next flow keeps its outside port, another host gets another, and what arrives finds its way."""
    gateway.through(udp("10.1.0.11:5000 > 203.0.113.2:53"))
    port = source_port(gateway.through(udp("10.1.0.12:5000 > 203.0.113.2:53")))
    ident = source_port(gateway.through(ping("10.1.0.12 > 203.0.113.2", 5)))
    gateway.through(tcp("10.1.0.11:80 > 198.51.100.2:80"), BOND_3)
    assert gateway.killed() == 4
    assert source_port(gateway.through(udp("10.1.0.12:5000 > 203.0.113.9:53"))) == port != 5000
    assert source_port(gateway.through(udp("10.1.0.11:5000 > 203.0.113.9:53"))) == 5000
    assert source_port(gateway.through(tcp("10.1.0.13:80 > 198.51.100.9:80"), BOND_3)) != 80
    answer = gateway.returned(udp(f"203.0.113.2:53 > 203.0.113.1:{port}"))
    assert describe(answer) == "203.0.113.2:53 > 10.1.0.12:5000"
    assert describe(gateway.returned(pong("203.0.113.2 > 203.0.113.1", ident))) == "203.0.113.2 > 10.1.0.12 id 5"


def test_filtering_knows_whom_a_host_has_talked_to(gateway: Successive) -> None:
    """Another port of that peer is let in (RFC 4787 REQ-8, address-dependent), another peer is not."""
    gateway.through(udp("10.1.0.11:5000 > 203.0.113.2:53"))
    gateway.killed()
    answer = gateway.returned(udp("203.0.113.2:99 > 203.0.113.1:5000"))
    assert describe(answer) == "203.0.113.2:99 > 10.1.0.11:5000"
    assert reason_of(gateway.back(udp("203.0.113.3:99 > 203.0.113.1:5000"))) is Reason.FILTERED
    gateway.killed()                        # with a flow from outside, too
    gateway.returned(udp("203.0.113.2:98 > 203.0.113.1:5000"))


def test_limit_of_a_host(gateway: Successive) -> None:
    """What it had begun counts."""
    for port in (1, 2, 3):
        gateway.through(udp(f"10.1.0.11:5000 > 203.0.113.2:{port}"))
    gateway.killed()
    assert reason_of(gateway.out(udp("10.1.0.11:5000 > 203.0.113.2:4"))) is Reason.HOST_LIMIT


def test_head_s_own_ports_are_its_own(gateway: Successive) -> None:
    """No worker gets the port of a connection of the head's."""
    gateway.head(udp("203.0.113.1:5000 > 203.0.113.2:53"))
    gateway.killed()
    assert source_port(gateway.through(udp("10.1.0.11:5000 > 203.0.113.2:53"))) != 5000


def test_what_a_rule_sent_on(gateway: Successive) -> None:
    """The rule says who may come to a service, before and after: its flow opens the port for nobody else."""
    gateway.rules("-t nat -A PREROUTING -i bond0.2 -p udp --dport 5353 -j DNAT --to-destination 10.1.0.11:53")
    gateway.returned(udp("203.0.113.2:7 > 203.0.113.1:5353"))
    for _ in range(2):
        gateway.rules("-t nat -F PREROUTING")
        assert gateway.returned(udp("203.0.113.2:7 > 203.0.113.1:5353"))
        assert reason_of(gateway.back(udp("203.0.113.2:8 > 203.0.113.1:5353"))) is Reason.LOCAL_IN
        assert gateway.killed() == 1
    assert gateway.expire_all() == 1
    assert gateway.engine.stats().mappings == 0


def test_all_is_let_go_of(gateway: Successive) -> None:
    """Nothing that was taken over stays when its flows have ended."""
    gateway.through(udp("10.1.0.11:5000 > 203.0.113.2:53"))
    gateway.returned(udp("203.0.113.2:99 > 203.0.113.1:5000"))
    gateway.head(udp("203.0.113.1:6000 > 203.0.113.2:53"))
    gateway.through(ping("10.1.0.12 > 203.0.113.2", 5))
    assert gateway.killed() == 4
    assert gateway.expire_all() == 4
    stats = gateway.engine.stats()
    assert (stats.flows, stats.mappings) == (0, 0)
    assert source_port(gateway.through(udp("10.1.0.13:5000 > 203.0.113.2:53"))) == 5000


def test_address_that_went_while_nobody_was_there(gateway: Successive) -> None:
    """The flows on it end; those on the other uplink stay."""
    gateway.through(udp("10.1.0.11:5000 > 203.0.113.2:53"), BOND_2)
    gateway.through(udp("10.1.0.11:5000 > 198.51.100.2:53"), BOND_3)
    gateway.killed(tuple(each for each in INTERFACES if each.ifindex != BOND_2))
    gateway.engine.expire(gateway.clock.now_ns)
    assert gateway.flow().spec.uplink_ifindex == BOND_3
    assert gateway.engine.stats().mappings == 1
