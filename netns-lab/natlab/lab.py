"""A whole lab: six namespaces, their links and their servers, up and down as one."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from . import interrupts, links, namespace, processes, record, servers
from .capture import Capture
from .errors import LabError
from .node import Node
from .plan import ECHO_PORT, HTTP_PORT, IPERF_PORT, NODES, SERVER_NODES, LinkKind
from .record import Record, Server

DEFAULT_PREFIX = "natlab"
NAT_SERVER = "http+echo"
NAT_SERVER_PORTS = [("tcp", HTTP_PORT), ("tcp", ECHO_PORT), ("udp", ECHO_PORT)]


def unique_prefix(tag: str) -> str:
    """A prefix that no other lab has: `tag` and six random characters."""
    return record.check_prefix(f"{tag}{secrets.token_hex(3)}")


class Lab:
    """The cluster of `plan.py` in network namespaces PREFIX-head, PREFIX-worker1, …

        with Lab(unique_prefix("t")) as lab:
            lab.node("worker1").run(["ping", "-c1", "10.1.0.1"], timeout=5)

    As a context manager it takes down at the end only what it took up at the start: a lab that was
    up already stays up.  Every method that acts needs root.
    """

    def __init__(self, prefix: str = DEFAULT_PREFIX, *, links: LinkKind | None = None) -> None:
        """Name a lab; nothing happens yet.

        Args:
            links: What the head's interfaces shall be made of; None for bond/vlan where the kernel has
                both and veth elsewhere.  A choice that the kernel cannot honour is an error at `up`.
        """
        self.prefix = record.check_prefix(prefix)
        self._wanted_links = links
        self._made_here = False
        self._nodes = {name: Node(name, f"{prefix}-{name}") for name in NODES}

    def __enter__(self) -> Lab:
        self._made_here = self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._made_here:
            self.down()

    def node(self, name: str) -> Node:
        """The node called `name`; the same object every time.

        Raises:
            LabError: There is no such node.
        """
        if name not in self._nodes:
            raise LabError(f"there is no node {name!r}: the nodes are {', '.join(NODES)}")
        return self._nodes[name]

    def capture(self, node: str, interface: str, filter: str = "") -> Capture:
        """A context manager that records the packets of an interface; see `Capture`."""
        return Capture(self.node(node), interface, filter, record.files_dir(self.prefix))

    def up(self) -> bool:
        """Make the lab and return True; return False if it is up already.

        When it returns, every interface is operational and every server listens.

        Raises:
            LabError: It cannot be made, or an earlier one is in pieces.  What this call made is gone again.
        """
        _require_root()
        with interrupts.deferred(), record.locked(self.prefix):
            found = record.load(self.prefix)
            if found is not None and found.is_of_this_boot:
                if troubles := _troubles(found):
                    raise LabError(f"{self.prefix} is damaged ({'; '.join(troubles)}): take it down first")
                return False
            if found is not None:
                _clear_leftovers(found)
            made = Record(self.prefix, processes.boot_id())
            try:
                made.save()
                self._build(made)
            except BaseException:
                self._demolish(made)
                raise
            return True

    def down(self) -> bool:
        """Take down what the lab made and return True; return False if it is not up.

        Raises:
            LabError: A namespace with one of the lab's names is not the lab's; it was left alone.
        """
        _require_root()
        # Where there is nothing, taking the lock would make a directory for nothing.
        if not record.record_path(self.prefix).exists() and not record.files_dir(self.prefix).exists():
            return False
        with interrupts.deferred(), record.locked(self.prefix):
            found = record.load(self.prefix)
            if found is None or not found.is_of_this_boot:
                if found is not None:
                    _clear_leftovers(found)
                record.forget(self.prefix)
                return False
            if foreign := self._demolish(found):
                raise LabError(f"left alone, because this lab did not make it: {', '.join(foreign)}")
            return True

    def status(self) -> dict[str, Any]:
        """What is there now, in terms that JSON has.

        Returns:
            prefix: The lab's.
            up: Whether it is there and whole.  If it is not there at all, that is all.
            links: "bond/vlan", "lacp/vlan" or "veth".
            troubles: Why it is not whole, a list of sentences.
            nodes: By name, "netns" and "interfaces" (see `links.describe`).
            servers: A list of "node", "name", "ports", "pid" and "alive".
            absent: What could not be started, and why.
        """
        _require_root()
        found = record.load(self.prefix)
        if found is None or not found.is_of_this_boot:
            return {"prefix": self.prefix, "up": False}
        troubles = _troubles(found)
        nodes = {
            name: {"netns": node.netns, "interfaces": links.describe(node)}
            for name, node in self._nodes.items()
            if namespace.identity_of(node.netns) == found.namespaces.get(node.netns) is not None
        }
        return {
            "prefix": self.prefix,
            "up": not troubles,
            "links": found.links.value,
            "troubles": troubles,
            "nodes": nodes,
            "servers": [
                {
                    "node": server.node,
                    "name": server.name,
                    "ports": [f"{port}/{protocol}" for protocol, port in server.ports],
                    "pid": server.pid,
                    "alive": server.alive,
                }
                for server in found.servers
            ],
            "absent": found.absent,
        }

    def require_up(self) -> None:
        """Return if the lab has been taken up.

        Raises:
            LabError: It has not, or there is no permission.
        """
        _require_root()
        found = record.load(self.prefix)
        if found is None or not found.is_of_this_boot:
            raise LabError(f"{self.prefix} is not up")

    def _build(self, made: Record) -> None:
        for node in self._nodes.values():
            interrupts.check()
            self._make_namespace(node.netns, made)
            _prepare(node)
        with links.Builder(self._nodes) as builder:
            made.links = self._choose_links(builder)
            builder.build(made.links)
            interrupts.check()
            self._start_servers(made)
            builder.wait_for_carrier()
        for server in made.servers:
            processes.wait_until_listening(server.pid, server.ports, self._log(server.node, server.name))
        interrupts.check()   # the last chance: from here on the lab is up
        made.complete = True
        made.save()

    def _make_namespace(self, name: str, made: Record) -> None:
        # Noted before it is made: whoever kills us in between leaves a name that was free just now.
        namespace.require_free(name)
        made.namespaces[name] = None
        made.save()
        try:
            made.namespaces[name] = namespace.create(name)
        except LabError:
            del made.namespaces[name]
            raise
        finally:
            made.save()

    def _choose_links(self, builder: links.Builder) -> LinkKind:
        if self._wanted_links is LinkKind.VETH:
            return LinkKind.VETH
        if builder.supports_bond_vlan():
            return self._wanted_links or LinkKind.BOND_VLAN
        if self._wanted_links is not None:
            raise LabError("this kernel lacks bonding, 802.1Q or VLAN-aware bridges")
        return LinkKind.VETH

    def _start_servers(self, made: Record) -> None:
        script = [sys.executable, "-I", "-S", str(Path(servers.__file__).resolve())]
        wanted = [(NAT_SERVER, script, NAT_SERVER_PORTS)]
        if iperf := shutil.which("iperf3"):
            wanted.append(("iperf3", [iperf, "-s", "-4"], [("tcp", IPERF_PORT)]))
        else:
            made.absent.append("iperf3 (not installed)")
        for name in SERVER_NODES:
            for server, argv, ports in wanted:
                pid = processes.start_detached(self._nodes[name], argv, self._log(name, server))
                # 0 if it has ended already: nothing to stop then, and the wait for it says why.
                made.servers.append(Server(name, server, ports, pid, processes.start_time(pid) or 0))
                made.save()

    def _log(self, node: str, server: str) -> Path:
        return record.files_dir(self.prefix) / f"{node}-{server}.log"

    def _demolish(self, made: Record) -> list[str]:
        """Take down what the record names, then the record; return the names that are not ours."""
        for node in self._nodes.values():
            node.end_children()
        for server in made.servers:
            processes.stop(server.pid, server.start_time)
        if not made.complete:   # a server may have been started and not noted; its log is proof enough
            for pid in processes.writing_to(record.files_dir(self.prefix)):
                processes.stop(pid, processes.start_time(pid) or 0)
        foreign = []
        for name, identity in made.namespaces.items():
            found = namespace.identity_of(name)
            if found is None:
                namespace.remove_mount_point(name)
            elif found == identity or (identity is None and _is_pristine(name)):
                namespace.remove(name)
            else:
                foreign.append(name)
        record.forget(self.prefix)
        return foreign


def _prepare(node: Node) -> None:
    """Set what a new namespace does not have by itself; it inherits IPv4 settings from the host."""
    node.sysctl("net/ipv4/ip_forward", 0)   # the engine turns it on
    for scope in ("all", "default"):
        with contextlib.suppress(FileNotFoundError):   # a kernel without IPv6
            node.sysctl(f"net/ipv6/conf/{scope}/disable_ipv6", 1)


def _troubles(found: Record) -> list[str]:
    """Why the lab is not whole; empty if it is."""
    troubles = [] if found.complete else ["`up` has not finished, or was killed"]
    for name, identity in found.namespaces.items():
        now = namespace.identity_of(name)
        if identity is not None and now != identity:
            troubles.append(f"the namespace {name} is {'gone' if now is None else 'not the one it made'}")
    troubles += [f"{server.name} on {server.node} has ended" for server in found.servers if not server.alive]
    return troubles


def _clear_leftovers(found: Record) -> None:
    """Delete the mount points that a boot has left behind, where /run is on a disk."""
    for name in found.namespaces:
        namespace.remove_mount_point(name)


def _is_pristine(name: str) -> bool:
    """True if nobody has put anything into the namespace, so that nothing is lost with it."""
    return not links.describe(Node(name, name))


def _require_root() -> None:
    if os.geteuid() != 0:
        raise LabError("the lab makes network namespaces and needs root: use sudo")
