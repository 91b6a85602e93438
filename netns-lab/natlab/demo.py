"""The demonstration: the owner's cluster, the owner's commands, real traffic, and what the internet saw."""

from __future__ import annotations

import argparse
import hashlib
import json
import signal
from collections.abc import Callable, Sequence
from typing import NoReturn

from rich.console import Console
from rich.panel import Panel

from . import interrupts
from .engine import OWNERS_COMMANDS, Engine
from .errors import CommandFailed, LabError
from .lab import DEFAULT_PREFIX, Lab, unique_prefix

PICTURE = """\
worker1 10.1.0.11 ─┐              ┌──────────────┐ bond0.2 203.0.113.1  ─── inet2 203.0.113.2
                   ├── bond0.def ─┤ head         │
worker2 10.1.0.12 ─┘    10.1.0.1  │ natengine    │ bond0.3 198.51.100.1 ─── inet3 198.51.100.2
                                  └──────────────┘"""

ROUTES = (("worker1", "203.0.113.2", "203.0.113.1"), ("worker2", "198.51.100.2", "198.51.100.1"))
DOWNLOAD_BYTES = 20_000_000
BULK_SECONDS = 2
FIRST_FLOWS = 6
LEAKS = "src net 10.0.0.0/8"
PCAP_HEADER = 24                    # bytes: a capture file without a packet


class Demo:
    """Tells the story of one run; every step checks what it shows."""

    def __init__(self, lab: Lab, console: Console) -> None:
        self._lab = lab
        self._console = console
        self._number = 0

    def run(self) -> None:
        """Show everything.  Raises LabError, or CommandFailed, at the first thing that does not work."""
        self._step("The lab: a cluster head, two workers, two hosts of the internet")
        self._lab.up()
        self._say(PICTURE)
        self._note(f"inet2 and inet3 have no route to 10.1.0.0/24; links: {self._lab.status()['links']}")
        self._step("The engine, in the head's network namespace")
        with Engine(self._lab) as engine:
            self._command("natengine run")
            self._note("ready: it takes packets from NFQUEUE and has no rules yet")
            self._rules(engine)
            with (
                self._lab.capture("inet2", "eth0", LEAKS) as at_inet2,
                self._lab.capture("inet3", "eth0", LEAKS) as at_inet3,
            ):
                for step in (self._ping, self._web, self._bulk):
                    step()
            self._table(engine)
            self._no_leak(sum(capture.path.stat().st_size > PCAP_HEADER for capture in (at_inet2, at_inet3)))
            self._no_kernel_nat()
            self._step("Saved, for the next boot")
            self._command("natengine save", engine.run("save").stdout)
            self._say(engine.rules_file.read_text().strip())
        interrupts.check()
        self._console.print("\n[bold green]All of it worked.[/]")

    def _rules(self, engine: Engine) -> None:
        self._step("The owner's commands, word for word behind `natengine`")
        for command in OWNERS_COMMANDS:
            self._command(f"natengine {command}", engine.run(*command.split()).stdout)
        listing = engine.run("iptables", "-L", "-t", "nat").stdout
        self._command("natengine iptables -L -t nat", listing)
        _expect(listing.count("MASQUERADE") == 2, "the listing does not have the two MASQUERADE rules")

    def _ping(self) -> None:
        self._step("Ping, from each worker over another uplink")
        for worker, host, _ in ROUTES:
            output = self._lab.node(worker).run(["ping", "-c", "3", "-i", "0.2", host], timeout=20).stdout
            self._command(f"{worker}$ ping -c 3 {host}", "\n".join(output.strip().splitlines()[-2:]))

    def _web(self) -> None:
        self._step("HTTP: who does the server think it talks to, and do the bytes arrive?")
        for worker, host, address in ROUTES:
            url = f"http://{host}"
            argv = ["curl", "-sS", "-m", "20", f"{url}/whoami"]
            seen = self._lab.node(worker).run(argv, timeout=30).stdout.strip()
            self._command(f"{worker}$ curl {url}/whoami", seen)
            _expect(seen.split()[0] == address, f"{host} saw {seen}, not the uplink's address {address}")
            self._download(worker, url)
        self._note("what the servers saw are the addresses of bond0.2 and bond0.3")

    def _download(self, worker: str, url: str) -> None:
        """Fetch a file and compare its hash with the one that the server announces."""
        node = self._lab.node(worker)
        path = f"/dev/shm/{node.netns}.download"
        argv = ["curl", "-sS", "-m", "60", "-D", "-", "-o", path, f"{url}/bytes/{DOWNLOAD_BYTES}"]
        try:
            headers = node.run(argv, timeout=90).stdout
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        finally:
            node.run(["rm", "-f", path], timeout=10)
        self._command(f"{worker}$ curl {url}/bytes/{DOWNLOAD_BYTES} | sha256sum", digest)
        _expect(digest in headers, "the download is not what the server sent")

    def _bulk(self) -> None:
        self._step("Bulk TCP, from both workers")
        for worker, host, _ in ROUTES:
            argv = ["iperf3", "-J", "-c", host, "-t", str(BULK_SECONDS)]
            end = json.loads(self._lab.node(worker).run(argv, timeout=60).stdout)["end"]
            rate = end["sum_received"]["bits_per_second"]
            _expect(rate > 0, "nothing arrived")
            self._command(
                f"{worker}$ iperf3 -c {host} -t {BULK_SECONDS}",
                f"{end['sum_received']['bytes'] / 1e6:.0f} MB received, {rate / 1e9:.2f} Gbit/s",
            )

    def _table(self, engine: Engine) -> None:
        self._step("The connection table, and what became of every packet")
        lines = engine.run("conntrack", "-L").stdout.splitlines()
        _expect(len(lines) >= 4, "the connection table lacks the connections just made")
        more = len(lines) - FIRST_FLOWS
        shown = lines[:FIRST_FLOWS] + ([f"… and {more} more"] if more > 0 else [])
        self._command("natengine conntrack -L", "\n".join(shown))
        self._command("natengine status", engine.run("status").stdout)

    def _no_leak(self, leaks: int) -> None:
        self._step("Did an inside address get out?")
        _expect(not leaks, "a packet with an inside source address reached the internet")
        self._say(f"tcpdump at inet2 and inet3, the whole time, filter `{LEAKS}': 0 packets")

    def _no_kernel_nat(self) -> None:
        self._step("Was it the kernel?")
        rules = self._lab.node("head").run(["iptables", "-t", "nat", "-S"], timeout=20).stdout
        self._command("head$ iptables -t nat -S", rules)
        _expect("-A" not in rules, "there are NAT rules in the kernel")
        self._note("no NAT rule in the kernel: every address was rewritten by natengine")

    # ── how it is told ───────────────────────────────────────────────────────────────────────────

    def _step(self, title: str) -> None:
        interrupts.check()
        self._number += 1
        self._console.print(f"\n[bold]{self._number}. {title}[/]")

    def _command(self, line: str, output: str = "") -> None:
        self._console.print(f"[cyan]{'' if '$' in line else 'head$ '}{line}[/]")
        if output.strip():
            self._say(output.rstrip())

    def _say(self, text: str) -> None:
        self._console.print("\n".join("  " + line for line in text.splitlines()), markup=False)

    def _note(self, text: str) -> None:
        self._console.print(f"  [dim]{text}[/]")


