"""The rules of a `HookPlan`, in a table of our own, through nftables.

    table ip natengine
        chain leaving     hook postrouting, just before mangle    oifname UPLINK  jump shed
                                                                  oifname UPLINK  queue
                                                                  oifname != "lo" meta mark  queue
        chain arriving    hook prerouting, just before raw        iifname UPLINK  queue
                                                                  iifname != "lo" ip daddr ADDRESS  meta mark set
                                                                  iifname != "lo" meta mark  queue
        chain sending     hook output, just before raw            ip daddr DESTINATION  meta mark set
                                                                  meta mark  queue
        chain receiving   hook input, just before mangle          as leaving, and
                                                                  iifname "lo" ip saddr ADDRESS th sport PORT  queue
        chain shed        ip saddr @flooders-KIND  update @rate-KIND { ip saddr limit rate over N }  counter  drop

Every change is one transaction of `nft -f`, so both chains change at the same moment.  It rewrites the rules
and leaves the chains where they are: a new chain and the old one would not take over from each other in
one step for a packet that is between the two.  No `bypass` flag (fail closed).  A table that a killed
engine left behind is taken over; tables of others, iptables' too, are not touched.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import NamedTuple

from natengine.adapters import programs
from natengine.adapters.hook_plan import (
    ALWAYS,
    SHED_S,
    Action,
    Flood,
    Flooder,
    HookPlan,
    HookRule,
    LocalService,
    Only,
    Place,
)
from natengine.errors import HostError
from natengine.wire.addr import format_ipv4

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

SHED_CHAIN = "shed"
FLOODS = {Flood.SYN: "tcp flags & (fin | syn | rst | ack) == syn", Flood.OTHER: "meta l4proto != tcp"}
RATES_REMEMBERED = 1024             # senders


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
        self._naming: list[subprocess.Popen[bytes]] = []
        self.cannot_shed = ""

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
        if plan == self._installed:
            return
        asked, plain = plan, plan._replace(flows_a_second=0)
        if plan.flows_a_second and not self.cannot_shed:
            refusal = self._refusal(self._script(TABLE, plan))
            if refusal:
                self._transact(TABLE, plain)
                self.cannot_shed = refusal
        else:
            self._transact(TABLE, plain)
        self._installed = asked

    def shed(self, flooder: Flooder) -> None:
        """Shed a sender for `SHED_S` from now on.  Does not wait for nft: if it fails, the next call says so.

        Raises:
            HostError: nft cannot be run, or an earlier one has failed.
        """
        if any(each.poll() for each in self._naming):
            raise HostError(f"nft could not add an element to table {TABLE}")
        self._naming = [each for each in self._naming if each.returncode is None]
        where, element = f"element {TABLE} {_flooders(flooder.kind)}", format_ipv4(flooder.address)
        # An element that is there keeps its old time-out, so it makes room for the new one.
        self._naming.append(programs.start(["nft", "; ".join([
            f"add {where} {{ {element} }}", f"delete {where} {{ {element} }}",
            f"add {where} {{ {element} timeout {SHED_S}s }}",
        ])]))

    def shed_packets(self) -> int:
        """Return how many packets have been shed since the first plan."""
        listed = programs.run(["nft", "list", "counters", "table", *TABLE.split()]).stdout
        return sum(map(int, re.findall(r"packets (\d+)", listed)))

    def remove(self) -> None:
        """Take our table out; what is not there is no error."""
        for naming in self._naming:     # none may come after us
            naming.wait()
        self._naming.clear()
        if self.is_installed():
            self._nft(f"delete table {TABLE}\n")
        self._installed = None

    def is_installed(self) -> bool:
        """Whether our table is there."""
        return programs.run(["nft", "list", "table", *TABLE.split()]).returncode == 0

    def _transact(self, table: str, plan: HookPlan, *options: str) -> None:
        self._nft(self._script(table, plan), *options)

    def _script(self, table: str, plan: HookPlan) -> str:
        """Return the transaction that puts a plan in force."""
        lines = [f"add table {table}"]
        objects = [each for kind in FLOODS for each in _objects(table, kind)] if plan.flows_a_second else []
        lines += [f"add {name} {{ {value} }}" for name, value in objects]
        if objects:
            lines.append(f"add chain {table} {SHED_CHAIN}")
        rules = {place: plan.rules(place) for place in CHAINS}
        for place, chain in CHAINS.items():
            if place not in ALWAYS and not rules[place]:
                continue
            where = f"type filter hook {chain.hook} priority {chain.priority}"
            lines.append(f"add chain {table} {chain.name} {{ {where}; policy accept; }}")
        lines.append(f"flush table {table}")
        if self._installed is None:     # of a killed engine's, forget counts and rates
            lines += [f"delete {name}" for name, _ in objects]
            lines += [f"add {name} {{ {value} }}" for name, value in objects]
        if objects:
            lines += [f"add rule {table} {SHED_CHAIN} {_shed_text(kind, plan.shed_above(kind))}" for kind in FLOODS]
        for place, chain in CHAINS.items():
            texts = [self._text(chain, rule, plan.mark) for rule in rules[place]]
            lines += [f"add rule {table} {chain.name} {text}" for text in texts]
        return "\n".join([*lines, ""])

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
            Action.SHED: f"jump {SHED_CHAIN}",
        }
        return " ".join([*words, actions[rule.action]])

    def _nft(self, text: str, *options: str) -> None:
        refusal = self._refusal(text, *options)
        if refusal:
            raise HostError(
                f"nft refused the hooks: {refusal}; the kernel needs nft's queue expression "
                "(try: modprobe nft_queue, or --hooks iptables) and you need to be root"
            )

    def _refusal(self, text: str, *options: str) -> str:
        """Carry out a transaction; return why it was not done, or nothing."""
        result = programs.run(["nft", *options, "-f", "-"], text)
        return programs.said(result) if result.returncode else ""


def _flooders(kind: Flood) -> str:
    """Return the name of the set of those who send such floods."""
    return f"flooders-{kind.value}"


def _objects(table: str, kind: Flood) -> list[tuple[str, str]]:
    """Return what the rule about one kind of floods refers to: kind and name of each object, and what is in it."""
    return [
        (f"set {table} {_flooders(kind)}", "type ipv4_addr; flags timeout;"),
        (f"set {table} rate-{kind.value}",
         f"type ipv4_addr; flags dynamic,timeout; timeout {2 * SHED_S}s; size {RATES_REMEMBERED};"),
        (f"counter {table} shed-{kind.value}", ""),
    ]


def _shed_text(kind: Flood, above: int) -> str:
    limit = f"limit rate over {above}/second burst {max(above // 10, 1)} packets"
    return (
        f"{FLOODS[kind]} ip saddr @{_flooders(kind)} update @rate-{kind.value} {{ ip saddr {limit} }} "
        f'counter name "shed-{kind.value}" drop'
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
