"""The command line: which command, with which directories; exit statuses; no logic.

    0  done      1  it could not be done (the machine, the engine, the rule set)      2  a wrong command
"""

from __future__ import annotations

import argparse
import grp
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from natengine import __version__
from natengine.app.rundir import DEFAULT as DEFAULT_RUN_DIR
from natengine.errors import ConfigError, NatengineError
from natengine.settings import HookBackEnd, Settings

DEFAULT_RULES = Path("/etc/natengine/rules.v4")
DEFAULT_SETTINGS = Path("/etc/natengine/natengine.toml")
MAX_QUEUES = 64
DEFAULT_QUEUE = 2663                # any number would do; this one is the RFC that has NAT's words

USAGE = """\
natengine, a NAT gateway in user space

usage: natengine [--run-dir DIR] COMMAND …

  run               be the gateway of this network namespace, in the foreground
  iptables          look at the rules and change them, in iptables' language
  iptables-save     print the rules as iptables-save does
  iptables-restore  replace the rules by such a text
  save              write the rules to a file          (/etc/natengine/rules.v4)
  restore           replace the rules by a file's
  status            interfaces, flows, counters        (--json)
  conntrack         the connection table, in conntrack's language
  state             check a state file                 (natengine state check)
  hooks             open what a stopped engine closed  (natengine hooks remove)

`natengine COMMAND --help` says more about each.

  --run-dir DIR   directory of the engine's control socket (/run/natengine; also NATENGINE_RUN_DIR);
                  with one directory for each, several engines run side by side
  --version       print the version

NATENGINE_RULES names another rules file, NATENGINE_FASTPATH=auto|cython|python the fast path.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see: {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _dispatch(words)
        sys.stdout.flush()              # here, where somebody catches what it may raise
        return status
    except NatengineError as error:
        print(f"natengine: {error}", file=sys.stderr)
        return error.exit_status
    except MemoryError as error:
        print(f"natengine: {error or 'no memory'}", file=sys.stderr)
        return 1
    except BrokenPipeError:             # `natengine conntrack -L | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


def _dispatch(words: list[str]) -> int:
    """Read the global options and hand the rest to the command."""
    run_dir = Path(os.environ.get("NATENGINE_RUN_DIR") or DEFAULT_RUN_DIR)
    while words and words[0].startswith("-"):
        option, _, value = words.pop(0).partition("=")
        if option in ("-h", "--help"):
            print(USAGE, end="")
            return 0
        if option in ("-V", "--version"):
            print(f"natengine {__version__}")
            return 0
        if option != "--run-dir":
            raise ConfigError(f"unknown option {option} (see: natengine --help)")
        if not value:
            if not words:
                raise ConfigError("--run-dir needs a directory")
            value = words.pop(0)
        run_dir = Path(value)
    if not words:
        sys.stderr.write(USAGE)
        return 2
    command = COMMANDS.get(words[0])
    if command is None:
        raise ConfigError(f"unknown command {words[0]!r}; there are {', '.join(COMMANDS)}")
    return command(words[1:], run_dir)


def _run(words: list[str], run_dir: Path) -> int:
    from natengine.app.stopping import StopSignals

    signals = StopSignals()             # before the imports that take a while
    from natengine.app import daemon
    from natengine.app.gateway import GatewayConfig
    from natengine.app.state import FILE_NAME, NO_STATE

    options = _run_parser().parse_args(words)
    rules = daemon.RulesFile(options.rules or _rules_path(), required=options.rules is not None)
    config = GatewayConfig(
        run_dir, options.queue_num, options.queues, options.busy_poll, options.io,
        os.environ.get("NATENGINE_FASTPATH") or "auto",
        daemon.read_settings_file(
            options.config, DEFAULT_SETTINGS,
            max_flows=options.max_flows, max_flows_per_host=options.max_flows_per_host,
            hooks=options.hooks and HookBackEnd(options.hooks),
        ),
        None if options.state == NO_STATE else options.state or run_dir / FILE_NAME,
        guard=options.guard, readers=options.control_group,
    )
    return daemon.run(config, rules, signals)


def _run_parser() -> _Parser:
    parser = _Parser(
        "natengine run", description="Be the gateway of this network namespace until SIGTERM, SIGINT or SIGHUP.",
        epilog="Prints `ready` when packets are being translated. Without rules nothing is forwarded "
        "until the first MASQUERADE rule comes (natengine iptables …).",
    )
    parser.add_argument(
        "--rules", "--file", type=Path, metavar="FILE",
        help=f"rules to start with, as `natengine save` and iptables-save write them ({DEFAULT_RULES} if it exists)",
    )
    parser.add_argument(
        "--io", choices=["auto", "batched", "netfilterqueue"], default="auto",
        help="how packets come from the kernel: batched, where the extension was built (auto), or one by one",
    )
    parser.add_argument(
        "--hooks", choices=[each.value for each in HookBackEnd],
        help="who sends them to the queue: nft where the kernel can do it, else iptables (auto)",
    )
    parser.add_argument(
        "--queues", type=_number(1, MAX_QUEUES), default=1, metavar="N",
        help="take packets through N queues, a thread each (1)",
    )
    parser.add_argument(
        "--busy-poll", type=_number(0, 1_000_000), default=0, metavar="USEC",
        help="ask for packets this long before sleeping: a shorter round trip for a busier core (0)",
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help=f"settings, in TOML ({DEFAULT_SETTINGS} if it exists)"
    )
    _add_options_for_others(parser)
    parser.add_argument(
        "--max-flows", type=_number(1, 1 << 24), metavar="N",
        help=f"capacity of the connection table ({Settings.max_flows})",
    )
    parser.add_argument(
        "--max-flows-per-host", type=_number(0, 1 << 24), metavar="N",
        help=f"of them, flows that one inside host may begin; 0: any number ({Settings.max_flows_per_host})",
    )
    parser.add_argument(
        "--queue-num", type=_number(0, 0xFFFF - MAX_QUEUES), default=DEFAULT_QUEUE, metavar="N",
        help="NFQUEUE number; as many more from there on as --queues says (%(default)s)",
    )
    return parser


def _add_options_for_others(parser: _Parser) -> None:
    """What the next engine finds, what holds without an engine, and who may look."""
    parser.add_argument(
        "--state", type=Path, metavar="FILE",
        help="where the flows are kept, to outlive the engine (flows.state in the run directory); none: nowhere",
    )
    parser.add_argument(
        "--control-group", type=_group, metavar="GROUP",
        help="whose members may see rules, flows and counters; changes are root's (nobody)",
    )
    parser.add_argument(
        "--guard", action="store_true",
        help="leave the uplinks closed to forwarded packets when it stops (natengine hooks remove opens them)",
    )


def _number(first: int, last: int) -> Callable[[str], int]:
    """Return an argparse type for the numbers `first` to `last`."""

    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit() and first <= int(text) <= last):
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {first} to {last}")
        return int(text)

    return read


def _group(name: str) -> int:
    """Return the number of a group, as an argparse type."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise argparse.ArgumentTypeError(f"{name!r} is no group; make it first: groupadd --system {name}") from None


