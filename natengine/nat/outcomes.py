"""How packets end: what the answers of the fast path mean, what some ends have in common, and their numbers."""

from __future__ import annotations

from typing import NamedTuple

from natengine.flow.records import Path
from natengine.vocab import Reason

# what the fast path says that needs nobody else
SETTLED: dict[int, Reason] = {
    Path.TRANSLATED: Reason.TRANSLATED,
    Path.UNCHANGED: Reason.UNCHANGED,
    Path.REFUSED_STATE: Reason.TCP_STATE,
    Path.REFUSED_WINDOW: Reason.TCP_WINDOW,
    Path.REFUSED_FORWARD: Reason.FORWARD_DROP,
    Path.BAD_HEADER: Reason.BAD_HEADER,
    Path.TRUNCATED: Reason.TRUNCATED,
    Path.REFUSED_RATE: Reason.RATE_LIMIT,
}
REWRITTEN = frozenset({Reason.TRANSLATED, Reason.NEW_FLOW, Reason.ICMP_ERROR, Reason.FRAGMENT})
NO_ROOM = frozenset({Reason.OUT_OF_PORTS, Reason.TABLE_FULL, Reason.HOST_LIMIT, Reason.PEER_TAKEN})


class EngineStats(NamedTuple):
    """A snapshot of the engine's gauges and counters."""

    flows: int
    mappings: int
    fragment_trains: int                # datagrams in pieces that are under way
    held_fragments: int                 # packets without a verdict: they wait for the first fragment of theirs
    overloaded: int                     # flows so far that had to share an outside port
    by_reason: dict[str, int]           # packets, by the name of their `Reason`
