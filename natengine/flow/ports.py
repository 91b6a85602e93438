"""Outside ports of one address and protocol: which are taken, and which to give next.

Rule 1: the port the inside host uses is kept where it is free (port preservation, RFC 4787 4.2.1).
Rule 2: otherwise the new one comes from the same class (RFC 4787 REQ-3a; the kernel's cut at 512
        kept, for services that want a port below it) and, for UDP's sake, of the same parity
        (REQ-4), at random (RFC 6056): nobody outside can guess it.
Rule 3: a port is given to one inside endpoint at a time (no overloading, REQ-3).

Taking and giving back cost the same however full the pool is: each class keeps its free ports in
an array without holes, in which any one can be removed by swapping it with the last.  A new pool is
made of slices of arrays that are filled once, when this module is loaded: the first packet to use
an outside address waits for it.
"""

from __future__ import annotations

from array import array

from natengine.vocab import Proto, Rng

PORT_CLASSES = ((1, 511), (512, 1023), (1024, 65535))
ICMP_CLASSES = ((0, 65535),)        # identifiers have no classes
PORTS = 65536


# what a pool is cut from: the even and the odd ports, and their places among themselves
_BY_PARITY = (array("H", range(0, PORTS, 2)), array("H", range(1, PORTS, 2)))
_PLACES = array("H", range(PORTS // 2))


class _FreePorts:
    """The free ports of one parity from `first` to `last`, in an order that means nothing."""

    def __init__(self, parity: int, first: int, last: int) -> None:
        self._offset = (first + 1 - parity) // 2                    # of the first one in _BY_PARITY
        self._ports = _BY_PARITY[parity][self._offset:(last - parity) // 2 + 1]
        self._position = _PLACES[:len(self._ports)]                 # where in _ports each one stands

    def __len__(self) -> int:
        return len(self._ports)

    def _index(self, port: int) -> int:
        return port // 2 - self._offset

    def remove(self, port: int) -> None:
        """Take out a port that is in."""
        hole = self._position[self._index(port)]
        last = self._ports.pop()
        if last != port:
            self._ports[hole] = last
            self._position[self._index(last)] = hole

    def add(self, port: int) -> None:
        """Put back a port that is out."""
        self._position[self._index(port)] = len(self._ports)
        self._ports.append(port)

    def pick(self, rng: Rng) -> int:
        """Return a random one of the free ports, which stays in."""
        return self._ports[rng.randrange(0, len(self._ports))]


class PortPool:
    """All 65536 ports of one outside address and protocol (or its ICMP identifiers)."""

    def __init__(self, proto: int) -> None:
        self._classes = ICMP_CLASSES if proto == Proto.ICMP else PORT_CLASSES
        self._taken = bytearray(PORTS)
        self._free = [
            (_FreePorts(0, first, last), _FreePorts(1, first, last)) for first, last in self._classes
        ]                                                           # per class: the even, the odd ones

    def __len__(self) -> int:
        """Return how many ports are taken."""
        return sum(self._taken)

    def take(
        self, wanted: int, rng: Rng, *, keep: bool = True, ports: tuple[int, int] | None = None
    ) -> int | None:
        """Take a port and return it, or None if every one that would do is taken.

        Args:
            wanted: The port the inside host uses.
            keep: Whether to give just that one if it is free; False for `--random`.
            ports: First and last of `--to-ports`; replaces the classes of rule 2.
        """
        fits = ports is None or ports[0] <= wanted <= ports[1]
        if keep and fits and not self._taken[wanted]:
            port: int | None = wanted
        elif ports is None:
            port = self._pick_like(wanted, rng)
        else:
            port = self._pick_between(ports[0], ports[1], rng)
        if port is not None:
            self._set(port, taken=True)
        return port

    def release(self, port: int) -> None:
        """Give back a port that is taken."""
        self._set(port, taken=False)

    def _set(self, port: int, *, taken: bool) -> None:
        self._taken[port] = taken
        for (first, last), halves in zip(self._classes, self._free, strict=True):
            if first <= port <= last:
                half = halves[port & 1]
                (half.remove if taken else half.add)(port)

    def _pick_like(self, wanted: int, rng: Rng) -> int | None:
        """Choose among the free ports of the class of `wanted`, those of its parity first."""
        for (first, last), halves in zip(self._classes, self._free, strict=True):
            # port 0 belongs to no class: if it cannot be kept, one that anybody may use replaces it
            if first <= (wanted or PORTS - 1) <= last:
                same, other = halves[wanted & 1], halves[~wanted & 1]
                free = same or other
                return free.pick(rng) if free else None
        return None

    def _pick_between(self, first: int, last: int, rng: Rng) -> int | None:
        """Choose the first free port of a range, searching from a random one of it."""
        size = last - first + 1
        start = rng.randrange(0, size)
        at = self._taken.find(0, first + start, last + 1)
        if at < 0:
            at = self._taken.find(0, first, first + start)
        return None if at < 0 else at
