"""Both fast paths, driven by the same steps: same results, same bytes, same table after every step.

`NATENGINE_EXAMPLES` and `NATENGINE_FUZZ_CALLS` make it as long as you like.
"""

from __future__ import annotations

import mmap
import os
import random
import struct
from typing import Any

import pytest
from differential.packets import packet_of
from differential.strategies import (
    allows,
    any_hooks,
    budgets,
    damage,
    flow_ids,
    hooks,
    options,
    payloads,
    random_bytes,
    specs,
    start_times,
    strange_tcp_options,
    tcp_flags,
    time_steps,
    timeouts,
)
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from support.backends import load_both, table_config

from natengine.flow.image import RECORD_BYTES, VOLATILE_AT
from natengine.flow.records import FlowKey, FlowSpec, Path
from natengine.vocab import Hook, Proto

EXAMPLES = int(os.environ.get("NATENGINE_EXAMPLES", "100"))
FUZZ_CALLS = int(os.environ.get("NATENGINE_FUZZ_CALLS", "20000"))


class Twins(RuleBasedStateMachine):
    """The steps.  `self.specs` remembers what was ever installed, so that packets meet flows."""

    @initialize(
        capacity=st.integers(1, 6), start_ns=start_times, udp=timeouts, other=timeouts, dns=timeouts,
        tcp=st.lists(timeouts, min_size=10, max_size=10), unacknowledged=timeouts,
        key=st.binary(min_size=16, max_size=16), liberal=st.booleans(), inbound_refresh=st.booleans(),
    )
    def start(
        self, capacity: int, start_ns: int, tcp: list[int], udp: int, other: int, dns: int, unacknowledged: int,
        key: bytes, liberal: bool, inbound_refresh: bool,
    ) -> None:
        config = table_config(
            capacity, tcp_timeouts_ns=tuple(tcp),
            timeouts_ns=tuple(udp if proto == Proto.UDP else other for proto in range(256)), hash_key=key,
            tcp_liberal=liberal, tcp_unacknowledged_ns=unacknowledged, dns_timeout_ns=dns,
            udp_inbound_refresh=inbound_refresh,
        )
        self.config = config
        self.memories = [mmap.mmap(-1, capacity * RECORD_BYTES) for _ in range(2)]
        self.now_ns = start_ns
        self.take_over()
        self.specs: list[FlowSpec] = []

    def take_over(self) -> None:
        """Begin with what is in the memory: nothing, or what an earlier table has left there."""
        self.python, self.cython = (
            backend.FastPath(self.config, memory, self.now_ns)
            for backend, memory in zip(load_both(), self.memories, strict=True)
        )

    def both(self, method: str, *args: Any) -> Any:
        """Call a method on both and return the one result."""
        results = []
        for twin in (self.python, self.cython):
            try:
                results.append(getattr(twin, method)(*args))
            except KeyError as error:
                results.append(("KeyError", *error.args))
        assert results[0] == results[1], f"{method}{args}"
        assert repr(results[0]) == repr(results[1]), "the same values of other types"
        return results[0]

    def translate(self, packet: bytearray, hook: int, out_ifindex: int = 0) -> int:
        before = bytes(packet)
        ours, theirs = bytearray(packet), bytearray(packet)
        path = self.python.translate(ours, hook, self.now_ns, out_ifindex)
        assert path == self.cython.translate(theirs, hook, self.now_ns, out_ifindex), before.hex()
        assert ours == theirs, before.hex()
        if path != Path.TRANSLATED:
            assert ours == before
        return path

    @rule(spec=specs())
    def install(self, spec: FlowSpec) -> None:
        if self.both("install", spec, self.now_ns) >= 0:
            self.specs.append(spec)

    @rule(
        data=st.data(), hook=hooks, flags=tcp_flags, options=options, tcp_options=strange_tcp_options,
        payload=payloads, no_checksum=st.booleans(), sequence=st.sampled_from((0, 1)),
        out_ifindex=st.sampled_from((0, 4, 4, 5)),
    )
    def known_packet(
        self, data: st.DataObject, hook: int, flags: int, payload: bytes, out_ifindex: int, **how: Any
    ) -> None:
        if self.specs:
            spec = data.draw(st.sampled_from(self.specs))
            packet = packet_of(spec, hook, flags=flags, data=payload, **how)
            self.translate(data.draw(damage(packet)), hook, out_ifindex)

    @rule(data=st.data(), n_packets=st.integers(1, 8))
    def conversation(self, data: st.DataObject, n_packets: int) -> None:
        """Sound packets only, so that a connection gets somewhere."""
        if self.specs:
            spec = data.draw(st.sampled_from(self.specs))
            for _ in range(n_packets):
                hook, flags = data.draw(hooks), data.draw(st.sampled_from((2, 18, 16, 17, 4)))
                self.translate(packet_of(spec, hook, flags=flags), hook)

    @rule(packet=random_bytes, hook=any_hooks)
    def any_bytes(self, packet: bytearray, hook: int) -> None:
        self.translate(packet, hook)

    @rule(flow_id=flow_ids, hook=any_hooks, length=st.sampled_from((0, 20, 65535, 2**32 - 1)))
    def touch(self, flow_id: int, hook: int, length: int) -> None:
        self.both("touch", flow_id, hook, length, self.now_ns)

    @rule(flow_id=flow_ids)
    def remove(self, flow_id: int) -> None:
        self.both("remove", flow_id)

    @rule(flow_id=flow_ids)
    def info(self, flow_id: int) -> None:
        self.both("info", flow_id)

    @rule(data=st.data(), spec=specs(), hook=st.sampled_from((None, 0, 1, 4)))
    def find(self, data: st.DataObject, spec: FlowSpec, hook: int | None) -> None:
        if self.specs:
            spec = data.draw(st.sampled_from([*self.specs, spec]))
        for key in (spec.leaving, spec.arriving):
            self.both("find", key if hook is None else FlowKey(hook, *key[1:]))

    @rule(flow_id=flow_ids)
    def doubt(self, flow_id: int) -> None:
        self.both("doubt", flow_id)

    @rule(data=st.data(), hook=hooks, call_id=st.sampled_from((0, 53, 40000, 0x880B)), payload=payloads)
    def unknown_call(self, data: st.DataObject, hook: int, call_id: int, payload: bytes) -> None:
        """A PPTP packet between the hosts of some flow, whatever that is."""
        if self.specs:
            spec = data.draw(st.sampled_from(self.specs))
            call = spec._replace(proto=47, inside_port=1, outside_port=call_id, peer_port=call_id)
            self.translate(data.draw(damage(packet_of(call, hook, data=payload))), hook)

    @rule(flow_id=flow_ids, allow=allows, uplink=st.sampled_from((4, 4, 5)))
    def approve(self, flow_id: int, allow: int, uplink: int) -> None:
        self.both("approve", flow_id, allow, uplink)

    @rule(data=st.data(), spec=specs(), first_id=st.integers(0, 8), looks=st.integers(0, 8))
    def find_on(self, data: st.DataObject, spec: FlowSpec, first_id: int, looks: int) -> None:
        spec = data.draw(st.sampled_from([*self.specs, spec]))
        self.both("find_on", spec.outside_ip, first_id, looks)

    @rule(limits=st.dictionaries(st.sampled_from((3, 4, 2**31 - 1)), st.sampled_from((0, 1220, 1460, 0xFFFF))))
    def clamp(self, limits: dict[int, int]) -> None:
        self.both("clamp", limits)

    @rule()
    def invalidate(self) -> None:
        self.both("invalidate")

    @rule()
    def killed_and_started_again(self) -> None:
        self.memories.reverse()             # each takes over what the other has left
        self.take_over()

    @rule(budget=budgets)
    def expire(self, budget: int) -> None:
        self.both("expire", self.now_ns, budget)

    @rule(step_ns=time_steps)
    def time_passes(self, step_ns: int) -> None:
        self.now_ns = max(0, self.now_ns + step_ns)

    @invariant()
    def same_table(self) -> None:
        if hasattr(self, "python"):
            self.both("snapshot")
            self.both("__len__")
            self.both("oldest_unreplied")
            assert self.records(0) == self.records(1)

    def records(self, twin: int) -> list[bytes]:
        """What the next engine will find."""
        memory = self.memories[twin]
        return [memory[at:at + VOLATILE_AT] for at in range(0, len(memory), RECORD_BYTES)]

    def teardown(self) -> None:
        """Whatever is left ends in the same order, by eviction or by time."""
        if hasattr(self, "python"):
            for _ in range(2):
                self.both("remove", self.both("oldest_unreplied"))
            self.now_ns += 60_000_000_000_000
            self.both("expire", self.now_ns, 100)
            assert len(self.cython) == 0


