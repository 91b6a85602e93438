"""Input that nobody means well: whatever it is, it is refused in the way that was promised, and nothing else happens.

NATENGINE_FUZZ_SECONDS says how long each takes (`make fuzz`), NATENGINE_FUZZ_SEED with which chance.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.backends import load_backend, table_config
from support.engines import BOND_2, BOND_3, BOND_DEF, Gateway
from support.packets import address, icmp_error, ipv4, ping, tcp, udp

from natengine.app.control import ControlServer
from natengine.app.peer import Rights
from natengine.errors import ConfigError, ControlError, CorruptTable
from natengine.flow.image import RECORD_BYTES
from natengine.flow.records import FlowSpec
from natengine.frontend.iptables import parse_command
from natengine.frontend.save import parse_restore
from natengine.frontend.toml import read_settings
from natengine.settings import Settings
from natengine.vocab import Hook, Verdict

SECONDS = float(os.environ.get("NATENGINE_FUZZ_SECONDS", "0.5"))
SEED = int(os.environ.get("NATENGINE_FUZZ_SEED", "1"))

pytestmark = pytest.mark.timeout(120 + 2 * SECONDS)


def rounds() -> Iterator[random.Random]:
    """Go round until the time is over."""
    chance, end = random.Random(SEED), time.monotonic() + SECONDS
    while time.monotonic() < end:
        for _ in range(100):
            yield chance


def spoil(data: bytes | bytearray, chance: random.Random, *, words: tuple[bytes, ...] = ()) -> bytearray:
    """Change some bytes, cut a piece out, double one, or put a word in."""
    spoilt = bytearray(data)
    for _ in range(chance.choice((0, 1, 1, 2, 5))):
        at = chance.randrange(len(spoilt) + 1)
        match chance.randrange(5 if words else 4):
            case 0:
                spoilt[at:at + 1] = bytes([chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))])
            case 1:
                del spoilt[at:at + chance.randrange(1, 12)]
            case 2:
                spoilt[at:at] = spoilt[at:at + chance.randrange(1, 12)]
            case 3:
                spoilt[at:at + 1] = bytes([spoilt[at] ^ 1 << chance.randrange(8)]) if at < len(spoilt) else b"\0"
            case _:
                spoilt[at:at] = chance.choice(words)
    return spoilt


# ── packets ──────────────────────────────────────────────────────────────────────────────────────

LEAVING = [
    udp("10.1.0.11:5000 > 203.0.113.2:53"), tcp("10.1.0.11:5000 > 203.0.113.2:80"), ping("10.1.0.12 > 203.0.113.2", 7),
    tcp("10.1.0.11:5000 > 203.0.113.2:80", "A", b"data"), tcp("10.1.0.11:5000 > 203.0.113.2:80", "R"),
    ipv4("10.1.0.11", "203.0.113.2", 17, bytes(64), fragment=0x2000), ipv4("10.1.0.11", "203.0.113.2", 47, bytes(20)),
    icmp_error("10.1.0.11 > 203.0.113.2", udp("203.0.113.2:53 > 10.1.0.11:5000")),
]
ARRIVING = [
    udp("203.0.113.2:53 > 203.0.113.1:5000"), tcp("203.0.113.2:80 > 203.0.113.1:5000", "SA"),
    tcp("203.0.113.2:80 > 203.0.113.1:5000", "A", b"data"), tcp("203.0.113.9:80 > 203.0.113.1:22"),
    icmp_error("198.51.100.9 > 203.0.113.1", udp("203.0.113.1:5000 > 203.0.113.2:53")),
    ipv4("203.0.113.2", "203.0.113.1", 17, bytes(64), fragment=0x2001),
    udp("10.1.0.11:53 > 203.0.113.1:5000"), tcp("203.0.113.1:80 > 203.0.113.1:80"),
]


@pytest.mark.parametrize("name", ["cython", "python"])
def test_packets(name: str) -> None:
    """No exception, a verdict that goes with its reason, the same length, and never an inside source on an uplink."""
    gateway = Gateway(load_backend(name), settings=Settings(max_flows=256, max_fragment_trains=64))
    inside = range(address("10.0.0.0"), address("11.0.0.0"))
    for chance in rounds():
        leaving = chance.random() < 0.5
        packet = spoil(chance.choice(LEAVING if leaving else ARRIVING), chance)
        length, uplink = len(packet), chance.choice((BOND_2, BOND_3))
        if leaving:
            came = chance.choice((BOND_DEF, BOND_DEF, 0))
            decision = gateway.process(packet, Hook.POSTROUTING, came, uplink)
        else:
            decision = gateway.process(packet, Hook.PREROUTING, uplink, 0)
        assert decision.verdict in (decision.reason.verdict, Verdict.HELD)
        if decision.packet is not None:
            assert len(decision.packet) == length
            if leaving and came:            # forwarded; the head's kernel gives its own an address of its own
                assert int.from_bytes(decision.packet[12:16], "big") not in inside, (came, decision.reason)
        gateway.clock.advance(chance.choice((0, 0, 0.01, 5)))
        if chance.random() < 0.01:
            gateway.engine.expire(gateway.clock.now_ns, 64)
    gateway.expire_all()
    assert gateway.engine.stats().flows == gateway.engine.stats().mappings == 0


# ── files and requests ───────────────────────────────────────────────────────────────────────────

@pytest.mark.parametrize("name", ["cython", "python"])
def test_records_of_a_state_file(name: str) -> None:
    """Refused as a whole, or a table that can be used: looked at, changed, and taken over again."""
    backend, capacity = load_backend(name), 8
    memory = mmap.mmap(-1, capacity * RECORD_BYTES)
    table = backend.FastPath(table_config(capacity), memory)
    for n in range(6):
        spec = FlowSpec((6, 17, 1)[n % 3], 0x0A01000B, 1000 + n, 0xCB007101, 2000 + n, 0xCB007102, 8, n % 2, 3, 4, 7)
        table.install(spec, 0)
    good, taken = bytes(memory), 0
    for chance in rounds():
        spoilt = spoil(good, chance)[:len(good)]
        memory = mmap.mmap(-1, len(good))
        memory[:len(spoilt)] = bytes(spoilt)
        try:
            table = backend.FastPath(table_config(capacity), memory)
        except CorruptTable:
            continue
        taken += 1
        flows = table.snapshot()
        assert len(flows) == len(table) <= capacity
        assert backend.FastPath(table_config(capacity), memory).snapshot() == flows
        ended = 0
        while some := table.expire(2**63 - 1, 100):
            ended += len(some)
        assert ended <= len(flows)
    assert taken


RULES = b"""*nat
:PREROUTING ACCEPT [0:0]
-A POSTROUTING -s 10.1.0.0/16 ! -d 10.0.0.0/8 -o bond0.2 -p tcp -m tcp --sport 1:1023 -m comment --comment "a b" \\
-j MASQUERADE --to-ports 1024-2047 --random
COMMIT
*filter
:FORWARD DROP [1:2]
[3:4] -A FORWARD -i bond0.def -m conntrack --ctstate NEW,ESTABLISHED -j ACCEPT
-A FORWARD -p icmp -m icmp --icmp-type 8 -j DROP
COMMIT
"""
SETTINGS = b'mapping = "endpoint-independent"\nmax_flows = 5\nport_hold_down = 1.5\n[timeouts]\nudp = 300\n'
WORDS = (b" -j ", b" ! ", b"-A ", b"--sport ", b'"', b"\n", b"*filter\n", b"4294967296", b"\\", b"\xc3\xa9", b"[", b"=")

COMMAND = b"-t nat -A POSTROUTING -o bond0.2 -p tcp --dport 80 -j MASQUERADE"

READERS: dict[str, tuple[bytes, Callable[[str], object]]] = {
    "rules": (RULES, lambda text: parse_restore(text, source="fuzz")),
    "command": (COMMAND, lambda text: parse_command(text.split())),
    "settings": (SETTINGS, lambda text: read_settings(text, "fuzz")),
}


@pytest.mark.parametrize("name", READERS)
def test_text(name: str) -> None:
    """Read, or refused with a ConfigError that says something."""
    good, read = READERS[name]
    for chance in rounds():
        text = spoil(good, chance, words=WORDS).decode(errors="surrogateescape")
        try:
            read(text)
        except ConfigError as error:
            assert str(error)


class NoGateway:
    """Whatever is asked of it, it is busy."""

    def call(self, _function: object) -> object:
        raise ControlError("not now")


def test_requests(tmp_path: Path) -> None:
    """Each gets an answer, which is JSON."""
    server = ControlServer(NoGateway(), tmp_path)  # type: ignore[arg-type]
    goods = [
        json.dumps({"command": command, "argv": ["-L", "-p", "tcp"], "text": "*nat", "counters": True}).encode()
        for command in ("status", "save", "restore", "change", "conntrack")
    ]
    words = (b"{", b"[", b'"', b"null", b"-D", b"1e999", b"\\ud800", b",")
    try:
        for chance in rounds():
            line = bytes(spoil(chance.choice(goods), chance, words=words))
            answer = json.loads(json.dumps(server._answer(line, chance.choice((Rights.CHANGE, Rights.LOOK)))))
            assert answer["ok"] in (True, False)
    finally:
        server.close()
