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
from natengine.adapters.hook_backends import open_hooks, remove_leftovers
from natengine.adapters.hook_plan import HookPlan, Hooks, LocalService
from natengine.adapters.nfqueue import NetfilterQueueIO
from natengine.adapters.queuedrops import packets_without_room
from natengine.adapters.rawsend import RawSender
from natengine.adapters.rtnetlink import RouteSocket
from natengine.app import names
from natengine.app.changes import Changes
from natengine.app.log import Log
from natengine.app.loop import Loop
from natengine.app.port_watch import INTERVAL_NS, PortWatch
from natengine.app.shedding import Shedding
from natengine.app.state import open_table
from natengine.errors import ConfigError, HostError
from natengine.fastpath import FastPath
from natengine.flow.records import FlowInfo
from natengine.frontend.listing import list_specs
from natengine.frontend.save import parse_restore
from natengine.nat.destination import taken_by
from natengine.nat.engine import NatEngine
from natengine.nat.interfaces import LOOPBACK, InterfaceTable, interface_matches, is_uplink, join_uplinks
from natengine.nat.outcomes import EngineStats
from natengine.nat.policy import Policy
from natengine.rules.counters import RuleCounters
from natengine.rules.executable import check_executable
from natengine.rules.matches import ALL_BITS
from natengine.rules.model import LEFT_ALONE, RuleSet, Uplinks
from natengine.settings import Settings
from natengine.vocab import Decision, PacketMeta, Reason
from natengine.wire.addr import format_ipv4

T = TypeVar("T")

