"""Outside ports of one address and protocol: which are taken, and which to give next.

Rule 1: the port the inside host uses is kept where it is free (port preservation, RFC 4787 4.2.1).
Rule 2: otherwise the new one comes from the same class (RFC 4787 REQ-3a; the kernel's cut at 512
        kept, for services that want a port below it) and, for UDP's sake, of the same parity
        (REQ-4), at random (RFC 6056): nobody outside can guess it.
Rule 3: a port is given to one inside endpoint at a time (no overloading, REQ-3; but see `share`).
Rule 4: a port that is given back rests for a while (RFC 6888 REQ-8): what is still under way to who
        had it must not reach another.  It may be given to the same host at once, and to anybody,
        the one first that has rested longest, when there is no other.
Rule 5: what the head itself uses is reserved, and only the head gets it.

                    take                      release
        FREE ────────────────────> TAKEN ────────────────> RESTING ──time──> FREE
          └─────────── reserve ──> RESERVED <── where it was reserved meanwhile

Taking and giving back cost the same however full the pool is, and however many have just rested long enough: each
class keeps its free ports in an array without holes, in which any one can be removed by swapping it with the last.
A new pool is made of slices of arrays that are filled once, when this module is loaded: the first packet to use
an outside address waits for it.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable

from natengine.vocab import Proto, Rng

PORT_CLASSES = ((1, 511), (512, 1023), (1024, 65535))
ICMP_CLASSES = ((0, 65535),)        # identifiers have no classes
PORTS = 65536

FREE, TAKEN, RESTING, RESERVED = range(4)

PAIR_TRIES = 4                      # picks, for a port whose neighbour is free too
WAKES = 16                          # ports that one `take` frees because they have rested: more than it can use
SHARE_TRIES = 64                    # picks, for a port that can be shared; all miss where 9 in 10 are no use: 1 in 1000

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


class _Class:
    """A range of ports that stand in for each other."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last
        self.free = (_FreePorts(0, first, last), _FreePorts(1, first, last))    # the even, the odd ones
        self.resting: OrderedDict[int, tuple[int, int]] = OrderedDict()         # port: until when, whose; oldest first


class PortPool:
    """All 65536 ports of one outside address and protocol (or its ICMP identifiers)."""

    def __init__(self, proto: int, hold_down_ns: int = 0) -> None:
        """`hold_down_ns` is how long a port rests; see rule 4."""
        self._hold_down_ns = hold_down_ns
        self._pairs = proto == Proto.UDP
        classes = ICMP_CLASSES if proto == Proto.ICMP else PORT_CLASSES
        self._classes = [_Class(first, last) for first, last in classes]
        self._state = bytearray(PORTS)
        self._reserved: frozenset[int] = frozenset()

    def __len__(self) -> int:
        """Return how many ports are taken."""
        return self._state.count(TAKEN)

    def take(
        self, wanted: int, rng: Rng, *, host: int = 0, now_ns: int = 0,
        keep: bool = True, ports: tuple[int, int] | None = None, for_head: bool = False,
    ) -> int | None:
        """Take a port and return it, or None if every one that would do is taken.

        Args:
            wanted: The port the inside host uses.
            host: Who it is; only compared with who had the port before.
            keep: Whether to give just that one if it may be had; False for `--random`.
            ports: First and last of `--to-ports`; replaces the classes of rule 2.
            for_head: Whether a reserved port may be given.
        """
        self._wake(now_ns)
        fits = ports is None or ports[0] <= wanted <= ports[1]
        if keep and fits and self._may_have(wanted, host, now_ns, for_head):
            port: int | None = wanted
        elif ports is None:
            port = self._pick_like(wanted, rng)
        else:
            port = self._pick_between(ports[0], ports[1], rng)
        if port is not None:
            self._set(port, TAKEN)
        return port

    def share(
        self, wanted: int, rng: Rng, may_share: Callable[[int], bool], ports: tuple[int, int] | None = None
    ) -> int | None:
        """Return a port that is taken and may be used by one more, or None if a few picks at random find none.

        `may_share` says whether packets of the flow in question could be told from those of others by
        their peer (port overlapping, RFC 7857 3).
        """
        home = self._class_of(wanted or PORTS - 1)
        first, last = ports or (home.first, home.last)
        for _ in range(SHARE_TRIES):
            port = rng.randrange(first, last + 1)
            if self._state[port] == TAKEN and may_share(port):
                return port
        return None

    def release(self, port: int, *, host: int = 0, now_ns: int = 0) -> None:
        """Give back a port that is taken, and that `host` had."""
        if port in self._reserved:
            self._set(port, RESERVED)
        elif self._hold_down_ns and self._has_class(port):
            self._set(port, RESTING)
            self._class_of(port).resting[port] = (now_ns + self._hold_down_ns, host)
        else:
            self._set(port, FREE)

    def reserve(self, ports: frozenset[int]) -> None:
        """Keep exactly these ports for the head; who has one of them already may go on with it."""
        for port in self._reserved - ports:
            if self._state[port] == RESERVED:
                self._set(port, FREE)
        for port in ports - self._reserved:
            if self._state[port] != TAKEN:
                self._set(port, RESERVED)
        self._reserved = ports

    def is_free(self, port: int) -> bool:
        """Say whether anybody could have this port now."""
        return self._state[port] == FREE

    def _may_have(self, port: int, host: int, now_ns: int, for_head: bool) -> bool:
        state = self._state[port]
        if state == RESTING:
            until_ns, whose = self._class_of(port).resting[port]
            return whose == host or until_ns <= now_ns
        return state == FREE or (state == RESERVED and for_head)

    def _set(self, port: int, state: int) -> None:
        before, self._state[port] = self._state[port], state
        if not self._has_class(port):
            return
        home = self._class_of(port)
        if before == RESTING:
            del home.resting[port]
        if state == FREE:
            home.free[port & 1].add(port)
        elif before == FREE:
            home.free[port & 1].remove(port)

    def _has_class(self, port: int) -> bool:
        """Port 0 of TCP and UDP has none: it can be kept, never picked."""
        return port >= self._classes[0].first

    def _class_of(self, port: int) -> _Class:
        for each in self._classes:
            if port <= each.last:
                return each
        raise AssertionError(port)

    def _wake(self, now_ns: int) -> None:
        """Free some of the ports that have rested long enough; who ends 60000 flows at once makes nobody wait later."""
        for each in self._classes:
            for _ in range(min(WAKES, len(each.resting))):
                port = next(iter(each.resting))
                if each.resting[port][0] > now_ns:
                    break
                self._set(port, FREE)

    def _pick_like(self, wanted: int, rng: Rng) -> int | None:
        """Choose among the free ports of the class of `wanted`, those of its parity first."""
        # port 0 belongs to no class: if it cannot be kept, one that anybody may use replaces it
        home = self._class_of(wanted or PORTS - 1)
        free = home.free[wanted & 1] or home.free[~wanted & 1]
        if not free:
            return next(iter(home.resting), None)
        port = free.pick(rng)
        if self._pairs:                     # RTP and RTCP want two neighbours
            for _ in range(PAIR_TRIES):
                if self._state[port ^ 1] == FREE:
                    break
                port = free.pick(rng)
        return port

    def _pick_between(self, first: int, last: int, rng: Rng) -> int | None:
        """Choose the first free port of a range, searching from a random one of it; else one that rests."""
        start = first + rng.randrange(0, last - first + 1)
        for state in (FREE, RESTING):
            at = self._state.find(state, start, last + 1)
            if at < 0:
                at = self._state.find(state, first, start)
            if at >= 0:
                return at
        return None
