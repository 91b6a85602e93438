"""The `lab` command: arguments, output and exit statuses; no logic.

    0   done, or nothing to do            2   the command line is wrong
    1   it failed; one line says why      130, 143 …   a signal, after everything was taken down again

`status` is 0 for a lab that is up and 1 for one that is down or damaged.  `exec` ends with the status of
its command; 127 if there is no such command and 126 if it cannot be run, as in a shell.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from . import interrupts, namespace
from .errors import LabError
from .lab import DEFAULT_PREFIX, Lab
from .plan import NODES, LinkKind


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    try:
        options = _parser().parse_args(argv)
        return int(options.run(options))
    except LabError as error:
        message = str(error)
    except KeyboardInterrupt:
        print("lab: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except OSError as error:
        message = f"{error.filename or 'the system'}: {error.strerror or error}"
    print(f"lab: {message}", file=sys.stderr)
    return 1


def _up(options: argparse.Namespace) -> int:
    lab = Lab(options.prefix, links=options.links and LinkKind(options.links))
    with interrupts.deferred():
        new = lab.up()
        interrupts.ignore_from_now_on()   # it is up, and the exit status shall say so
    status = lab.status()
    print(f"{options.prefix} is up{'' if new else ' already'} ({status['links']})")
    for absent in status["absent"]:
        print(f"absent: {absent}")
    return 0


def _down(options: argparse.Namespace) -> int:
    print(f"{options.prefix} is down" if Lab(options.prefix).down() else f"{options.prefix} is not up")
    return 0


def _status(options: argparse.Namespace) -> int:
    status = Lab(options.prefix).status()
    if options.json:
        print(json.dumps(status, indent=2))
    else:
        print("\n".join(_render(status)))
    return 0 if status["up"] else 1


def _exec(options: argparse.Namespace) -> int:
    lab = Lab(options.prefix)
    node = lab.node(options.node)
    lab.require_up()
    namespace.switch_to(node.netns_path)
    try:
        os.execvp(options.program, [options.program, *options.arguments])
    except FileNotFoundError:
        print(f"lab: there is no command {options.program!r}", file=sys.stderr)
        return 127
    except OSError as error:
        print(f"lab: cannot run {options.program!r}: {error.strerror}", file=sys.stderr)
        return 126


def _demo(options: argparse.Namespace) -> int:
    try:
        demo = importlib.import_module("natlab.demo")
    except ModuleNotFoundError as error:
        raise LabError(f"the demo cannot start: {error}") from error
    # `up` and `down` see to signals themselves; a demo in between must unwind to its own `down`.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: sys.exit(128 + received))
    return int(demo.main(options.prefix, options.arguments))


def _render(status: dict[str, Any]) -> list[str]:
    if "nodes" not in status:
        return [f"{status['prefix']} is not up"]
    state = "up" if status["up"] else "damaged"
    lines = [f"{status['prefix']} is {state}; the head's links: {status['links']}"]
    lines += [f"  trouble: {trouble}" for trouble in status["troubles"]]
    for name, node in status["nodes"].items():
        lines.append(f"{name}  (namespace {node['netns']})")
        for interface, facts in node["interfaces"].items():
            lines.append(_row(interface, facts["kind"], facts["state"], *facts["addresses"]))
        for server in status["servers"]:
            if server["node"] == name:
                state = "running" if server["alive"] else "ended"
                lines.append(_row(server["name"], state, str(server["pid"]), *server["ports"]))
    return lines + [f"absent: {absent}" for absent in status["absent"]]


def _row(name: str, kind: str | None, state: str, *rest: str) -> str:
    return f"  {name:<10} {kind or '?':<10} {state:<8} {' '.join(rest)}".rstrip()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lab",
        description="A NAT lab in network namespaces: a head with two uplinks, two workers, two hosts.",
    )
    parser.add_argument(
        "--prefix",
        default=DEFAULT_PREFIX,
        help="names the lab and starts the names of its namespaces; several run side by side (%(default)s)",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    up = commands.add_parser("up", help="make the lab; nothing to do if it is up")
    up.add_argument(
        "--links",
        choices=[kind.value for kind in LinkKind],
        help="what the head's interfaces are made of; by default bond/vlan where the kernel has both",
    )
    up.set_defaults(run=_up)
    commands.add_parser("down", help="take down what `up` made").set_defaults(run=_down)
    status = commands.add_parser("status", help="what is there")
    status.add_argument("--json", action="store_true")
    status.set_defaults(run=_status)
    execute = commands.add_parser("exec", help="run a command inside a node: lab exec head ip addr")
    execute.add_argument("node", metavar="NODE", help=", ".join(NODES))
    execute.add_argument("program", metavar="CMD")
    execute.add_argument("arguments", metavar="ARG", nargs=argparse.REMAINDER)
    execute.set_defaults(run=_exec)
    demo = commands.add_parser("demo", help="the guided tour", add_help=False)
    demo.add_argument("arguments", nargs=argparse.REMAINDER)
    demo.set_defaults(run=_demo)
    return parser
