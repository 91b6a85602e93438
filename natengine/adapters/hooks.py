"""The rules of a `HookPlan`, in chains of our own, through xtables.

    raw    PREROUTING   -j natengine-in    -i UPLINK  -j NFQUEUE
                                           ! -i lo -d ADDRESS  -j MARK
                                           ! -i lo -m mark  -j NFQUEUE
    mangle POSTROUTING  -j natengine-out   -o UPLINK  -j natengine-shed
                                           -o UPLINK  -j NFQUEUE
                                           ! -o lo -m mark  -j NFQUEUE
    raw    OUTPUT       -j natengine-send     -d DESTINATION  -j MARK, then -m mark  -j NFQUEUE
    mangle INPUT        -j natengine-receive  as natengine-out, and
                                           -i lo -s ADDRESS -p tcp --sport PORT  -j NFQUEUE
    natengine-shed      -m recent (in the list of those who flood)  -m hashlimit (and above the rate)  -j DROP

The lists of `-m recent` are files, so naming a sender costs a write and no iptables.  An entry counts for `SHED_S`.

No `--queue-bypass`: when nobody listens on the queue, nothing passes (fail closed).  Everything is
changed by `iptables-restore --noflush`, one transaction a chain, and touches our chains and the
jumps to them, nothing else.  Chains that a killed engine left behind are taken over.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
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


class Chain(NamedTuple):
    """One of our chains and where it hangs."""

    table: str
    builtin: str
    name: str
    option: str                 # how its rules name the interface

    @property
    def jump(self) -> str:
        return f"{self.builtin} -j {self.name}"


CHAINS = {
    Place.LEAVING: Chain("mangle", "POSTROUTING", "natengine-out", "-o"),
    Place.RECEIVING: Chain("mangle", "INPUT", "natengine-receive", "-i"),
    Place.ARRIVING: Chain("raw", "PREROUTING", "natengine-in", "-i"),
    Place.SENDING: Chain("raw", "OUTPUT", "natengine-send", "-o"),
}


ONLY = {
    (Place.LEAVING, Only.FOREIGN): "-m addrtype --src-type UNICAST",
    (Place.ARRIVING, Only.FOREIGN): "-m addrtype --dst-type UNICAST",
    (Place.LEAVING, Only.TCP_RESET): "-p tcp --tcp-flags RST RST",
    (Place.LEAVING, Only.UNREACHABLE): "-p icmp --icmp-type destination-unreachable",
    (Place.RECEIVING, Only.UNREACHABLE): "-p icmp --icmp-type destination-unreachable",
}

SHED_CHAIN = "natengine-shed"       # in the table of LEAVING; written once, for a rewritten rule counts from 0
LISTS = Path("/proc/thread-self/net/xt_recent")         # xt_recent's, of the network namespace
FLOODS = {Flood.SYN: "-p tcp --syn", Flood.OTHER: "! -p tcp"}


def list_of(kind: Flood) -> str:
    """Return the name of the list of those who send such floods."""
    return f"natengine-{kind.value}"


def _protocol(service: LocalService) -> list[str]:
    words = [f"-p {service.proto}"] if service.proto else []
    if service.ports is not None:
        words.append("--sport {}:{}".format(*service.ports))
    return words


class IptablesHooks:
    """Installs, changes and removes the hooks of one engine in the current network namespace."""

    name = "iptables"

    def __init__(self, queues: tuple[int, int]) -> None:
        """Look for the iptables programs.

        Args:
            queues: First and last queue number; over several the kernel spreads the connections.

        Raises:
            HostError: They are not installed.
        """
        first, last = queues
        self._queue = "NFQUEUE " + (f"--queue-num {first}" if first == last else f"--queue-balance {first}:{last}")
        for program in ("iptables", "iptables-restore", "iptables-save"):
            if shutil.which(program) is None:
                raise HostError(f"{program} is not installed (Debian: apt-get install iptables)")
        self._installed: HookPlan | None = None
        self.cannot_shed = ""

    def sync(self, plan: HookPlan) -> None:
        """Take exactly what this plan says from now on.

        Raises:
            HostError: The kernel or iptables refuses, for instance for want of the NFQUEUE target.
        """
        if plan == self._installed:
            return
        asked, plan = plan, self._with_shedding(plan)
        places = list(CHAINS.items())
        if self._installed is None and self._has_jump(CHAINS[Place.LEAVING]):
            # A guard: it holds the head's answers to what arrives until that is looked at, so it goes last.
            places.reverse()
        for place, chain in places:
            rules = [f"-A {chain.name} {self._text(chain, rule, plan.mark)}" for rule in plan.rules(place)]
            has_jump = self._has_jump(chain)
            if rules or has_jump or place in ALWAYS:
                jump = [] if has_jump else [f"-I {chain.jump}"]
                self._restore(chain.table, [f":{chain.name} - [0:0]", *rules, *jump])
        self._installed = asked

    def shed(self, flooder: Flooder) -> None:
        """Shed a sender for `SHED_S` from now on.

        Raises:
            HostError: The list is not there any more; somebody has removed our rules.
        """
        entries = LISTS / list_of(flooder.kind)
        try:
            entries.write_text(f"+{format_ipv4(flooder.address)}\n")
        except OSError as error:
            raise HostError(f"{entries}: {error.strerror}") from None

    def shed_packets(self) -> int:
        """Return how many packets have been shed since the first plan."""
        listed = self._iptables("-t", CHAINS[Place.LEAVING].table, "-nvxL", SHED_CHAIN).stdout.splitlines()
        return sum(int(line.split()[0]) for line in listed[2:])         # below a title and the columns' names

    def remove(self) -> None:
        """Take our chains and jumps out; what is not there is no error."""
        for chain in reversed(CHAINS.values()):
            jump = [f"-D {chain.jump}"] if self._has_jump(chain) else []
            if jump or self._iptables("-t", chain.table, "-n", "-L", chain.name).returncode == 0:
                self._restore(chain.table, [f":{chain.name} - [0:0]", *jump, f"-X {chain.name}"])
        table = CHAINS[Place.LEAVING].table
        if self._iptables("-t", table, "-n", "-L", SHED_CHAIN).returncode == 0:
            self._restore(table, [f":{SHED_CHAIN} - [0:0]", f"-X {SHED_CHAIN}"])
        self._installed = None

    def is_installed(self) -> bool:
        """Whether chains of ours are there.  Asks for no table by name: the kernel would make it."""
        saved = programs.run(["iptables-save"]).stdout
        return any(f":{name} " in saved for name in [*(chain.name for chain in CHAINS.values()), SHED_CHAIN])

    def _with_shedding(self, plan: HookPlan) -> HookPlan:
        """Install the chain that sheds, if there is to be one; return the plan as far as the kernel can do it."""
        written = self._installed.flows_a_second if self._installed else 0
        if plan.flows_a_second not in (0, written) and not self.cannot_shed:
            rules = [f"-A {SHED_CHAIN} {_shed_text(kind, plan.shed_above(kind))}" for kind in FLOODS]
            self.cannot_shed = self._refusal(CHAINS[Place.LEAVING].table, [f":{SHED_CHAIN} - [0:0]", *rules])
        return plan._replace(flows_a_second=0) if self.cannot_shed else plan

    def _text(self, chain: Chain, rule: HookRule, mark: int) -> str:
        words = []
        bits = f"{mark:#x}/{mark:#x}"
        if rule.interface:
            words.append(f"{chain.option} {rule.interface}")
        if rule.except_interface:
            words.append(f"! {chain.option} {rule.except_interface}")
        if rule.only is not Only.ANYTHING:
            words.append(ONLY[rule.place, rule.only])
        if rule.destination:
            words.append(f"-d {rule.destination}")
        if rule.sender is not None:
            words += [f"-s {rule.sender.address}", *_protocol(rule.sender)]
        if rule.has_mark:
            words.append(f"-m mark --mark {bits}")
        targets = {
            Action.QUEUE: self._queue, Action.DROP: "DROP", Action.MARK: f"MARK --set-xmark {bits}",
            Action.SHED: SHED_CHAIN,
        }
        return " ".join([*words, f"-j {targets[rule.action]}"])

    def _has_jump(self, chain: Chain) -> bool:
        return self._iptables("-t", chain.table, "-C", *chain.jump.split()).returncode == 0

    def _iptables(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return programs.run(["iptables", "-w", *arguments])

    def _restore(self, table: str, lines: list[str]) -> None:
        refusal = self._refusal(table, lines)
        if refusal:
            raise HostError(
                f"iptables-restore refused the hooks in table {table}: {refusal}; "
                "the kernel needs the NFQUEUE target (try: modprobe xt_NFQUEUE) and you need to be root"
            )

    def _refusal(self, table: str, lines: list[str]) -> str:
        """Change a table by these lines; return why it was not done, or nothing."""
        text = "\n".join([f"*{table}", *lines, "COMMIT", ""])
        result = programs.run(["iptables-restore", "-w", "--noflush"], text)
        return programs.said(result) if result.returncode else ""


def _shed_text(kind: Flood, above: int) -> str:
    # The rate is part of the name: one of an engine that was killed would otherwise go on with its rate.
    return (
        f"{FLOODS[kind]} -m recent --name {list_of(kind)} --rcheck --seconds {SHED_S} "
        f"-m hashlimit --hashlimit-name {list_of(kind)}-{above} --hashlimit-mode srcip "
        f"--hashlimit-above {above}/second --hashlimit-burst {max(above // 10, 1)} -j DROP"
    )
