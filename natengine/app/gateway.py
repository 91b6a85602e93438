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
from natengine.adapters.base import DROP_AND_HUSH, PacketIO
from natengine.adapters.clock import now_ns
from natengine.adapters.forwarding import Forwarding
from natengine.adapters.hook_plan import HookPlan, Hooks
from natengine.adapters.hooks import IptablesHooks
from natengine.adapters.localports import read_local_ports
from natengine.adapters.nfqueue import NetfilterQueueIO
from natengine.adapters.rawsend import RawSender
from natengine.adapters.rtnetlink import RouteSocket
from natengine.app.journal import Journal
from natengine.app.loop import Loop
from natengine.errors import ConfigError, HostError
from natengine.fastpath import FastPath, TableConfig, create
from natengine.flow.records import FlowInfo
from natengine.flow.tcp_state import SEGMENT_OF_FLAGS, TRANSITIONS, timeouts_by_state
from natengine.frontend.iptables import parse_command
from natengine.frontend.listing import list_specs
from natengine.frontend.save import dump, parse_restore
from natengine.nat.engine import EngineStats, NatEngine
from natengine.nat.interfaces import InterfaceTable
from natengine.nat.policy import interface_matches, join_uplinks
from natengine.rules.counters import RuleCounters
from natengine.rules.model import RuleSet, Uplinks
from natengine.settings import Settings
from natengine.vocab import Decision, PacketMeta, Reason
from natengine.wire.addr import format_ipv4

T = TypeVar("T")

LOOK_AT_PORTS_NS = 5_000_000_000
LOOK_AT_COUNTERS_NS = 1_000_000_000
STDERR = 2


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


def make_fast_path(choice: str, settings: Settings) -> tuple[str, FastPath]:
    """Return the name of a fast path and an empty one of that kind."""
    config = TableConfig(
        settings.max_flows, timeouts_by_state(settings.timeouts), settings.timeouts.udp_ns,
        settings.timeouts.icmp_query_ns, TRANSITIONS, SEGMENT_OF_FLAGS, os.urandom(16), settings.tcp_liberal,
    )
    return create(choice, config)


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
        self.started_ns = now_ns()
        self.journal = Journal(STDERR)
        self.backend, fast = make_fast_path(config.fastpath, config.settings)
        self.engine = NatEngine(fast, settings=config.settings, rng=random.SystemRandom())
        ruleset, counters = parse_restore(ruleset_text or "", source=source)
        self._undo: list[Callable[[], None]] = []
        try:
            self._routes = self._keep(RouteSocket(), RouteSocket.close)
            self.engine.replace_interfaces(InterfaceTable(self._routes.read()), now_ns())
            self._look_at_local_ports()
            problems = check_uplinks(ruleset.uplinks(), self.engine.interfaces)
            if problems:
                raise HostError("; ".join(problems))
            self.engine.replace_ruleset(ruleset, counters)
            self._sender = self._keep(RawSender(), RawSender.close)
            self.io: PacketIO = self._keep(self._open_io(fast), lambda io: io.close())
            self.hooks: Hooks = self._keep(IptablesHooks(self.io.queues), IptablesHooks.remove)
            self._forwarding = self._keep(Forwarding(config.run_dir), Forwarding.restore)
            if self.engine.uplinks == Uplinks():
                # Whoever was killed here may have left forwarding on, and hooks that are about to go.
                self._forwarding.restore()
            self._take_from(self.engine.uplinks)
            self.loop = self._keep(Loop(self.io, expire=self._expire), Loop.close)
            self.loop.every(LOOK_AT_PORTS_NS, self._look_at_local_ports)
            self.loop.every(LOOK_AT_COUNTERS_NS, self._say_what_is_amiss)
            self.loop.watch(self._routes.fileno(), self._interfaces_changed)
        except BaseException as error:
            try:
                self.close()
            except HostError as leftover:
                raise HostError(f"{error}; besides: {leftover}") from error
            raise

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

    def _decide(self, packet: bytearray, meta: PacketMeta, busy: bool) -> Decision:
        decision = self.engine.process(packet, meta, now_ns(), busy=busy)
        self._send_own()
        return decision

    def _settle(
        self, path: int, packet: bytearray, hook: int, in_ifindex: int, out_ifindex: int, mark: int, at_ns: int,
        busy: bool,
    ) -> tuple[int, bytearray | None]:
        meta = PacketMeta(hook, in_ifindex, out_ifindex, mark)
        decision = self.engine.settle(path, packet, meta, at_ns, busy=busy)
        self._send_own()
        hush = decision.reason is Reason.RATE_LIMIT
        return DROP_AND_HUSH if hush else decision.verdict, decision.packet

    def _expire(self, at_ns: int, budget: int) -> int:
        ended = self.engine.expire(at_ns, budget)
        self._send_own()
        return ended

    def _send_own(self) -> None:
        """Send what the engine itself has to say."""
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

    def _look_at_local_ports(self) -> None:
        self.engine.replace_local_ports(read_local_ports())

    def _say_what_is_amiss(self) -> None:
        self.journal.look({**self._stats().by_reason, **self.io.stats()._asdict()}, now_ns())

    def _stats(self) -> EngineStats:
        self.engine.note_settled(self.io.take_settled())
        return self.engine.stats()

    def _take_from(self, uplinks: Uplinks) -> None:
        """Take packets on these uplinks from now on; forward only once there is one."""
        self.hooks.sync(HookPlan(uplinks.patterns, uplinks.any_interface))
        if uplinks.patterns or uplinks.any_interface:
            self._forwarding.enable()

    def _put_in_force(self, ruleset: RuleSet, counters: RuleCounters | None = None) -> list[str]:
        """Replace the rules (and, unless None, their counters), or change nothing; return warnings."""
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

    def flows(self) -> list[FlowInfo]:
        """Return a copy of the connection table."""
        return self.engine.flows()

    def status(self) -> dict[str, object]:
        """Return what `natengine status --json` prints."""
        stats, io = self._stats(), self.io.stats()
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
            "flows": stats.flows,
            "max_flows": self.config.settings.max_flows,
            "mappings": stats.mappings,
            "overloaded": stats.overloaded,
            "lost_log_lines": self.journal.lost_lines,
            "packets_by_reason": stats.by_reason,
        }