TELL_REFUSALS_NS = 1_000_000_000
CANNOT_SHED = "floods cost more than they need to, for the hooks cannot shed them: %s"
SHED = "flood: %%d times a sender was cut down for some seconds, last %s; see packets_shed in status"
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
    """Joins the engine and the adapters.  Methods belong to the packet thread, `call` and `changes` to all others."""

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
        self._marks_of_others = ALL_BITS & ~config.settings.hairpin_mark
        self.shedding: Shedding | None = None       # while the hooks can do it
        ruleset, counters = parse_restore(
            ruleset_text or "", source=source, resolver=names.addresses, services=names.port,
            report=lambda warning: self.log.write(f"{source}: warning: {warning}"),
        )
        check_executable(ruleset)
        self.backend, fast, self.state = open_table(config.fastpath, config.settings, config.state)
        self.changes = Changes(self)
        self._undo: list[Callable[[], None]] = []
        if self.state is not None:
            if self.state.note:
                self.log.write(self.state.note)
            self._keep(self.state, lambda state: state.close(keep=len(fast) > 0))
        self._ports = PortWatch(lambda ports: self.engine.replace_local_ports(ports), self.log)
        self.engine = NatEngine(
            fast, settings=config.settings, rng=random.SystemRandom(), look_at_ports=self._ports.look_for_knock
        )
        try:
            self._open(fast, ruleset, counters)
        except BaseException as error:
            try:
                self.close()
            except HostError as leftover:
                raise HostError(f"{error}; besides: {leftover}") from error
            raise

    def _open(self, fast: FastPath, ruleset: RuleSet, counters: RuleCounters) -> None:
        """Get hold of everything that a gateway needs of the machine, in the order of a start."""
        config = self.config
        self._routes = self._keep(RouteSocket(), RouteSocket.close)
        self.engine.replace_interfaces(InterfaceTable(*self._routes.read()), now_ns())
        problems = check_uplinks(ruleset.uplinks(), self.engine.interfaces)
        if problems:
            raise HostError("; ".join(problems))
        self.engine.replace_ruleset(ruleset, counters)
        self.taken_over = self.engine.take_over(config.settings.max_flows, now_ns())
        self._ports.look()
        self._sender = self._keep(RawSender(), RawSender.close)
        self.io: PacketIO = self._keep(self._open_io(fast), lambda io: io.close())
        self.hooks: Hooks = open_hooks(config.settings.hooks.value, self.io.queues)
        self._undo.append(self._unhook)
        self._forwarding = self._keep(Forwarding(config.run_dir), Forwarding.restore)
        if self.engine.uplinks == Uplinks():
            # Whoever was killed here may have left forwarding on, and hooks that are about to go.
            self._forwarding.restore()
        self._take_from(self.engine.uplinks, ruleset)
        if self.hooks.cannot_shed:
            self.log.write(CANNOT_SHED % self.hooks.cannot_shed)
        else:
            self.shedding = Shedding()
        remove_leftovers(self.hooks)
        self.loop = self._keep(Loop(self.io, expire=self._expire), Loop.close)
        self.loop.every(INTERVAL_NS, self._ports.look)
        self.loop.every(TELL_REFUSALS_NS, self._tell_refusals)
        self.loop.watch(self._routes.fileno(), self._interfaces_changed)

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

    def _decide(self, packet: bytearray, meta: PacketMeta, busy: bool) -> Decision:
        meta, at_ns = meta._replace(mark=meta.mark & self._marks_of_others), now_ns()
        decision = self.engine.process(packet, meta, at_ns, busy=busy or self._sheds(packet, meta, at_ns))
        self._follow_up()
        if decision.reason is Reason.RATE_LIMIT:
            self._shed(packet, meta, at_ns)
        return decision

    def _settle(
        self, path: int, packet: bytearray, hook: int, in_ifindex: int, out_ifindex: int, mark: int, link_src: bytes,
        at_ns: int, busy: bool,
    ) -> tuple[int, bytearray | None, int]:
        meta = PacketMeta(hook, in_ifindex, out_ifindex, mark & self._marks_of_others, link_src)
        busy = busy or self._sheds(packet, meta, at_ns)
        decision = self.engine.settle(path, packet, meta, at_ns, busy=busy)
        self._follow_up()
        if decision.reason is Reason.RATE_LIMIT:
            self._shed(packet, meta, at_ns)
            return DROP_AND_HUSH, None, 0
        return decision.verdict, decision.packet, decision.ticket

    def _sheds(self, packet: bytearray, meta: PacketMeta, at_ns: int) -> bool:
        return self.shedding is not None and self.shedding.sheds(packet, meta, at_ns)

    def _shed(self, packet: bytearray, meta: PacketMeta, at_ns: int) -> None:
        """Name the sender of a packet that was refused for its rate to the hooks, if it floods."""
        if self.shedding is None or (flooder := self.shedding.refuse(packet, meta, at_ns)) is None:
            return
        self.log.tell("shed", self.shedding.named, SHED % format_ipv4(flooder.address), at_ns)
        try:
            self.hooks.shed(flooder)
        except HostError as error:
            self.shedding = None
            self.log.write(CANNOT_SHED % error)

    def _expire(self, at_ns: int, budget: int) -> int:
        ended = self.engine.expire(at_ns, budget)
        self._follow_up()
        return ended

    def _follow_up(self) -> None:
        """Release the packets that were held until now, and say what the engine has to say, to hosts and to the log."""
        for decision in self.engine.take_released():
            self.io.release(decision)
        if self.engine.outbox:
            self._sender.send(self.engine.outbox.take())
        if self.engine.log:
            self.log.write_lines(self.engine.log.take())

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
        self.engine.replace_interfaces(InterfaceTable(*self._routes.read()), now_ns())
        try:
            self.hooks.sync(self._plan(self.engine.uplinks, self.engine.ruleset))
        except HostError as error:      # what is translated goes on; it is tried again at the next change
            self.log.write(str(error))

    def _tell_refusals(self) -> None:
        self.log.tell_refusals({**self._stats().by_reason, **self._io_stats()}, now_ns())

    def _io_stats(self) -> dict[str, int]:
        return {**self.io.stats()._asdict(), "queue_full": packets_without_room(*self.io.queues)}

    def _stats(self) -> EngineStats:
        self.engine.note_settled(self.io.take_settled())
        return self.engine.stats()

    def _take_from(self, uplinks: Uplinks, ruleset: RuleSet) -> None:
        """Take packets on these uplinks from now on; forward only once there is one."""
        self.hooks.sync(self._plan(uplinks, ruleset))
        if uplinks.patterns or uplinks.any_interface:
            self._forwarding.enable()

    def _plan(self, uplinks: Uplinks, ruleset: RuleSet) -> HookPlan:
        """Return what to take: the uplinks, what is for an uplink's address, what rules give another destination."""
        interfaces, mark = self.engine.interfaces, self.config.settings.hairpin_mark
        own = {ip: None for each in interfaces if is_uplink(each, uplinks) for ip in each.addresses}
        taken = taken_by(ruleset, frozenset(own) if mark else frozenset())
        if taken.output:                # an answer may be for any address of the head's
            if not mark:
                raise ConfigError("rules in nat OUTPUT need hairpin_mark, which natengine.toml sets to 0")
            own.update((ip, None) for ip in interfaces.addresses if not LOOPBACK.contains(ip))
        return HookPlan(
            tuple(dict.fromkeys(uplinks.patterns + taken.interfaces)), uplinks.any_interface or taken.any_interface,
            addresses=tuple(map(format_ipv4, own)), mark=mark, own_destinations=tuple(map(str, taken.output)),
            own_services=tuple(
                LocalService(format_ipv4(each.address), each.proto, each.ports)
                for each in taken.answering if interfaces.owns(each.address)
            ),
            flows_a_second=self.config.settings.new_flows_when_busy,
        )

    def put_in_force(
        self, ruleset: RuleSet, counters: RuleCounters | None = None, made: Policy | None = None
    ) -> list[str]:
        """Replace the rules (and, unless None, their counters), or change nothing; return warnings.

        Args:
            made: What `NatEngine.compile` has made of them.

        Raises:
            HostError: The hooks that the rules need cannot be installed.
        """
        # The hooks first: they may fail, and a packet that they bring is only looked at after this.
        self._take_from(join_uplinks(self.engine.uplinks, ruleset.uplinks()), ruleset)
        self.engine.replace_ruleset(ruleset, counters, made)
        return check_uplinks(ruleset.uplinks(), self.engine.interfaces)

    def flush_flows(self) -> None:
        """End every flow."""
        self.delete_flows([info.flow_id for info in self.engine.flows()])

    def delete_flows(self, flow_ids: list[int]) -> int:
        """End these flows and return how many of them there were."""
        return sum(self.engine.remove_flow(flow_id, now_ns()) for flow_id in flow_ids)

    # ── questions ────────────────────────────────────────────────────────────────────────────────

    def flows(self, first_id: int = 0) -> tuple[list[FlowInfo], int | None]:
        """Return a copy of a piece of the connection table, and where the next one begins; None at the end."""
        end = min(first_id + LOOKS_A_TURN, self.config.settings.max_flows)
        return self.engine.flows(range(first_id, end)), end if end < self.config.settings.max_flows else None

    def shed_packets(self) -> int:
        """Return how many packets the hooks have shed.  Asks another program: not for the packet thread."""
        shedding = self.shedding
        return self.hooks.shed_packets() if shedding is not None and shedding.named else 0

    def status(self) -> dict[str, object]:
        """Return what `natengine status --json` prints."""
        stats = self._stats()
        uplinks = self.engine.uplinks
        shed = self.shedding.senders(now_ns()) if self.shedding else []
        return {
            "version": __version__,
            "pid": os.getpid(),
            "uptime_s": (now_ns() - self.started_ns) // 1_000_000_000,
            "fastpath": self.backend,
            "io": {"name": self.io.name, "queues": self.io.queues, **self._io_stats()},
            "hooks": self.hooks.name,
            "interfaces": [
                {
                    "name": each.name,
                    "ifindex": each.ifindex,
                    "up": each.up,
                    "addresses": [format_ipv4(ip) for ip in each.addresses],
                    "uplink": is_uplink(each, uplinks),
                }
                for each in self.engine.interfaces
            ],
            "rules": {
                table.name.value: list_specs(self.engine.ruleset, table=table.name).splitlines()
                for table in self.engine.ruleset.tables
                if not (table.name in LEFT_ALONE and table.untouched)
            },
            "log_lines_lost": self.log.lost,
            "state": None if self.state is None else {"file": str(self.state.path), "taken_over": self.taken_over},
            "flows": stats.flows,
            "max_flows": self.config.settings.max_flows,
            "mappings": stats.mappings,
            "overloaded": stats.overloaded,
            "senders_shed": [format_ipv4(each.address) for each in shed],
            "fragments": {"datagrams": stats.fragment_trains, "held": stats.held_fragments},
            "packets_by_reason": stats.by_reason,
        }
