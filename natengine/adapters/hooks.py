"""The rules that send packets to the queue, in chains of our own, through xtables.

    raw    PREROUTING   -j natengine-in    -i UPLINK  -j NFQUEUE     before conntrack and routing
    mangle POSTROUTING  -j natengine-out   -o UPLINK  -j NFQUEUE     after routing

No `--queue-bypass`: when nobody listens on the queue, nothing passes (fail closed).  Everything is
changed by `iptables-restore --noflush`, one transaction a table, and touches our two chains and the
two jumps to them, nothing else.  Chains that a killed engine left behind are taken over.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
from typing import NamedTuple

from natengine.errors import HostError

COMMAND_TIMEOUT_S = 30
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class HookPoint(NamedTuple):
    """One of our chains and where it hangs."""

    table: str
    builtin: str
    chain: str
    option: str                 # how its rules name the uplink

    @property
    def jump(self) -> str:
        return f"{self.builtin} -j {self.chain}"


# the order of installation: outbound first, so that nothing can leave before it is looked at
HOOK_POINTS = (
    HookPoint("mangle", "POSTROUTING", "natengine-out", "-o"),
    HookPoint("raw", "PREROUTING", "natengine-in", "-i"),
)


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
        self._target = "NFQUEUE " + (f"--queue-num {first}" if first == last else f"--queue-balance {first}:{last}")
        for program in ("iptables", "iptables-restore"):
            if shutil.which(program) is None:
                raise HostError(f"{program} is not installed (Debian: apt-get install iptables)")
        self._installed: tuple[tuple[str, ...], bool] | None = None

    def sync(self, patterns: tuple[str, ...], any_interface: bool) -> None:
        """Take packets on exactly these uplinks from now on.

        Args:
            patterns: Interface names; a trailing `+` is iptables' wildcard.
            any_interface: Every interface but the loopback, whatever `patterns` says.

        Raises:
            HostError: The kernel or iptables refuses, for instance for want of the NFQUEUE target.
        """
        wanted = (patterns, any_interface)
        if wanted == self._installed:
            return
        for point in HOOK_POINTS:
            rules = [self._rule(point, pattern) for pattern in ([None] if any_interface else patterns)]
            jump = [] if self._has_jump(point) else [f"-I {point.jump}"]
            self._restore(point.table, [f":{point.chain} - [0:0]", *rules, *jump])
        self._installed = wanted

    def remove(self) -> None:
        """Take our chains and jumps out; what is not there is no error."""
        for point in reversed(HOOK_POINTS):
            jump = [f"-D {point.jump}"] if self._has_jump(point) else []
            if jump or self._iptables("-t", point.table, "-n", "-L", point.chain).returncode == 0:
                self._restore(point.table, [f":{point.chain} - [0:0]", *jump, f"-X {point.chain}"])
        self._installed = None

    def _rule(self, point: HookPoint, pattern: str | None) -> str:
        interface = f"{point.option} {pattern}" if pattern else f"! {point.option} lo"
        return f"-A {point.chain} {interface} -j {self._target}"

    def _has_jump(self, point: HookPoint) -> bool:
        return self._iptables("-t", point.table, "-C", *point.jump.split()).returncode == 0

    def _iptables(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return _run(["iptables", "-w", *arguments], None)

    def _restore(self, table: str, lines: list[str]) -> None:
        text = "\n".join([f"*{table}", *lines, "COMMIT", ""])
        result = _run(["iptables-restore", "-w", "--noflush"], text)
        if result.returncode:
            said = " ".join(result.stderr.split())
            raise HostError(
                f"iptables-restore refused the hooks in table {table}: {said or result.returncode}; "
                "the kernel needs the NFQUEUE target (try: modprobe xt_NFQUEUE) and you need to be root"
            )


def _run(argv: list[str], text: str | None) -> subprocess.CompletedProcess[str]:
    # A Ctrl-C goes to the whole process group, and must not cut a transaction short.  The child
    # inherits the mask; a process group of its own would come a moment too late.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        return subprocess.run(
            argv, input=text, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise HostError(f"{argv[0]} has not answered for {COMMAND_TIMEOUT_S} s") from None
    except OSError as error:
        raise HostError(f"cannot run {argv[0]}: {error.strerror}") from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
