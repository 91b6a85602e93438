"""The one clock: CLOCK_BOOTTIME, which counts suspended time and never goes back."""

from __future__ import annotations

import time


def now_ns() -> int:
    """Return nanoseconds since boot."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
