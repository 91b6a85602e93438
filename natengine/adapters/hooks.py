"""The rules of a `HookPlan`, in chains of our own, through xtables.

    raw    PREROUTING   -j natengine-in    -i UPLINK  -j NFQUEUE
                                           ! -i lo -d ADDRESS  -j MARK
                                           ! -i lo -m mark  -j NFQUEUE
    mangle POSTROUTING  -j natengine-out   -o UPLINK  -j NFQUEUE
                                           ! -o lo -m mark  -j NFQUEUE
    raw    OUTPUT       -j natengine-send     -d DESTINATION  -j MARK, then -m mark  -j NFQUEUE
    mangle INPUT        -j natengine-receive  as natengine-out, and
                                           -i lo -s ADDRESS -p tcp --sport PORT  -j NFQUEUE

No `--queue-bypass`: when nobody listens on the queue, nothing passes (fail closed).  Everything is
changed by `iptables-restore --noflush`, one transaction a chain, and touches our chains and the
jumps to them, nothing else.  Chains that a killed engine left behind are taken over.
"""

from __future__ import annotations

import shutil
import subprocess
from typing import NamedTuple

from natengine.adapters import programs
from natengine.adapters.hook_plan import ALWAYS, Action, HookPlan, HookRule, LocalService, Only, Place
from natengine.errors import HostError


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

    def sync(self, plan: HookPlan) -> None:
        """Take exactly what this plan says from now on.

        Raises:
            HostError: The kernel or iptables refuses, for instance for want of the NFQUEUE target.
        """
        if plan == self._installed:
            return
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
        self._installed = plan

    def remove(self) -> None:
        """Take our chains and jumps out; what is not there is no error."""
        for chain in reversed(CHAINS.values()):
            jump = [f"-D {chain.jump}"] if self._has_jump(chain) else []
            if jump or self._iptables("-t", chain.table, "-n", "-L", chain.name).returncode == 0:
                self._restore(chain.table, [f":{chain.name} - [0:0]", *jump, f"-X {chain.name}"])
        self._installed = None

    def is_installed(self) -> bool:
        """Whether chains of ours are there.  Asks for no table by name: the kernel would make it."""
        saved = programs.run(["iptables-save"]).stdout
        return any(f":{chain.name} " in saved for chain in CHAINS.values())

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
        targets = {Action.QUEUE: self._queue, Action.DROP: "DROP", Action.MARK: f"MARK --set-xmark {bits}"}
        return " ".join([*words, f"-j {targets[rule.action]}"])

    def _has_jump(self, chain: Chain) -> bool:
        return self._iptables("-t", chain.table, "-C", *chain.jump.split()).returncode == 0

    def _iptables(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return programs.run(["iptables", "-w", *arguments])

    def _restore(self, table: str, lines: list[str]) -> None:
        text = "\n".join([f"*{table}", *lines, "COMMIT", ""])
        result = programs.run(["iptables-restore", "-w", "--noflush"], text)
        if result.returncode:
            raise HostError(
                f"iptables-restore refused the hooks in table {table}: {programs.said(result)}; "
                "the kernel needs the NFQUEUE target (try: modprobe xt_NFQUEUE) and you need to be root"
            )
