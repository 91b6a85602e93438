"""State files that no engine has left: whatever is in one, it is taken over or set aside, by both fast paths alike.

An input is a list of changes to a sound file of this boot (HOW, where, length, bytes), so that a corpus stays true:
see `changed`.  What was taken over works: packets pass without an exception, and with the flows all their mappings go.
"""

from __future__ import annotations

import functools
import random
import tempfile
import zlib
from pathlib import Path

from support.engines import BOND_2, BOND_DEF, INTERFACES, OWNER_RULES, ruleset

from fuzz.packets import corpus
from natengine.adapters.statefile import RECORDS_AT
from natengine.app.state import FILE_NAME, check, open_table
from natengine.errors import CorruptTable
from natengine.fastpath import FastPath
from natengine.flow.image import RECORD_BYTES, seal_of
from natengine.nat.engine import NatEngine
from natengine.nat.interfaces import InterfaceTable
from natengine.settings import SECOND_NS, Settings
from natengine.vocab import Hook, PacketMeta

SETTINGS, RULES = Settings(max_flows=32), ruleset(OWNER_RULES)
NOW_NS = 1000 * SECOND_NS
IN_HEADER, SEALED_ANEW, CUT = 1, 2, 4       # HOW, its bits
HEADER_BYTES, IDENTITY_BYTES, INTERFACE_AT, SEAL_AT = 48, 20, 100, 104


def engine_on(fast: FastPath) -> NatEngine:
    """An engine that takes a table over."""
    engine = NatEngine(fast, settings=SETTINGS, rng=random.Random(1))
    engine.replace_interfaces(InterfaceTable(INTERFACES), NOW_NS)
    engine.take_over(SETTINGS.max_flows, NOW_NS)
    engine.replace_ruleset(RULES)
    return engine


def honest_traffic(engine: NatEngine) -> list[object]:
    """Send the corpus's packets; return what became of each."""
    decisions = []
    for hook, packet in corpus():
        came, via = (BOND_2, 0) if hook == Hook.PREROUTING else (BOND_DEF, BOND_2)
        decision = engine.process(bytearray(packet), PacketMeta(hook, came, via, 0), NOW_NS)
        decisions.append((decision.reason, decision.packet and bytes(decision.packet)))
    return decisions


@functools.cache
def sound_file() -> bytes:
    """A file of this boot with the flows of the corpus's packets in it."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / FILE_NAME
        _, fast, file = open_table("python", SETTINGS, path)
        honest_traffic(engine_on(fast))
        assert file is not None and len(fast) > 5
        file.close(keep=True)
        return path.read_bytes()


def changed(file: bytes, changes: bytes) -> bytes:
    """Return the file with changes: each is HOW, two bytes of where, one of length, and so many bytes.

    HOW says whether they are for the header or for the records, whether the header's checksum or the record's seal
    is made to fit again, and whether the file ends there.
    """
    data, at = bytearray(file), 0
    while at + 4 <= len(changes):
        how, length = changes[at], changes[at + 3]
        where = int.from_bytes(changes[at + 1:at + 3], "big")
        where = where % 64 if how & IN_HEADER else RECORDS_AT + where % (SETTINGS.max_flows * RECORD_BYTES)
        value = changes[at + 4:at + 4 + length][:len(file) - where]
        data[where:where + len(value)] = value
        if how & SEALED_ANEW:
            _seal(data, where)
        if how & CUT:
            return bytes(data[:where])
        at += 4 + length
    return bytes(data)


def _seal(data: bytearray, where: int) -> None:
    """Make the checksum over what lies at `where` fit again."""
    if where < RECORDS_AT:
        data[HEADER_BYTES:HEADER_BYTES + 4] = zlib.crc32(data[:HEADER_BYTES]).to_bytes(4, "little")
        return
    at = where - (where - RECORDS_AT) % RECORD_BYTES
    interface = int.from_bytes(data[at + INTERFACE_AT:at + SEAL_AT], "little")
    seal = seal_of(bytes(data[at:at + IDENTITY_BYTES]), interface)
    data[at + SEAL_AT:at + SEAL_AT + 4] = seal.to_bytes(4, "little")


def life_on(name: str, file: bytes) -> tuple[str, object]:
    """Start on this file, with traffic, and end; return what was said, and all that could be seen."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / FILE_NAME
        path.write_bytes(file)
        path.chmod(0o600)
        try:
            checked = check(path)
        except CorruptTable:
            checked = ""
        _, fast, state = open_table(name, SETTINGS, path)
        assert state is not None
        note, found = state.note.replace(directory, ""), fast.snapshot()
        assert bool(note) != bool(checked) and "\n" not in note, (note, checked)
        if note:
            aside = path.with_name(f"{FILE_NAME}.aside").read_bytes()
            assert not found and aside[:RECORDS_AT] == file[:RECORDS_AT] and len(aside) == len(file)
        engine = engine_on(fast)
        decisions = honest_traffic(engine)
        seen = found, decisions, fast.snapshot()
        for flow in fast.snapshot():
            engine.remove_flow(flow.flow_id, NOW_NS)
        engine.expire(2 * NOW_NS)                   # ids of calls are held for a while
        assert (len(fast), engine.stats().mappings) == (0, 0), engine.stats()
        state.close(keep=False)
        return note, seen


def state(data: bytes) -> None:
    """Both fast paths on one damaged file."""
    file = changed(sound_file(), data)
    first, second = (life_on(name, file) for name in ("python", "cython"))
    assert first == second