def _rules_path() -> Path:
    return Path(os.environ.get("NATENGINE_RULES") or DEFAULT_RULES)


def _iptables(words: list[str], run_dir: Path) -> int:
    from natengine.app import rules_cli

    return rules_cli.iptables(words, run_dir)


def _iptables_save(words: list[str], run_dir: Path) -> int:
    from natengine.app import rules_cli

    return rules_cli.iptables_save(words, run_dir)


def _iptables_restore(words: list[str], run_dir: Path) -> int:
    from natengine.app import rules_cli

    return rules_cli.iptables_restore(words, run_dir)


def _save(words: list[str], run_dir: Path) -> int:
    from natengine.app import rules_cli

    parser = _Parser("natengine save", description="Write the rules to a file, from which `natengine run` starts.")
    parser.add_argument("--file", type=Path, default=_rules_path(), metavar="F", help="the file (%(default)s)")
    parser.add_argument("-c", "--counters", action="store_true", help="with the packet and byte counters")
    options = parser.parse_args(words)
    return rules_cli.save(options.file, run_dir, counters=options.counters)


def _restore(words: list[str], run_dir: Path) -> int:
    from natengine.app import rules_cli

    parser = _Parser("natengine restore", description="Replace the rules by those of a file; flows stay.")
    parser.add_argument("--file", type=Path, default=_rules_path(), metavar="F", help="the file (%(default)s)")
    parser.add_argument("--flush-flows", action="store_true", help="end every flow afterwards")
    options = parser.parse_args(words)
    return rules_cli.restore(options.file, run_dir, flush_flows=options.flush_flows)


def _status(words: list[str], run_dir: Path) -> int:
    from natengine.app.client import ask

    parser = _Parser("natengine status", description="Show the engine's interfaces, flows and counters.")
    parser.add_argument("--json", action="store_true", help="for programs")
    options = parser.parse_args(words)
    status = ask(run_dir, "status")["status"]
    if options.json:
        print(json.dumps(status, indent=2))
    else:
        from natengine.app.render import print_status

        print_status(status)
    return 0


def _state(words: list[str], run_dir: Path) -> int:
    from natengine.app import state

    parser = _Parser("natengine state", description="Say whether an engine would take a state file over.")
    parser.add_argument("action", choices=["check"])
    parser.add_argument(
        "file", type=Path, nargs="?", default=run_dir / state.FILE_NAME, metavar="FILE", help="the file (%(default)s)"
    )
    print(state.check(parser.parse_args(words).file))
    return 0


def _hooks(words: list[str], run_dir: Path) -> int:
    from natengine.app import daemon

    parser = _Parser(
        "natengine hooks", description="Take out what a stopped or killed engine has left in the kernel."
    )
    parser.add_argument("action", choices=["remove"])
    parser.parse_args(words)
    daemon.remove_hooks(run_dir)
    return 0


def _conntrack(words: list[str], run_dir: Path) -> int:
    from natengine.app.client import ask

    answer = ask(run_dir, "conntrack", argv=words)
    sys.stdout.write(answer["stdout"])
    sys.stderr.write(answer["stderr"])
    return int(answer["exit_status"])


COMMANDS: dict[str, Callable[[list[str], Path], int]] = {
    "run": _run,
    "iptables": _iptables,
    "iptables-save": _iptables_save,
    "iptables-restore": _iptables_restore,
    "save": _save,
    "restore": _restore,
    "status": _status,
    "state": _state,
    "hooks": _hooks,
    "conntrack": _conntrack,
}