def _expect(fact: bool, otherwise: str) -> None:
    if not fact:
        raise LabError(otherwise)


def main(prefix: str, argv: Sequence[str]) -> int:
    """Run the demonstration; return the exit status.

    Args:
        prefix: The lab's; the default prefix stands for a new one, so that demonstrations do not meet.
        argv: No arguments are known but --help.
    """
    parser = argparse.ArgumentParser(prog="lab demo", description="Show the gateway at work, and clean up.")
    parser.parse_args(list(argv))
    console = Console(highlight=False, soft_wrap=True)
    signal.signal(signal.SIGTERM, _interrupt)
    interrupts.keep_lost()
    lab = Lab(unique_prefix("demo") if prefix == DEFAULT_PREFIX else prefix)
    was_up = bool(lab.status()["up"])
    console.print(Panel.fit("natengine: a NAT gateway in user space, on real packets"))
    return _told(Demo(lab, console).run, console, lambda: None if was_up else lab.down())


def _told(story: Callable[[], None], console: Console, clean_up: Callable[[], object]) -> int:
    """Run the story; whatever happens, clean up; say what went wrong."""
    try:
        story()
    except KeyboardInterrupt:
        return _interrupted(console)
    except (LabError, OSError) as error:
        # A Ctrl-C goes to every process of the group; a command may have ended of it before we hear of it.
        if isinstance(error, CommandFailed) and error.returncode in (-signal.SIGINT, 128 + signal.SIGINT):
            return _interrupted(console)
        console.print(f"\n[bold red]It did not work:[/] {error}")
        return 1
    finally:
        clean_up()
    return 0


def _interrupted(console: Console) -> int:
    console.print("\n[yellow]Interrupted.[/] Taking everything down.")
    return 130


def _interrupt(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt
