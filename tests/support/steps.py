"""How much work a call is, in lines of natengine's own Python: the same on any machine, however busy it is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import natengine

_OURS = natengine.__path__[0]


def steps_of(call: Callable[[], Any]) -> int:
    """Return how many lines were carried out; what is compiled or built in counts for the line that it is in."""
    count = 0

    def note(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.startswith(_OURS):
            return None
        count += event == "line"
        return note

    before = sys.gettrace()
    sys.settrace(note)
    try:
        call()
    finally:
        sys.settrace(before)
    return count
