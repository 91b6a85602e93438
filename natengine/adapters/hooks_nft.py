"""The rules of a `HookPlan`, in a table of our own, through nftables.

    table ip natengine
        chain leaving     hook postrouting, just before mangle    oifname UPLINK  queue
                                                                  oifname != "lo" meta mark  queue
        chain arriving    hook prerouting, just before raw        iifname UPLINK  queue
                                                                  iifname != "lo" ip daddr ADDRESS  meta mark set
                                                                  iifname != "lo" meta mark  queue
        chain sending     hook output, just before raw            ip daddr DESTINATION  meta mark set
                                                                  meta mark  queue
        chain receiving   hook input, just before mangle          as leaving, and
                                                                  iifname "lo" ip saddr ADDRESS th sport PORT  queue

Every change is one transaction of `nft -f`, so both chains change at the same moment.  It rewrites the rules
and leaves the chains where they are: a new chain and the old one would not take over from each other in
one step for a packet that is between the two.  No `bypass` flag (fail closed).  A table that a killed
engine left behind is taken over; tables of others, iptables' too, are not touched.
"""

from __future__ import annotations

import shutil
from typing import NamedTuple

from natengine.adapters import programs
from natengine.adapters.hook_plan import ALWAYS, Action, HookPlan, HookRule, LocalService, Only, Place
from natengine.errors import HostError

TABLE = "ip natengine"
TRIAL_TABLE = "ip natengine-trial"


class Chain(NamedTuple):
    """One of our chains, where it hangs, and how its rules name the interface."""

    name: str
    hook: str
    priority: int
    key: str


# One before iptables' tables: whichever was there first, other people's rules in them see translated packets.
CHAINS = {
    Place.LEAVING: Chain("leaving", "postrouting", -151, "oifname"),
    Place.RECEIVING: Chain("receiving", "input", -151, "iifname"),
    Place.ARRIVING: Chain("arriving", "prerouting", -301, "iifname"),
    Place.SENDING: Chain("sending", "output", -301, "oifname"),
}


ONLY = {
    (Place.LEAVING, Only.FOREIGN): "fib saddr type unicast",
    (Place.ARRIVING, Only.FOREIGN): "fib daddr type unicast",
    (Place.LEAVING, Only.TCP_RESET): "tcp flags & rst == rst",
    (Place.LEAVING, Only.UNREACHABLE): "icmp type destination-unreachable",
    (Place.RECEIVING, Only.UNREACHABLE): "icmp type destination-unreachable",
}


def _protocol(service: LocalService) -> list[str]:
    words = [f"meta l4proto {service.proto}"] if service.proto else []
    if service.ports is not None:
        words.append("th sport {}-{}".format(*service.ports))
    return words


class NftHooks:
    """Installs, changes and removes the hooks of one engine in the current network namespace."""

    name = "nft"

    def __init__(self, queues: tuple[int, int]) -> None:
        """Look for the nft program.

        Args:
            queues: First and last queue number; over several the kernel spreads the connections.

        Raises:
            HostError: It is not installed.
        """
        first, last = queues
        self._queue = f"queue num {first}" if first == last else f"queue num {first}-{last}"
        if shutil.which("nft") is None:
            raise HostError("nft is not installed (Debian: apt-get install nftables)")
        self._installed: HookPlan | None = None

    def probe(self) -> None:
        """Ask the kernel for all that a plan may need; nothing is installed.

        `nft --check` sends the whole transaction and only leaves out the commit, so it is the kernel that
        answers, after it has loaded the modules.

        Raises:
            HostError: It refuses.
        """
        local = "127.0.0.1"
        everything = HookPlan(
            ("lo",), addresses=(local,), mark=1, own_destinations=(local,),
            own_services=(LocalService(local, proto=6, ports=(1, 2)),),
        )
        self._transact(TRIAL_TABLE, everything, "--check")

    def sync(self, plan: HookPlan) -> None:
        """Take exactly what this plan says from now on.

        Raises:
            HostError: The kernel or nft refuses, for instance for want of the queue expression.
        """
        if plan != self._installed:
            self._transact(TABLE, plan)
            self._installed = plan

    def remove(self) -> None:
        """Take our table out; what is not there is no error."""
        if self.is_installed():
            self._nft(f"delete table {TABLE}\n")
        self._installed = None

    def is_installed(self) -> bool:
        """Whether our table is there."""
        return programs.run(["nft", "list", "table", *TABLE.split()]).returncode == 0

    def _transact(self, table: str, plan: HookPlan, *options: str) -> None:
        lines = [f"add table {table}"]
        rules = {place: plan.rules(place) for place in CHAINS}
        for place, chain in CHAINS.items():
            if place not in ALWAYS and not rules[place]:
                continue
            where = f"type filter hook {chain.hook} priority {chain.priority}"
            lines.append(f"add chain {table} {chain.name} {{ {where}; policy accept; }}")
        lines.append(f"flush table {table}")
        for place, chain in CHAINS.items():
            texts = [self._text(chain, rule, plan.mark) for rule in rules[place]]
            lines += [f"add rule {table} {chain.name} {text}" for text in texts]
        self._nft("\n".join([*lines, ""]), *options)

    def _text(self, chain: Chain, rule: HookRule, mark: int) -> str:
        words = []
        if rule.interface not in ("", "+"):         # iptables' "any interface"
            words.append(f"{chain.key} {_quoted(rule.interface)}")
        if rule.except_interface:
            words.append(f"{chain.key} != {_quoted(rule.except_interface)}")
        if rule.only is not Only.ANYTHING:
            words.append(ONLY[rule.place, rule.only])
        if rule.destination:
            words.append(f"ip daddr {rule.destination}")
        if rule.sender is not None:
            words += [f"ip saddr {rule.sender.address}", *_protocol(rule.sender)]
        if rule.has_mark:
            words.append(f"meta mark & {mark:#x} == {mark:#x}")
        actions = {
            Action.QUEUE: self._queue, Action.DROP: "drop", Action.MARK: f"meta mark set meta mark | {mark:#x}",
        }
        return " ".join([*words, actions[rule.action]])

    def _nft(self, text: str, *options: str) -> None:
        result = programs.run(["nft", *options, "-f", "-"], text)
        if result.returncode:
            raise HostError(
                f"nft refused the hooks: {programs.said(result)}; the kernel needs nft's queue expression "
                "(try: modprobe nft_queue, or --hooks iptables) and you need to be root"
            )


def _quoted(pattern: str) -> str:
    """An interface name or pattern as nft writes it: its wildcard is a trailing `*`, not `+`."""
    if '"' in pattern:
        raise HostError(f'nft cannot say {pattern}: an interface name with a " in it (try: --hooks iptables)')
    if pattern.endswith("+"):
        pattern = pattern[:-1] + "*"
    elif pattern.endswith("*"):         # part of the name
        pattern = pattern[:-1] + r"\*"
    return f'"{pattern}"'
