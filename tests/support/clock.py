"""A clock that stands still until a test moves it."""

from __future__ import annotations

SECOND_NS = 1_000_000_000


class ManualClock:
    """Holds the time, in nanoseconds; `advance` is the only thing that changes it."""

    def __init__(self, now_ns: int = 0) -> None:
        self.now_ns = now_ns

    def advance(self, seconds: float = 0, *, ns: int = 0) -> None:
        """Let time pass."""
        self.now_ns += int(seconds * SECOND_NS) + ns
