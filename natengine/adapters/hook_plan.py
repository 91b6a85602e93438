"""Which packets the kernel is to hand over, as values; the back ends put them into its words.

    ARRIVING     raw    PREROUTING     before conntrack and routing
    LEAVING      mangle POSTROUTING    after routing
    SENDING      raw    OUTPUT         the head's own, as ARRIVING, where a rule translates their destination
    RECEIVING    mangle INPUT          the answers to them, as LEAVING; also over the loopback, from services of the
                                       head's own that they were sent to

The guard of a gateway that has stopped: what is not the head's own neither leaves nor arrives, and the head does
not tell anybody that the workers' connections are gone, so that the next engine can go on with them.

Hairpinning: what comes from inside for an uplink's own address is taken, too, and marked with one bit; marked
packets are taken once more where they leave.  Other bits of a packet's mark stay as they are.

Shedding: of a sender that floods (named with `Hooks.shed`, for `SHED_S`) only so many packets a second are queued; the
rest is dropped where it would have been.  Of TCP that is about SYNs.  Of others a hook cannot tell new flows from
known ones, so it is about all of them, and at a rate that only a flood reaches.

A back end (`hooks.py` for xtables, `hooks_nft.py`) renders the rules of a plan into chains of our own.  No rule
lets a packet pass when nobody listens on the queue (fail closed).
"""

from __future__ import annotations

import enum
from typing import NamedTuple, Protocol


class Place(enum.Enum):
    """A hook in the kernel's packet path, in the order of installation.

    Outbound first, so that nothing can leave before it is looked at.  SENDING and RECEIVING are there only
    when a plan has rules for them.
    """

    LEAVING = enum.auto()
    RECEIVING = enum.auto()
    ARRIVING = enum.auto()
    SENDING = enum.auto()


ALWAYS = frozenset({Place.LEAVING, Place.ARRIVING})


class Action(enum.Enum):
    """What becomes of a packet that a rule matches."""

    QUEUE = enum.auto()
    DROP = enum.auto()
    MARK = enum.auto()          # set the plan's mark, and go on to the next rule
    SHED = enum.auto()          # drop it, if it is of a flood; else go on


class Only(enum.Enum):
    """What else a packet must be."""

    ANYTHING = enum.auto()
    FOREIGN = enum.auto()           # its source (leaving) or destination (arriving) is another host's
    TCP_RESET = enum.auto()
    UNREACHABLE = enum.auto()       # ICMP destination unreachable


class LocalService(NamedTuple):
    """A service of the head's own that the head's own packets are sent to; what it answers comes over the loopback."""

    address: str
    proto: int = 0                          # 0: any
    ports: tuple[int, int] | None = None    # first and last, of TCP or UDP; None: any


class HookRule(NamedTuple):
    """One rule: a packet that has all of this is taken."""

    place: Place
    interface: str = ""                     # arriving on, or leaving over; a trailing `+` is iptables' wildcard
    except_interface: str = ""              # any interface but this
    only: Only = Only.ANYTHING
    destination: str = ""                   # an address or a prefix
    sender: LocalService | None = None
    has_mark: bool = False                  # the plan's mark
    action: Action = Action.QUEUE


class Flood(enum.Enum):
    """A kind of packets that a host can send too many of; the value is the word for it."""

    SYN = "syn"                     # that begin a TCP connection
    OTHER = "other"                 # of any other protocol


class Flooder(NamedTuple):
    """Whose packets of one kind are to be shed.  The address is a host-order integer."""

    address: int
    kind: Flood


SHED_S = 4                          # so long a sender is shed, also when whoever named it is gone
# of the flows a second that a sender may begin while others wait, so many times may be queued
SHED_ABOVE = {Flood.SYN: 2, Flood.OTHER: 10}
FASTEST = 1_000_000                 # packets a second, that a hook can tell from no limit


