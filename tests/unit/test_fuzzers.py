"""The fuzzers themselves, for a moment: that they run, that they reach everything, and that they can fail."""

from __future__ import annotations

from typing import Any

import pytest
from fuzz import packets, state, texts
from support.backends import NAMES

from natengine.nat.engine import NatEngine
from natengine.vocab import Decision, Reason

SEEDS = range(1, 9)
STEPS = 400


def live(seed: int) -> packets.Life:
    life = packets.Life(seed, NAMES, packets.corpus())
    for _ in range(STEPS):
        life.step()
    return life


def test_lives_of_some_seeds() -> None:
    """Most reasons are met within some thousand packets."""
    met = set()
    for seed in SEEDS:
        life = live(seed)
        met |= {name for name, count in life.gateways[0].engine.stats().by_reason.items() if count}
        life.end()
    assert len(met) > 18, met
    assert {Reason.TRANSLATED.name, Reason.NEW_FLOW.name, Reason.FRAGMENT.name, Reason.ICMP_ERROR.name} <= met


def test_the_same_seed_is_the_same_life() -> None:
    first, second = live(3), live(3)
    assert first.gateways[0].engine.stats() == second.gateways[0].engine.stats()
    assert first.packets == second.packets


@pytest.mark.parametrize("fault", ["leak", "silent change"])
def test_a_fault_is_found(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """An engine that lets a packet out as it is, and one that changes it without a word."""
    process = NatEngine.process

    def faulty(self: NatEngine, packet: bytearray, *args: Any, **options: Any) -> Decision:
        decision = process(self, packet, *args, **options)
        if decision.reason is Reason.NO_RULE and fault == "leak":
            return Decision(decision.verdict.ACCEPT, Reason.ROUTED, None)
        if decision.reason is Reason.FRAGMENT_ORPHAN and fault == "silent change":
            packet[8] ^= 1
        return decision

    monkeypatch.setattr(NatEngine, "process", faulty)
    with pytest.raises(AssertionError, match=r"a leak|changed"):
        for seed in SEEDS:
            live(seed)


@pytest.mark.parametrize("name", ["rules", "saved", "config", "control"])
def test_texts_of_the_corpus(name: str) -> None:
    """Each as it is, and cut at every place."""
    for path in sorted((packets.CORPUS.parent / name).iterdir()):
        data = path.read_bytes()
        for end in range(0, len(data) + 1, max(1, len(data) // 40)):
            getattr(texts, name)(data[:end])


def test_state_files_of_the_corpus() -> None:
    """Each is taken over or set aside, by both fast paths alike."""
    for path in sorted((packets.CORPUS.parent / "state").iterdir()):
        state.state(path.read_bytes())


def test_packets_of_a_guided_fuzzer() -> None:
    """Its input is read to the last byte, whatever it is."""
    for path in sorted(packets.CORPUS.iterdir()):
        packets.one_input(b"\1" + bytes([1, len(path.read_bytes()) - 1 & 255]) + path.read_bytes()[1:])