TestTwins = Twins.TestCase
TestTwins.settings = settings(
    max_examples=EXAMPLES, stateful_step_count=40, deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def test_random_bytes_leave_both_the_same() -> None:
    """Bytes at random, and packets of known flows with bytes at random in them."""
    rng = random.Random(20)
    config = table_config(64)
    python, cython = (backend.FastPath(config) for backend in load_both())
    known = []
    for n in range(48):
        proto = (6, 17, 1)[n % 3]
        spec = FlowSpec(
            proto, 0x0A010000 + n, 40000 + n, 0xCB007101, 50000 + n, 0xCB007102, 8 if proto == 1 else 80,
            n % 2 == 0, 3, 4, 7,
        )
        assert python.install(spec, 0) == cython.install(spec, 0) == n
        known += [(packet_of(spec, hook, flags=16, data=rng.randbytes(n)), hook) for hook in (0, 4)]
    paths = set()
    for _ in range(FUZZ_CALLS):
        packet, hook = rng.choice(known)
        packet = bytearray(packet)
        kind = rng.randrange(4)
        if kind == 0:
            packet = bytearray(rng.randbytes(rng.randrange(90)))
        elif kind == 1:
            del packet[rng.randrange(len(packet)):]
        for _ in range(rng.randrange(4)):
            if packet:
                at = rng.choice((0, 2, 3, 6, 9, 24, 28, 32, 33, rng.randrange(90)))
                packet[at % len(packet)] = rng.randrange(256)
        if kind == 2 and len(packet) >= 4:
            struct.pack_into("!H", packet, 2, rng.randrange(len(packet) + 4))
        ours, theirs = bytearray(packet), bytearray(packet)
        path = python.translate(ours, hook, 5)
        assert path == cython.translate(theirs, hook, 5), packet.hex()
        assert ours == theirs, packet.hex()
        paths.add(Path(path))
    assert python.snapshot() == cython.snapshot()
    cannot = {Path.STALE, Path.REFUSED_FORWARD, Path.UNCHANGED, Path.REFUSED_RATE}
    assert paths == set(Path) - cannot


@pytest.mark.parametrize("liberal", [False, True])
def test_segments_at_the_edges_of_the_window(liberal: bool) -> None:
    """Connections with windows of all sizes, met by sequence numbers near those that decide."""
    rng = random.Random(21)
    spec = FlowSpec(Proto.TCP, 0x0A01000B, 40000, 0xCB007101, 50000, 0xCB007102, 80, True, 3, 4, 7)
    python, cython = (backend.FastPath(table_config(1, tcp_liberal=liberal)) for backend in load_both())
    paths = set()
    for call in range(FUZZ_CALLS):
        if call % 50 == 0:                                  # another connection
            python.remove(0), cython.remove(0)
            assert python.install(spec, 0) == cython.install(spec, 0) == 0
        hook, flags = rng.choice((0, 4)), rng.choice((2, 18, 16, 16, 16, 17, 4, 20))
        sides = python.info(0).sides
        near = [
            number + step for side in sides for number in (side.end, side.acked) for other in sides
            for step in (0, 0, other.max_win, -other.max_win, 65535, -65535, 2**31)
        ]
        seq, ack = ((rng.choice(near) + rng.randrange(-3, 4)) & 0xFFFF_FFFF for _ in range(2))
        packet = packet_of(
            spec, hook, flags=flags, seq=seq, ack=ack, window=rng.choice((0, 1, 500, 65535)),
            data=bytes(rng.choice((0, 0, 1, 100))), tcp_options=rng.choice((b"", b"\3\3\7\0", b"\1\3\3\x0e")),
        )
        ours, theirs = bytearray(packet), bytearray(packet)
        path = python.translate(ours, hook, 0)
        assert (path, ours) == (cython.translate(theirs, hook, 0), theirs), (packet.hex(), sides)
        assert python.info(0) == cython.info(0), (packet.hex(), sides)
        paths.add(Path(path))
    assert paths == {Path.TRANSLATED, Path.REFUSED_STATE, Path.REFUSED_WINDOW}


def test_both_keep_the_zero_that_was_there() -> None:
    """0xFFFF and 0 are one number to the checksum; a change of nothing must not turn one into the other."""
    spec = FlowSpec(Proto.TCP, 0xFFFF_FFFF, 0, 0, 0, 0xCB00_7102, 0, True, 0, 4, 7)
    original = packet_of(spec, Hook.POSTROUTING, flags=2)
    original[10:12] = b"\xff\xff"
    results = []
    for backend in load_both():
        packet = bytearray(original)
        table = backend.FastPath(table_config(1))
        table.install(spec, 0)
        assert table.translate(packet, Hook.POSTROUTING, 0) == Path.TRANSLATED
        results.append(bytes(packet))
    assert results[0] == results[1]
    assert results[0][10:12] == b"\xff\xff"
