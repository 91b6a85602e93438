"""The page that `natengine status` prints: coloured on a terminal, plain in a pipe."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from natengine.vocab import Reason, Verdict


def print_status(status: dict[str, Any], console: Console | None = None) -> None:
    """Print a status as people read it.

    Args:
        status: What `Gateway.status` returns.
        console: Where to; None for standard output.
    """
    console = console or Console(highlight=False, soft_wrap=True)
    io = status["io"]
    console.print(
        f"natengine {status['version']}, pid {status['pid']}, up {_duration(status['uptime_s'])}; "
        f"{status['fastpath']} fast path, {io['name']} on {_queues(*io['queues'])}, hooks by {status['hooks']}"
    )
    console.print(
        f"{status['flows']} of at most {status['max_flows']} flows, {status['mappings']} mappings"
        f"{', ' + str(status['overloaded']) + ' flows had to share a port' if status['overloaded'] else ''}; "
        f"{io['packets']} packets in, {io['queue_full']} without room in the queue, "
        f"{io['overruns']} receive overruns, {io['errors']} errors"
    )
    fragments = status["fragments"]
    if fragments["datagrams"]:
        console.print(f"{fragments['datagrams']} datagrams in pieces are under way, {fragments['held']} pieces held")
    if status["packets_shed"]:
        now = f", {', '.join(dict.fromkeys(status['senders_shed']))} just now" if status["senders_shed"] else ""
        console.print(f"{status['packets_shed']} packets of floods were dropped before they were queued{now}")
    console.print()
    for table, lines in status["rules"].items():
        for line in lines:
            if line.startswith("-A") or line.endswith("DROP"):      # a policy of ACCEPT goes without saying
                console.print(f"-t {table} {line}", markup=False)
    console.print()
    console.print(_interfaces(status["interfaces"]))
    console.print()
    console.print(_reasons(status["packets_by_reason"]))


def _interfaces(interfaces: list[dict[str, Any]]) -> Table:
    table = Table("interface", "role", "state", "addresses", box=None, header_style="bold", padding=(0, 2, 0, 0))
    for each in interfaces:
        if each["name"] == "lo":
            continue
        role = "[cyan]uplink[/]" if each["uplink"] else "inside"
        state = "up" if each["up"] else "[red]down[/]"
        table.add_row(each["name"], role, state, ", ".join(each["addresses"]) or "[red]none[/]")
    return table


def _reasons(by_reason: dict[str, int]) -> Table:
    table = Table("verdict", "reason", "packets", box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.columns[2].justify = "right"
    for name, packets in by_reason.items():
        if not packets:
            continue
        dropped = Reason[name].verdict is Verdict.DROP
        verdict = "[red]drop[/]" if dropped else "[green]accept[/]"
        table.add_row(verdict, name.lower().replace("_", " "), str(packets))
    return table


def _queues(first: int, last: int) -> str:
    return f"queue {first}" if first == last else f"queues {first} to {last}"


def _duration(seconds: int) -> str:
    hours, rest = divmod(seconds, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}"
