"""`python -m bench list | run | report`: arguments and exit statuses; no logic.

    0  done      1  it could not be done; one line says why      2  the command line is wrong
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "netns-lab"))     # a script directory, not an installed package

from natlab import interrupts  # noqa: E402
from natlab.errors import LabError  # noqa: E402

from . import gateway, machine, report  # noqa: E402
from .scenarios import SCENARIOS, Options  # noqa: E402
from .subjects import Subject, all_subjects  # noqa: E402

DEFAULT_FILE = ROOT / ".benchmarks" / "gateway.jsonl"
ON_REQUEST = ("nop", "c:poll")
QUICK = Options(tcp_s=2, udp_s=1.0, pings=1000)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    options = _parser().parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGHUP):      # unwind like Ctrl-C, so that the lab goes down
        signal.signal(number, lambda received, _frame: sys.exit(128 + received))
    interrupts.keep_lost()
    try:
        return int(options.function(options))
    except LabError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def _list(_options: argparse.Namespace) -> int:
    print("scenarios:", *SCENARIOS)
    print("subjects: ", *all_subjects())
    return 0


def _run(options: argparse.Namespace) -> int:
    machine.require_tools()
    there = all_subjects()
    chosen: list[Subject] = []
    for name in options.subjects or [name for name in there if name not in ON_REQUEST]:
        if name not in there:
            raise LabError(f"there is no subject {name!r} here; there are {', '.join(there)}")
        chosen.append(there[name])
    plan = gateway.Plan(
        [SCENARIOS[name] for name in options.scenarios or SCENARIOS], chosen,
        options.repeats or (2 if options.quick else 5), QUICK if options.quick else Options(),
        machine.choose_cores(options.engine_cpu, options.sender_cpu), options.nice, options.prefix,
    )
    options.file.parent.mkdir(exist_ok=True)
    gateway.run(plan, options.file)
    print(report.render(report.read(options.file)), end="")
    print(f"\n(the figures are in {options.file})", file=sys.stderr)
    return 0


def _report(options: argparse.Namespace) -> int:
    print(report.render(report.read(options.file)), end="")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description="The gateway beside the kernel, in one lab.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="scenarios and subjects")
    listing.set_defaults(function=_list)
    run = commands.add_parser("run", help="measure, then report")
    run.add_argument("--scenario", dest="scenarios", action="append", choices=list(SCENARIOS), help="default: all")
    but = " and ".join(ON_REQUEST)
    run.add_argument("--subject", dest="subjects", action="append", metavar="NAME", help=f"default: all but {but}")
    run.add_argument("--repeats", type=int, metavar="N", help="times round (5; 2 with --quick)")
    run.add_argument("--quick", action="store_true", help="short measurements, to see whether it works")
    run.add_argument("--engine-cpu", type=int, metavar="N", help="default: the first processor there is")
    run.add_argument("--sender-cpu", type=int, metavar="N", help="default: the second")
    run.add_argument("--nice", type=int, default=0, metavar="N", help="-15 where others work, too (%(default)s)")
    run.add_argument("--prefix", default="bench", help="begins the names of the lab's namespaces (%(default)s)")
    run.add_argument("--file", type=Path, default=DEFAULT_FILE, help="where the figures go (%(default)s)")
    run.set_defaults(function=_run)
    show = commands.add_parser("report", help="the table of a run that was made before")
    show.add_argument("file", type=Path, nargs="?", default=DEFAULT_FILE)
    show.set_defaults(function=_report)
    return parser


if __name__ == "__main__":
    sys.exit(main())
