"""What is measured.  A scenario takes a running subject and returns one `Measurement`.

    tcp       iperf3, one stream from worker1 to inet2
    udp       18-byte payload, 64 flows that are known already, the sender saturating its core
    rtt       ping every 0.5 ms
    newflow   18-byte payload, every packet a flow that has never been seen
    scale     as udp, with 64 and then with 1,048,576 flows in the table (natengine only)

Rule: a packet counts when it is received, translated and intact, by a program on inet2.
"""

from __future__ import annotations

import contextlib
import json
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from natlab.errors import LabError

from . import sample
from .machine import Scheduled, pin, scheduled
from .subjects import INSIDE, OUTSIDE, Natengine, Place, Running, Subject

# RFC 2544's addresses for benchmarks; they are reached by the head's default route, so that no
# neighbour entry and no route is needed for each, and inet2 takes all of them for its own.
TARGETS = "198.18.0.0/15"
FIRST_TARGET = "198.18.0.0"
TARGET_COUNT = 1 << 17
KNOWN = ("-s", "8", "-d", "8")                      # 64 flows
MANY = ("-s", "8", "-d", str(TARGET_COUNT))         # 1,048,576 flows
MANY_FLOWS = 8 * TARGET_COUNT
ROOM_FOR_MANY = ("--max-flows", str(MANY_FLOWS + MANY_FLOWS // 8), "--max-flows-per-host", "0")
WARM_UP_S = 0.4
LEAD_S = 0.15                   # from the start of the programs to the first packet
SAMPLE_PACKETS = 1000
SAMPLE_RATE = 5000              # packets a second that every subject can do
SAMPLE_BYTES = 4_000_000
IPERF_PORT = "5301"             # not the lab's own server: this one is pinned
PRELOAD_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Options:
    """How long each measurement takes."""

    tcp_s: int = 5
    udp_s: float = 2.0
    newflow_s: float = 0.8      # the kernel's table of 262,144 entries must not be full before the end
    pings: int = 4000
    preload_rate: int = 30_000


@dataclass
class Measurement:
    """One figure, and what else was seen on the way.

    Attributes:
        cpu_ns: Processor time of the engine (for the kernel: of the sender) for each packet.
        starved: Share of the time in which that process was ready but somebody else had its core.
    """

    value: float
    cpu_ns: float | None = None
    starved: float | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Scenario:
    """A way to measure.

    Attributes:
        higher_is_better: What a ratio above 1 means.
        measure: Does it, and may raise LabError.
    """

    name: str
    unit: str
    higher_is_better: bool
    measure: Callable[[Place, Subject, Running, Options], Measurement]
    natengine_only: bool = False
    engine_options: tuple[str, ...] = ()


@contextlib.contextmanager
def target_addresses(place: Place) -> Iterator[None]:
    """Let inet2 be every address of TARGETS, and keep netfilter out of the switch, for all subjects alike."""
    inet2, switch = place.lab.node("inet2"), place.lab.node("switch")
    with contextlib.suppress(FileNotFoundError):        # a kernel without br_netfilter
        switch.sysctl("net/bridge/bridge-nf-call-iptables", 0)
    inet2.run(["ip", "route", "add", "local", TARGETS, "dev", "lo"], timeout=5)
    try:
        yield
    finally:
        inet2.run(["ip", "route", "del", "local", TARGETS, "dev", "lo"], timeout=5, check=False)


# ── UDP ──────────────────────────────────────────────────────────────────────────────────────────


def _receiver_core(place: Place, running: Running) -> int:
    """The kernel forwards on the sender's core, so the other one is free; an engine has one of its own."""
    return place.cores.engine if running.pid is None else place.cores.sender


def _check_sample(place: Place, subject: Subject) -> None:
    """Send a thousand packets of the 64 flows, slowly, and look at every one; they open the flows, too."""
    source = OUTSIDE if subject.translates else INSIDE
    with sample.Sampler(place.lab.node("inet2"), "eth0", source) as sampler:
        _load(place, *KNOWN, "-c", str(SAMPLE_PACKETS), "-r", str(SAMPLE_RATE))
        sampler.collect(SAMPLE_PACKETS, 5.0).require_right(subject.name, SAMPLE_PACKETS)


def _load(place: Place, *options: str) -> dict[str, Any]:
    """Run the sender to its end."""
    argv = [str(place.programs / "udp_load"), *options, FIRST_TARGET]
    return dict(json.loads(place.lab.node("worker1").run(argv, timeout=120).stdout))


def _blast(
    place: Place, subject: Subject, running: Running, flows: tuple[str, ...], warm_s: float, run_s: float
) -> Measurement:
    """Send as much as one core can for a while and count what arrives in the later part of it."""
    begin = time.monotonic_ns() + int(LEAD_S * 1e9)
    begin_counting = begin + int(warm_s * 1e9)
    source = OUTSIDE if subject.translates else INSIDE
    number = str(int(flows[1]) * int(flows[3]))
    count = [str(place.programs / "udp_count"), "-a", str(begin_counting), "-t", str(int(run_s * 1000)),
             "-f", number, source]
    send = [str(place.programs / "udp_load"), *flows, "-a", str(begin),
            "-t", str(int((warm_s + run_s + 0.1) * 1000)), FIRST_TARGET]
    pipe = subprocess.PIPE
    with contextlib.ExitStack() as stack:
        processes = []
        for node, argv, core in (
            ("inet2", count, _receiver_core(place, running)), ("worker1", send, place.cores.sender)
        ):
            process = stack.enter_context(place.lab.node(node).popen(argv, stdout=pipe, stderr=pipe, text=True))
            stack.callback(process.kill)
            pin(process.pid, core)
            processes.append(process)
        used = _watch(running, begin_counting, run_s)
        said = [process.communicate(timeout=60) for process in processes]
    for process, (_, error) in zip(processes, said, strict=True):
        if process.returncode:
            raise LabError(error.strip() or f"{process.args!r} has failed")
    counted, sent = json.loads(said[0][0].splitlines()[-1]), json.loads(said[1][0])
    return _rate(counted, sent, used, run_s)


def _watch(running: Running, begin_ns: int, run_s: float) -> Scheduled | None:
    """Sleep through a measurement and say what the engine has used meanwhile."""
    time.sleep(max(0.0, (begin_ns - time.monotonic_ns()) / 1e9))
    before = None if running.pid is None else scheduled(running.pid)
    time.sleep(run_s)
    return None if running.pid is None or before is None else scheduled(running.pid) - before


def _rate(counted: dict[str, Any], sent: dict[str, Any], used: Scheduled | None, run_s: float) -> Measurement:
    if not counted["received"] or counted["corrupt"] or counted["untranslated"]:
        raise LabError(f"what arrived is not what was sent: {counted}, {sent}")
    rate = counted["received"] / counted["seconds"]
    offered = sent["sent"] / sent["seconds"]
    details = {"offered": offered, **counted}
    if used is None:
        return Measurement(
            rate, sent["cpu_seconds"] * 1e9 / sent["sent"], sent["waited_seconds"] / sent["seconds"], details
        )
    return Measurement(rate, used.ran_ns / run_s / rate, used.waited_ns / 1e9 / run_s, details)


def _udp(place: Place, subject: Subject, running: Running, options: Options) -> Measurement:
    _check_sample(place, subject)
    return _blast(place, subject, running, KNOWN, WARM_UP_S, options.udp_s)


def _newflow(place: Place, subject: Subject, running: Running, options: Options) -> Measurement:
    result = _blast(place, subject, running, MANY, 0.1, options.newflow_s)
    if result.details["flows"] != result.details["received"]:
        raise LabError(f"not every packet was a new flow: {result.details}")
    return result


def _scale(place: Place, subject: Subject, running: Running, options: Options) -> Measurement:
    """The value is the rate with all flows in the table; the one with 64 is in the details."""
    _check_sample(place, subject)
    few = _blast(place, subject, running, KNOWN, WARM_UP_S, options.udp_s)
    flows = _preload(place, running, options.preload_rate)
    many = _blast(place, subject, running, MANY, WARM_UP_S, options.udp_s)
    many.details |= {"few": few.value, "few_cpu_ns": few.cpu_ns, "ratio": many.value / few.value, "table": flows}
    return many


def _preload(place: Place, running: Running, rate: int) -> int:
    """Send every flow's first packet, again where one got lost, until the table has 99 % of them."""
    assert running.engine is not None
    deadline = time.monotonic() + PRELOAD_TIMEOUT_S
    position = 0
    while time.monotonic() < deadline:
        milliseconds = str(10_000)
        sent = _load(place, *MANY, "-f", str(position), "-r", str(rate), "-t", milliseconds)
        position = (position + int(sent["sent"])) % MANY_FLOWS
        flows = int(running.engine.run("conntrack", "-C").stdout)
        if flows >= 0.99 * MANY_FLOWS:
            return flows
    raise LabError(f"after {PRELOAD_TIMEOUT_S:.0f} s the table has {flows} of {MANY_FLOWS} flows")


# ── TCP and ICMP ─────────────────────────────────────────────────────────────────────────────────


def _tcp(place: Place, subject: Subject, running: Running, options: Options) -> Measurement:
    worker, inet2 = place.lab.node("worker1"), place.lab.node("inet2")
    sample.transfer(worker, SAMPLE_BYTES, seed=1)
    datagrams = sample.segmented_datagrams(worker, inet2)
    server_argv = ["iperf3", "-s", "-4", "-1", "--forceflush", "-p", IPERF_PORT]
    client_argv = ["iperf3", "-c", sample.SERVER, "-p", IPERF_PORT, "-t", str(options.tcp_s), "-O", "1", "-J"]
    with inet2.popen(server_argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        try:
            assert server.stdout is not None
            while "listening" not in server.stdout.readline():      # an empty line: it has ended
                if server.poll() is not None:
                    raise LabError(f"iperf3 does not listen on port {IPERF_PORT} of inet2")
            pin(server.pid, place.cores.engine)     # the better place for every subject: see README.md
            pinned = ["taskset", "-c", str(place.cores.sender), *client_argv]
            before = None if running.pid is None else scheduled(running.pid)
            answer = json.loads(worker.run(pinned, timeout=options.tcp_s + 60).stdout)
            used = None if running.pid is None or before is None else scheduled(running.pid) - before
        finally:
            server.kill()
    received, sent = answer["end"]["sum_received"], answer["end"]["sum_sent"]
    seconds = options.tcp_s + 1
    details = {
        "retransmits": sent["retransmits"], "gso_datagrams": datagrams,
        "engine_load": used and used.ran_ns / 1e9 / seconds,
    }
    return Measurement(
        received["bits_per_second"] / 1e9, None, None if used is None else used.waited_ns / 1e9 / seconds, details
    )


def _rtt(place: Place, subject: Subject, running: Running, options: Options) -> Measurement:
    argv = ["taskset", "-c", str(place.cores.sender), "ping", "-n", "-i", "0.0005", "-c", str(options.pings),
            sample.SERVER]
    before = None if running.pid is None else scheduled(running.pid)
    begin = time.monotonic()
    text = place.lab.node("worker1").run(argv, timeout=60 + options.pings / 100).stdout
    used = None if running.pid is None or before is None else scheduled(running.pid) - before
    times = sorted(float(value) * 1000 for value in re.findall(r"time=([0-9.]+) ms", text))
    if len(times) < 0.99 * options.pings:
        raise LabError(f"only {len(times)} of {options.pings} pings were answered")
    details = {"p99": times[len(times) * 99 // 100], "mean": statistics.fmean(times), "best": times[0]}
    starved = None if used is None else used.waited_ns / 1e9 / (time.monotonic() - begin)
    return Measurement(statistics.median(times), None, starved, details)


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("tcp", "Gbit/s", True, _tcp),
        Scenario("udp", "packets/s", True, _udp),
        Scenario("rtt", "us", False, _rtt),
        Scenario("newflow", "flows/s", True, _newflow),
        Scenario("scale", "packets/s", True, _scale, True, ROOM_FOR_MANY),
    )
}


def engine_options_missing(scenario: Scenario, has_option: Callable[[str], bool]) -> list[str]:
    """The options of `natengine run` that a scenario needs and that there are not."""
    return [word for word in scenario.engine_options if word.startswith("--") and not has_option(word)]


def prepared(scenario: Scenario, subject: Subject) -> Subject:
    """The subject as this scenario needs it."""
    if scenario.engine_options and isinstance(subject, Natengine):
        return subject.with_options(*scenario.engine_options)
    return subject