GUARDED = {
    Place.LEAVING: (Only.FOREIGN, Only.TCP_RESET, Only.UNREACHABLE),
    Place.ARRIVING: (Only.FOREIGN,),
}


class HookPlan(NamedTuple):
    """What the gateway wants to see."""

    uplinks: tuple[str, ...] = ()           # interface names or patterns
    any_interface: bool = False             # every interface but the loopback, whatever `uplinks` says
    guard: bool = False                     # nobody listens: drop there what is not the head's own
    addresses: tuple[str, ...] = ()         # dotted quads: packets to these are taken on any interface
    mark: int = 0                           # bits of the packet mark; 0: only what an interface says is taken
    own_destinations: tuple[str, ...] = ()  # prefixes: the head's own packets to these are taken
    own_services: tuple[LocalService, ...] = ()     # and, where they are received, what these answer
    flows_a_second: int = 0                 # that a sender may begin while others wait; 0: nobody is ever shed

    def rules(self, place: Place) -> list[HookRule]:
        """Return the rules of one place, in order."""
        if place is Place.SENDING:
            return self._marked(place, self.own_destinations) if self.for_own else []
        if place is Place.RECEIVING and not self.for_own:
            return []
        if self.any_interface:
            rules = [HookRule(place, except_interface="lo")]
        else:
            rules = [HookRule(place, uplink) for uplink in self.uplinks]
        if self.guard:
            return [rule._replace(only=only, action=Action.DROP) for rule in rules for only in GUARDED[place]]
        if self.flows_a_second and place is Place.LEAVING:
            rules = [rule._replace(action=action) for rule in rules for action in (Action.SHED, Action.QUEUE)]
        if self.mark and not self.any_interface and (self.addresses or self.own_destinations):
            rules += self._marked(place, self.addresses if place is Place.ARRIVING else (), except_interface="lo")
        if place is Place.RECEIVING:
            # an error (of a closed port of UDP) comes from the address alone
            hosts = dict.fromkeys(LocalService(each.address) for each in self.own_services)
            rules += [HookRule(place, "lo", only=Only.UNREACHABLE, sender=each) for each in hosts]
            rules += [HookRule(place, "lo", sender=each) for each in self.own_services]
        return rules

    def shed_above(self, kind: Flood) -> int:
        """Return how many packets a second of a flooding sender are queued."""
        return min(self.flows_a_second * SHED_ABOVE[kind], FASTEST)

    @property
    def for_own(self) -> bool:
        """Whether the head's own packets are taken before they are routed."""
        return bool(self.mark and self.own_destinations) and not self.guard

    @staticmethod
    def _marked(place: Place, destinations: tuple[str, ...], except_interface: str = "") -> list[HookRule]:
        """Return the rules that mark packets to some destinations, and take what is marked."""
        return [
            *(
                HookRule(place, except_interface=except_interface, destination=each, action=Action.MARK)
                for each in destinations
            ),
            HookRule(place, except_interface=except_interface, has_mark=True),
        ]


class Hooks(Protocol):
    """A back end: installs, changes and removes the hooks of one engine in the current network namespace.

    Attributes:
        cannot_shed: Why plans are installed without shedding: what the kernel has said to it; empty if it can.
    """

    name: str
    cannot_shed: str

    def sync(self, plan: HookPlan) -> None:
        """Take exactly what this plan says from now on.

        Raises:
            HostError: The kernel or its program refuses; then what was installed before is still there.
        """

    def shed(self, flooder: Flooder) -> None:
        """Shed a sender for `SHED_S` from now on.  Costs no more than a packet thread can spare.

        Raises:
            HostError: It could not be named; then nothing is shed.
        """

    def shed_packets(self) -> int:
        """Return how many packets have been shed since the first plan."""

    def remove(self) -> None:
        """Take out what is ours; what is not there is no error."""

    def is_installed(self) -> bool:
        """Whether anything of ours is there, perhaps left behind by a killed engine."""
