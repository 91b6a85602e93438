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
        if self.mark and not self.any_interface and (self.addresses or self.own_destinations):
            rules += self._marked(place, self.addresses if place is Place.ARRIVING else (), except_interface="lo")
        if place is Place.RECEIVING:
            # an error (of a closed port of UDP) comes from the address alone
            hosts = dict.fromkeys(LocalService(each.address) for each in self.own_services)
            rules += [HookRule(place, "lo", only=Only.UNREACHABLE, sender=each) for each in hosts]
            rules += [HookRule(place, "lo", sender=each) for each in self.own_services]
        return rules

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
    """A back end: installs, changes and removes the hooks of one engine in the current network namespace."""

    name: str

    def sync(self, plan: HookPlan) -> None:
        """Take exactly what this plan says from now on.

        Raises:
            HostError: The kernel or its program refuses; then what was installed before is still there.
        """

    def remove(self) -> None:
        """Take out what is ours; what is not there is no error."""

    def is_installed(self) -> bool:
        """Whether anything of ours is there, perhaps left behind by a killed engine."""
