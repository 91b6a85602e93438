"""Fragments that wait for their first one: how long, how many, and what becomes of them when the program ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import NewEngine
from fragment_tools import DATA, held, mapped, pieces_of, queued
from gateway_tools import ADDRESS, ECHO, UPLINK, answers, dropped, send_raw, wait_for
from natlab import Lab
from scapy.packet import Packet

pytestmark = pytest.mark.lab


def orphans(count: int) -> list[Packet]:
    """Later fragments from a worker whose first ones never come."""
    ends = ADDRESS["worker1"], 25_007, ADDRESS["inet2"], ECHO
    return [pieces_of(*ends, DATA, 1000 + number)[1] for number in range(count)]


def test_what_is_held_is_dropped_in_time(lab: Lab, new_engine: NewEngine, owners_rules: Path, tmp_path: Path) -> None:
    """It stays in the kernel's queue as long as the settings say, and no longer; nothing of it gets out."""
    config = tmp_path / "natengine.toml"
    config.write_text("fragment_timeout = 1\n")
    engine = new_engine("--rules", owners_rules, "--config", config)
    with lab.capture("inet2", "eth0", "ip[6:2] & 0x3fff != 0") as capture:
        send_raw(lab, "worker1", *orphans(10))
        wait_for("all ten dropped", lambda: dropped(engine, "fragment orphan") == 10)
        assert held(engine) == 0
        wait_for("an empty queue", lambda: queued(lab) == 0)
        assert answers(lab.node("worker1"), ADDRESS["inet2"])
    assert len(capture.packets()) == 0


def test_others_pass_while_fragments_are_held(
    lab: Lab, new_engine: NewEngine, owners_rules: Path, tmp_path: Path
) -> None:
    """One host may hold 64; others, and its own whole packets, do not notice.  When the program ends, they are gone."""
    config = tmp_path / "natengine.toml"
    config.write_text("fragment_timeout = 3600\n")
    engine = new_engine("--rules", owners_rules, "--config", config)
    with lab.capture("inet2", "eth0", "ip[6:2] & 0x3fff != 0") as capture:
        send_raw(lab, "worker1", *orphans(100))
        wait_for("36 that had to go", lambda: dropped(engine, "fragment limit") == 36)
        assert held(engine) == 64 <= queued(lab)
        for worker in ("worker1", "worker2"):
            assert answers(lab.node(worker), ADDRESS["inet2"])
        engine.stop()
        assert queued(lab) == 0
    assert len(capture.packets()) == 0


@pytest.mark.parametrize("fast_path", ["cython"], indirect=True)
def test_held_in_one_of_several_queues(lab: Lab, new_engine: NewEngine, owners_rules: Path) -> None:
    """Released through the queue that it came from."""
    engine = new_engine("--rules", owners_rules, "--queues", 2)
    for worker, port in (("worker1", 25_008), ("worker2", 25_009)):
        with mapped(lab, worker, port) as (link, outside):
            for node, ends in (
                (worker, (ADDRESS[worker], port, ADDRESS["inet2"], ECHO)),
                ("inet2", (ADDRESS["inet2"], ECHO, UPLINK["inet2"], outside)),
            ):
                send_raw(lab, node, *pieces_of(*ends, DATA, port)[::-1])
                assert link.recv(65_535) == DATA
    assert held(engine) == 0
    wait_for("empty queues", lambda: queued(lab) == 0)
