"""The running gateway: an engine, the hooks that feed it, and the interfaces it learns about.

Order of a start: queue, rules, hooks, forwarding.  A packet can only be forwarded when there is
somebody to translate it; whatever fails on the way, everything done so far is taken back.  The
order of a stop is the reverse.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from natengine import __version__
from natengine.adapters.base import PacketIO
from natengine.adapters.clock import now_ns
from natengine.adapters.forwarding import Forwarding
from natengine.adapters.hook_backends import open_hooks, remove_leftovers
from natengine.adapters.hook_plan import HookPlan, Hooks
from natengine.adapters.localports import read_local_ports
from natengine.adapters.nfqueue import NetfilterQueueIO
from natengine.adapters.rawsend import RawSender
from natengine.adapters.rtnetlink import RouteSocket
from natengine.app.log import Log
from natengine.app.loop import Loop
from natengine.app.state import open_table
from natengine.errors import ConfigError, HostError
from natengine.fastpath import FastPath
from natengine.flow.records import FlowInfo
from natengine.frontend.iptables import parse_command
from natengine.frontend.listing import list_specs
from natengine.frontend.save import dump, parse_restore
from natengine.nat.engine import NatEngine
from natengine.nat.interfaces import InterfaceTable
from natengine.nat.policy import interface_matches, join_uplinks
from natengine.rules.counters import RuleCounters
from natengine.rules.executable import check_executable
from natengine.rules.model import RuleSet, Uplinks
from natengine.settings import Settings
from natengine.vocab import Decision, PacketMeta
from natengine.wire.addr import format_ipv4

T = TypeVar("T")

LOOK_AT_PORTS_NS = 5_000_000_000
TELL_REFUSALS_NS = 1_000_000_000
LOOKS_A_TURN = 4096                 # flows that are copied between two batches of packets: some milliseconds


@dataclass(frozen=True)
class GatewayConfig:
    """What a gateway is started with."""

    run_dir: Path
    queue_num: int
    queue_count: int = 1
    busy_poll_us: int = 0
    io: str = "auto"
    fastpath: str = "auto"
    settings: Settings = field(default_factory=Settings)
    state: Path | None = None           # the state file; None for none
    guard: bool = False                 # whether the uplinks stay closed when it stops
    readers: int | None = None          # a group that may look, by its number


def check_uplinks(uplinks: Uplinks, interfaces: InterfaceTable) -> list[str]:
    """Return what is wrong with the uplinks that the rules name, a line each."""
    problems = []
    for pattern in uplinks.patterns:
        found = [each for each in interfaces if interface_matches(pattern, each.name)]
        if not found:
            problems.append(
                f"uplink {pattern}: no such interface; create it first or correct the rule (ip link shows them all)"
            )
        elif not any(each.addresses for each in found):
            problems.append(
                f"uplink {pattern} has no IPv4 address; give it one: ip address add A.B.C.D/LEN dev {pattern}"
            )
    return problems


class Gateway:
    """Joins the engine and the adapters.  Every method but `call` belongs to the packet thread."""

    def __init__(self, config: GatewayConfig, ruleset_text: str | None, source: str) -> None:
        """Bring everything up but the loop; see `run`.

        Args:
            ruleset_text: iptables-save text; None for no rules.
            source: Where the text is from, for error messages.

        Raises:
            ConfigError: The rules cannot be read.
            HostError: The machine cannot do it.  Nothing is left installed.
        """
        self.config = config
        self.log = Log()
        self.started_ns = now_ns()
        ruleset, counters = parse_restore(ruleset_text or "", source=source)
        check_executable(ruleset)
        self._undo: list[Callable[[], None]] = []
        fast = self._open_table()
        self.engine = NatEngine(fast, settings=config.settings, rng=random.SystemRandom())
        try:
            self._routes = self._keep(RouteSocket(), RouteSocket.close)
            self.engine.replace_interfaces(InterfaceTable(self._routes.read()), now_ns())
            self.taken_over = self.engine.take_over(config.settings.max_flows, now_ns())
            self._look_at_local_ports()
            problems = check_uplinks(ruleset.uplinks(), self.engine.interfaces)
            if problems:
                raise HostError("; ".join(problems))
            self.engine.replace_ruleset(ruleset, counters)
            self._sender = self._keep(RawSender(), RawSender.close)
            self.io: PacketIO = self._keep(self._open_io(fast), lambda io: io.close())
            self.hooks: Hooks = open_hooks(config.settings.hooks.value, self.io.queues)
            self._undo.append(self._unhook)
            self._forwarding = self._keep(Forwarding(config.run_dir), Forwarding.restore)
            if self.engine.uplinks == Uplinks():
                # Whoever was killed here may have left forwarding on, and hooks that are about to go.
                self._forwarding.restore()
            self._take_from(self.engine.uplinks)
            remove_leftovers(self.hooks)
            self.loop = self._keep(Loop(self.io, expire=self._expire), Loop.close)
            self.loop.every(LOOK_AT_PORTS_NS, self._look_at_local_ports)
            self.loop.every(TELL_REFUSALS_NS, self._tell_refusals)
            self.loop.watch(self._routes.fileno(), self._interfaces_changed)
        except BaseException as error:
            try:
                self.close()
            except HostError as leftover:
                raise HostError(f"{error}; besides: {leftover}") from error
            raise

    def _open_table(self) -> FastPath:
        """Make the flow table, with the flows of the state file."""
        self.backend, fast, self.state = open_table(self.config.fastpath, self.config.settings, self.config.state)
        if self.state is not None:
            self._keep(self.state, lambda state: state.close(keep=len(fast) > 0))
            if self.state.note:
                self.log.write(self.state.note)
        return fast

    def _unhook(self) -> None:
        """Take the hooks out; or leave a guard, so that a gateway that has stopped is closed."""
        uplinks = self.engine.uplinks
        if self.config.guard and uplinks != Uplinks():
            self.hooks.sync(HookPlan(uplinks.patterns, uplinks.any_interface, guard=True))
        else:
            self.hooks.remove()

    def _keep(self, thing: T, undo: Callable[[T], None]) -> T:
        self._undo.append(lambda: undo(thing))
        return thing

    def _open_io(self, fast: FastPath) -> PacketIO:
        """Bind the queue through the adapter that was asked for; `auto` takes the batched one if it can."""
        config = self.config
        batched = config.io == "batched" or (config.io == "auto" and self.backend == "cython")
        if not batched:
            if config.queue_count > 1:
                raise ConfigError("--queues needs the batched adapter (--io batched)")
            return NetfilterQueueIO(config.queue_num, self._decide)
        if self.backend != "cython":
            raise ConfigError(f"--io batched needs the compiled fast path, but NATENGINE_FASTPATH is {config.fastpath}")
        try:
            from natengine.adapters.batched import BatchedIO  # an extension: not everybody has built it
        except ImportError as error:
            raise HostError(
                f"the batched adapter cannot be loaded ({error}); build it with `pip install .`, "
                "or say --io netfilterqueue"
            ) from error

        return BatchedIO(
            config.queue_num, fast, self._settle, queue_count=config.queue_count, busy_poll_us=config.busy_poll_us
        )

    def _decide(self, packet: bytearray, meta: PacketMeta) -> Decision:
        decision = self.engine.process(packet, meta, now_ns())
        self._follow_up()
        return decision

    def _settle(
        self, path: int, packet: bytearray, hook: int, in_ifindex: int, out_ifindex: int, mark: int, at_ns: int
    ) -> tuple[int, bytearray | None, int]:
        decision = self.engine.settle(path, packet, PacketMeta(hook, in_ifindex, out_ifindex, mark), at_ns)
        self._follow_up()
        return decision.verdict, decision.packet, decision.ticket

    def _expire(self, at_ns: int, budget: int) -> int:
        ended = self.engine.expire(at_ns, budget)
        self._follow_up()
        return ended

    def _follow_up(self) -> None:
        """Release the packets that were held until now, and send what the engine itself has to say."""
        for decision in self.engine.take_released():
            self.io.release(decision)
        if self.engine.outbox:
            self._sender.send(self.engine.outbox.take())

    def call(self, function: Callable[[], T]) -> T:
        """Run a function in the packet thread, from any other one."""
        return self.loop.call(function)

    def close(self) -> None:
        """Take everything back, last thing first.

        Raises:
            HostError: Something could not be taken back; everything else was.
        """
        failure = None
        while self._undo:
            try:
                self._undo.pop()()
            except OSError as error:    # a HostError is one
                failure = failure or error
        if failure is not None:
            raise HostError(f"could not clean up: {failure}") from failure

    # ── changes ──────────────────────────────────────────────────────────────────────────────────

    def _interfaces_changed(self) -> None:
        self._routes.drain()
        self.engine.replace_interfaces(InterfaceTable(self._routes.read()), now_ns())

    def _tell_refusals(self) -> None:
        self.log.tell_refusals(self.engine.stats().by_reason, now_ns())

    def _look_at_local_ports(self) -> None:
        self.engine.replace_local_ports(read_local_ports())

    def _take_from(self, uplinks: Uplinks) -> None:
        """Take packets on these uplinks from now on; forward only once there is one."""
        self.hooks.sync(HookPlan(uplinks.patterns, uplinks.any_interface))
        if uplinks.patterns or uplinks.any_interface:
            self._forwarding.enable()

    def _put_in_force(self, ruleset: RuleSet, counters: RuleCounters | None = None) -> list[str]:
        """Replace the rules (and, unless None, their counters), or change nothing; return warnings."""
        check_executable(ruleset)
        # The hooks first: they may fail, and a packet that they bring is only looked at after this.
        self._take_from(join_uplinks(self.engine.uplinks, ruleset.uplinks()))
        self.engine.replace_ruleset(ruleset, counters)
        return check_uplinks(ruleset.uplinks(), self.engine.interfaces)

    def change(self, argv: list[str]) -> list[str]:
        """Carry out one iptables command that changes something; return warnings.

        Raises:
            ConfigError: It cannot be read, or the rule set refuses it.
            HostError: The hooks it needs cannot be installed.
        """
        command = parse_command(argv)
        before = self.engine.ruleset
        after = command.apply(before)
        warnings = [] if after is before else self._put_in_force(after)
        command.touch_counters(before, after, self.engine.counters)
        return warnings

    def delete_flows(self, flow_ids: list[int]) -> int:
        """End these flows and return how many of them there were."""
        return sum(self.engine.remove_flow(flow_id, now_ns()) for flow_id in flow_ids)

    def restore(self, text: str) -> list[str]:
        """Replace the tables that iptables-save text names; return warnings."""
        return self._put_in_force(
            *parse_restore(text, base=self.engine.ruleset, base_counters=self.engine.counters)
        )

    # ── questions ────────────────────────────────────────────────────────────────────────────────

    def save_text(self, *, counters: bool) -> str:
        """Return the rule set as iptables-save text."""
        return dump(self.engine.ruleset, self.engine.counters if counters else None)

    def flows(self, first_id: int = 0) -> tuple[list[FlowInfo], int | None]:
        """Return a copy of a piece of the connection table, and where the next one begins; None at the end."""
        end = min(first_id + LOOKS_A_TURN, self.config.settings.max_flows)
        return self.engine.flows(range(first_id, end)), end if end < self.config.settings.max_flows else None

    def status(self) -> dict[str, object]:
        """Return what `natengine status --json` prints."""
        self.engine.note_settled(self.io.take_settled())
        stats, io = self.engine.stats(), self.io.stats()
        uplinks = self.engine.uplinks
        return {
            "version": __version__,
            "pid": os.getpid(),
            "uptime_s": (now_ns() - self.started_ns) // 1_000_000_000,
            "fastpath": self.backend,
            "io": {"name": self.io.name, "queues": self.io.queues, **io._asdict()},
            "hooks": self.hooks.name,
            "interfaces": [
                {
                    "name": each.name,
                    "ifindex": each.ifindex,
                    "up": each.up,
                    "addresses": [format_ipv4(ip) for ip in each.addresses],
                    "uplink": any(interface_matches(pattern, each.name) for pattern in uplinks.patterns)
                    or (uplinks.any_interface and each.default_route),
                }
                for each in self.engine.interfaces
            ],
            "rules": {
                table.name.value: list_specs(self.engine.ruleset, table=table.name).splitlines()
                for table in self.engine.ruleset.tables
            },
            "log_lines_lost": self.log.lost,
            "state": None if self.state is None else {"file": str(self.state.path), "taken_over": self.taken_over},
            "flows": stats.flows,
            "max_flows": self.config.settings.max_flows,
            "mappings": stats.mappings,
            "overloaded": stats.overloaded,
            "fragments": {"datagrams": stats.fragment_trains, "held": stats.held_fragments},
            "packets_by_reason": stats.by_reason,
        }
