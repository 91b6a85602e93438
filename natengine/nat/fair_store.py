"""A bounded space that many sources share, so that none of them fills it for the others.

    a source has more than its share .. its own oldest goes
    the space is full ................. the oldest of all goes

So a flood costs whoever sends it its own things first; and what is new always finds room, for a thing that is old
here is one that waits for something that does not come.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class FairStore(Generic[K]):
    """Who takes how much of the space.  The things themselves are somebody else's; here they have a key."""

    def __init__(self, room: int, share: int) -> None:
        """Start empty.

        Args:
            room: For all sources together, in the unit of the weights.
            share: Of it, how much one source may take.
        """
        self._room, self._share = room, share
        self._weights: dict[K, tuple[int, int]] = {}            # source and weight, the oldest first
        self._keys_of: dict[int, dict[K, None]] = {}            # by source, the oldest first
        self._used_by: Counter[int] = Counter()
        self.used = 0

    def __len__(self) -> int:
        return len(self._weights)

    def add(self, key: K, source: int, weight: int = 1) -> list[K]:
        """Put a thing in, or make one that is in heavier by `weight`.

        Returns:
            What had to go for it, the oldest first; the thing itself if it is larger than a share.
        """
        _, before = self._weights.get(key, (source, 0))
        self._weights[key] = source, before + weight
        self._keys_of.setdefault(source, {})[key] = None
        self._used_by[source] += weight
        self.used += weight
        gone = []
        while self._used_by[source] > self._share:
            gone.append(self._drop(next(iter(self._keys_of[source]))))
        while self.used > self._room:
            gone.append(self._drop(next(iter(self._weights))))
        return gone

    def remove(self, key: K) -> None:
        """Take a thing out, if it is in."""
        if key in self._weights:
            self._drop(key)

    def _drop(self, key: K) -> K:
        source, weight = self._weights.pop(key)
        self.used -= weight
        self._used_by[source] -= weight
        del self._keys_of[source][key]
        if not self._keys_of[source]:
            del self._keys_of[source], self._used_by[source]
        return key
