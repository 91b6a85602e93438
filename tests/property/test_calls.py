"""PPTP against a model: whatever hosts and server do, a call's packets reach those who have it, and nobody else."""

from __future__ import annotations

import os
from types import ModuleType
from typing import ClassVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from support.engines import Gateway, reason_of
from support.pptp import (
    CALL_DISCONNECT_NOTIFY,
    OUTGOING_CALL_REPLY,
    OUTGOING_CALL_REQUEST,
    ControlConnection,
    call,
    call_id,
    control,
)

from natengine.nat.pptp import HOLD_NS
from natengine.settings import Settings
from natengine.vocab import Reason

EXAMPLES = int(os.environ.get("NATENGINE_EXAMPLES", "30"))
HEAD, PEER = "203.0.113.1", "203.0.113.2"
HOSTS = ("10.1.0.11", "10.1.0.12", "10.1.0.13")
hosts = st.sampled_from(HOSTS)
call_ids = st.sampled_from((1, 2, 3, 0x880B, 65535))

Call = tuple[str, int]                          # a host and its own id


class Calls(RuleBasedStateMachine):
    """The steps; a subclass each says on which fast path."""

    backend: ClassVar[ModuleType]

    @initialize()
    def start(self) -> None:
        self.gateway = Gateway(self.backend, settings=Settings(max_flows=256))
        self.connections = {
            host: ControlConnection(self.gateway, f"{host}:{40_000 + n}", f"{HEAD}:{40_000 + n}")
            for n, host in enumerate(HOSTS)
        }
        self.asked: dict[Call, tuple[int, int]] = {}        # the id outside, without an answer, and how long it is held
        self.up: dict[Call, tuple[int, int]] = {}           # the id outside, and the server's
        self.last_id = 99

    @rule(host=hosts, ours=call_ids, again=st.booleans())
    def ask(self, host: str, ours: int, again: bool) -> None:
        """A request, perhaps sent twice; it may be for an id that the host has in use."""
        connection = self.connections[host]
        segment = connection.says(control(OUTGOING_CALL_REQUEST, ours))
        sent = [bytes(self.gateway.through(segment[:])) for _ in range(1 + again)]
        assert len(set(sent)) == 1
        self.acknowledge(connection)
        self.asked[host, ours] = call_id(sent[0][40:]), self.gateway.clock.now_ns + HOLD_NS

    @rule(data=st.data(), again=st.booleans(), others_id=st.booleans())
    def answer(self, data: st.DataObject, again: bool, others_id: bool) -> None:
        """The server takes a call; it may give it an id that another host's call has, too."""
        if not self.asked:
            return
        host, ours = data.draw(st.sampled_from(sorted(self.asked)))
        outside, _ = self.asked.pop((host, ours))
        self.last_id += 1
        theirs = self.last_id
        if others_id:
            theirs = next((their for (who, _), (_, their) in self.up.items() if who != host), theirs)
            if any(who == host and their == theirs for (who, _), (_, their) in self.up.items()):
                theirs = self.last_id
        connection = self.connections[host]
        segment = connection.hears(control(OUTGOING_CALL_REPLY, theirs, outside))
        for _ in range(1 + again):
            got = self.gateway.returned(segment[:])
            assert bytes(got[40:]) == control(OUTGOING_CALL_REPLY, theirs, ours)
        self.acknowledge(connection)
        self.up[host, ours] = outside, theirs

    @rule(data=st.data(), by_server=st.booleans())
    def disconnect(self, data: st.DataObject, by_server: bool) -> None:
        if not self.up:
            return
        host, ours = data.draw(st.sampled_from(sorted(self.up)))
        outside, theirs = self.up.pop((host, ours))
        connection = self.connections[host]
        if by_server:
            assert connection.back(control(CALL_DISCONNECT_NOTIFY, theirs)) == control(CALL_DISCONNECT_NOTIFY, theirs)
        else:
            assert connection.out(control(CALL_DISCONNECT_NOTIFY, ours)) == control(CALL_DISCONNECT_NOTIFY, outside)
        self.acknowledge(connection)
        assert reason_of(self.gateway.back(call(f"{PEER} > {HEAD}", outside))) is Reason.LOCAL_IN

    def acknowledge(self, connection: ControlConnection) -> None:
        """Both sides say what they have got, so that windows move on."""
        for _ in range(2):
            self.gateway.returned(connection.hears(b""))
            self.gateway.through(connection.says(b""))

    @rule(seconds=st.sampled_from((1, 200, 241)))
    def wait(self, seconds: int) -> None:
        """Nothing that is in use ends; requests nobody answered are forgotten."""
        self.packets_reach_those_who_have_the_call()
        for connection in self.connections.values():
            self.acknowledge(connection)
        self.gateway.clock.advance(seconds)
        self.gateway.engine.expire(self.gateway.clock.now_ns)
        now_ns = self.gateway.clock.now_ns
        self.asked = {each: (out, until) for each, (out, until) in self.asked.items() if until > now_ns}

    @invariant()
    def packets_reach_those_who_have_the_call(self) -> None:
        for (host, ours), (outside, theirs) in getattr(self, "up", {}).items():
            assert self.gateway.through(call(f"{host} > {PEER}", theirs)) == call(f"{HEAD} > {PEER}", theirs)
            assert self.gateway.returned(call(f"{PEER} > {HEAD}", outside)) == call(f"{PEER} > {host}", ours)

    @invariant()
    def ids_outside_are_unique(self) -> None:
        outside = [out for out, _ in getattr(self, "up", {}).values()]
        assert len(set(outside)) == len(outside)


def test_calls(fastpath_backend: ModuleType) -> None:
    machine = type("Calls", (Calls,), {"backend": fastpath_backend})
    run_state_machine_as_test(
        machine, settings=settings(
            max_examples=EXAMPLES, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck),
        ),
    )
