"""Lines for the log: few of each kind, and none lost without being counted."""

from __future__ import annotations

from natengine.nat.notices import EVERY_NS, Notices
from natengine.nat.said import LogBook
from natengine.vocab import Reason


def taken(log: LogBook) -> list[str]:
    return [line.text for line in log.take()]


def test_the_same_reason_is_heard_of_once_in_a_while() -> None:
    """At time 0 as at any other."""
    log = LogBook()
    notices = Notices(log)
    for now_ns in (0, 1, EVERY_NS - 1):
        notices.say(Reason.PEER_TAKEN, "first", now_ns)
    assert taken(log) == ["natengine: first"]
    notices.say(Reason.PEER_TAKEN, "again", EVERY_NS)
    notices.say(Reason.PEER_TAKEN, "later", 2 * EVERY_NS)
    assert taken(log) == ["natengine: again (and 2 more like it before)", "natengine: later"]


def test_reasons_do_not_silence_each_other() -> None:
    log = LogBook()
    notices = Notices(log)
    notices.say(Reason.PEER_TAKEN, "one", 5)
    notices.say(Reason.TABLE_FULL, "two", 5)
    assert taken(log) == ["natengine: one", "natengine: two"]
