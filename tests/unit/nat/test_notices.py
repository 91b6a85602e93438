"""Lines for the log: few of each kind, and none lost without being counted."""

from __future__ import annotations

from natengine.nat.notices import EVERY_NS, Notices
from natengine.vocab import Reason


def test_the_same_reason_is_heard_of_once_in_a_while() -> None:
    """At time 0 as at any other."""
    notices = Notices()
    for now_ns in (0, 1, EVERY_NS - 1):
        notices.say(Reason.PEER_TAKEN, "first", now_ns)
    assert notices.take() == ["first"]
    assert len(notices) == 0
    notices.say(Reason.PEER_TAKEN, "again", EVERY_NS)
    notices.say(Reason.PEER_TAKEN, "later", 2 * EVERY_NS)
    assert notices.take() == ["again (and 2 more like it before)", "later"]


def test_reasons_do_not_silence_each_other() -> None:
    notices = Notices()
    notices.say(Reason.PEER_TAKEN, "one", 5)
    notices.say(Reason.TABLE_FULL, "two", 5)
    assert notices.take() == ["one", "two"]
