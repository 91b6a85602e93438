"""The lab keeps its promises: what is up works, what is down is gone, what others made is left alone."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from natlab import CommandFailed, Lab, LabError, LinkKind, cli, interrupts, links, namespace, processes, unique_prefix
from natlab import lab as lab_module
from natlab.plan import NODES
from natlab.record import RUN_DIR, files_dir, record_path
from natlab.servers import BLOCK_BYTES, body_sha256

pytestmark = pytest.mark.lab

LAB_SCRIPT = Path(__file__).parents[2] / "netns-lab" / "lab"
INET2, INET3 = "203.0.113.2", "198.51.100.2"


@pytest.fixture(scope="module", autouse=True)
def _namespaces_can_be_made() -> None:
    """Skip the module with the reason where this machine does not allow a lab."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    name = unique_prefix("lbtry")
    try:
        namespace.create(name)
    except LabError as error:
        pytest.skip(str(error))
    namespace.remove(name)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One lab for all tests that do not change it."""
    with Lab(unique_prefix("lbtest")) as lab:
        yield lab


@pytest.fixture
def prefix() -> Iterator[str]:
    """A prefix of which nothing is left after the test, whatever happened in it."""
    prefix = unique_prefix("lbtest")
    yield prefix
    with contextlib.suppress(LabError):
        Lab(prefix).down()
    assert traces(prefix) == []


def traces(prefix: str) -> list[str]:
    """Files, namespaces and server processes that belong to a lab."""
    names = [path.name for folder in (RUN_DIR, namespace.NETNS_DIR) for path in folder.glob(f"{prefix}*")]
    return names + [f"process {pid}" for pid in processes.writing_to(files_dir(prefix))]


def pids_inside(lab: Lab) -> list[int]:
    """Every process whose network namespace is one of the lab's."""
    inodes = {lab.node(name).netns_path.stat().st_ino for name in NODES}
    found = []
    for path in Path("/proc").glob("[0-9]*/ns/net"):
        with contextlib.suppress(OSError):   # it ended meanwhile
            if path.stat().st_ino in inodes:
                found.append(int(path.parts[2]))
    return found


def living(pids: list[int]) -> list[int]:
    """Those that have not ended."""
    return [pid for pid in pids if processes.start_time(pid) is not None]


def run_lab(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as a person would."""
    return subprocess.run(
        [sys.executable, str(LAB_SCRIPT), *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def ask(lab: Lab, server: str, request: str) -> tuple[int, dict[str, str], bytes]:
    """Send "METHOD PATH [BODY]" from the head; return status, headers and body."""
    method, path, *content = request.split()
    connection = http.client.HTTPConnection(server, timeout=10)
    with lab.node("head").enter(), contextlib.closing(connection):
        connection.request(method, path, body=content[0] if content else None)
        with connection.getresponse() as response:
            return response.status, dict(response.getheaders()), response.read()


def test_reachability(lab: Lab) -> None:
    """Neighbours reach each other as soon as `up` has returned; inet2 has no way to an inside address."""
    neighbours = {"head": [INET2, INET3], "worker1": ["10.1.0.1", "10.1.0.12"], "worker2": ["10.1.0.1"]}
    for node, addresses in neighbours.items():
        for address in addresses:
            lab.node(node).run(["ping", "-n", "-c1", "-W2", address], timeout=5)
    with pytest.raises(CommandFailed, match="exit status 2"):   # unreachable, not just unanswered
        lab.node("inet2").run(["ping", "-n", "-c1", "-W1", "10.1.0.11"], timeout=5)


def test_status_describes_the_plan(lab: Lab) -> None:
    """The head has its interfaces, made of what the lab says; forwarding is the engine's to turn on."""
    status = lab.status()
    assert status["up"] and status["troubles"] == []
    assert set(NODES) == set(status["nodes"])
    interfaces = status["nodes"]["head"]["interfaces"]
    expected = {"bond0.def": "10.1.0.1/24", "bond0.2": "203.0.113.1/24", "bond0.3": "198.51.100.1/24"}
    assert expected == {name: interfaces[name]["addresses"][0] for name in expected}
    assert {status["links"]} == {interfaces[name]["kind"] for name in expected}
    head = lab.node("head")
    assert head.sysctl("net/ipv4/ip_forward") == "0"
    assert head.sysctl("net/ipv4/conf/bond0.2/rp_filter") in {"0", "1", "2"}
    if Path("/proc/sys/net/ipv6").exists():
        assert head.sysctl("net/ipv6/conf/bond0.2/disable_ipv6") == "1"


def test_http(lab: Lab) -> None:
    """The servers say who asks, count and digest what is sent, refuse what they do not have, and live on."""
    for request, status, said in [
        ("GET /whoami", 200, "203.0.113.1 "),
        ("POST /sink hello", 200, f"{hashlib.sha256(b'hello').hexdigest()} 5\n"),
        ("GET /nothing", 404, ""),
        ("GET /bytes/x", 404, ""),
        ("GET /bytes/2000000000", 400, ""),
        ("GET /bytes/1?seed=-1", 400, ""),
        ("POST /whoami x", 404, ""),
    ]:
        got, _, body = ask(lab, INET2, request)
        assert status == got, request
        assert body.decode().startswith(said), request
    assert ask(lab, INET3, "GET /whoami")[2].startswith(b"198.51.100.1 ")


@pytest.mark.parametrize("length", [0, 1, BLOCK_BYTES, 3 * BLOCK_BYTES + 1])
def test_http_bytes(lab: Lab, length: int) -> None:
    """The digest in the header is that of the body, and the seed decides the body."""
    status, headers, body = ask(lab, INET2, f"GET /bytes/{length}?seed=7")
    assert (200, length) == (status, len(body))
    assert hashlib.sha256(body).hexdigest() == headers["X-Sha256"] == body_sha256(length, 7)
    assert length == 0 or headers["X-Sha256"] != body_sha256(length, 8)


def test_echo(lab: Lab) -> None:
    """TCP and UDP give back what they got; `whoami` by UDP also says from whom."""
    with lab.node("head").enter():
        tcp = socket.create_connection((INET3, 7), timeout=5)
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with tcp, udp:
        tcp.sendall(b"x" * 100_000)
        tcp.shutdown(socket.SHUT_WR)
        assert sum(len(piece) for piece in iter(lambda: tcp.recv(65536), b"")) == 100_000
        udp.settimeout(5)
        udp.connect((INET3, 7))
        udp.send(b"\0\xff")
        assert udp.recv(100) == b"\0\xff"
        udp.send(b"whoami 1")
        assert f"198.51.100.1 {udp.getsockname()[1]} whoami 1".encode() == udp.recv(100)


def test_enter(lab: Lab) -> None:
    """The thread is back where it was, also after an exception; a namespace that is not there stays so."""
    home = os.readlink("/proc/thread-self/ns/net")
    with pytest.raises(ZeroDivisionError), lab.node("head").enter():
        assert home != os.readlink("/proc/thread-self/ns/net")
        _ = 1 / 0
    assert home == os.readlink("/proc/thread-self/ns/net")
    absent = Lab(unique_prefix("lbtest")).node("head")
    with pytest.raises(LabError, match="is the lab up"), absent.enter():
        pytest.fail("entered a namespace that is not there")
    assert not absent.netns_path.exists()


def test_run(lab: Lab) -> None:
    """Input goes in, output and status come out, a timeout kills, a failure says what the command said."""
    head = lab.node("head")
    assert head.run(["cat"], timeout=5, input="abc").stdout == "abc"
    assert head.run(["sh", "-c", "exit 3"], timeout=5, check=False).returncode == 3
    with pytest.raises(CommandFailed, match="exit status 1: oh"):
        head.run(["sh", "-c", "echo oh >&2; exit 1"], timeout=5)
    with pytest.raises(subprocess.TimeoutExpired):
        head.run(["sleep", "60"], timeout=0.1)
    with pytest.raises(FileNotFoundError):
        head.run(["no-such-command"], timeout=5)


def test_capture_has_every_packet(lab: Lab) -> None:
    """What was sent before the block ended is in the file, with no pause in between."""
    pytest.importorskip("scapy", reason="reads the pcap")
    with lab.node("head").enter():
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    payloads = [f"{number:04}".encode() for number in range(800)]
    with sender, lab.capture("head", "bond0.2", "udp and dst port 9") as capture:
        for payload in payloads:
            sender.sendto(payload, (INET2, 9))
    assert [bytes(packet["UDP"].payload)[:4] for packet in capture.packets()] == payloads


def test_capture_of_nothing_is_an_error(lab: Lab) -> None:
    """A misspelt interface or filter fails at the start of the block."""
    for interface, expression in [("bond0.9", ""), ("bond0.2", "no filter")]:
        with pytest.raises(LabError, match="tcpdump"), lab.capture("head", interface, expression):
            pytest.fail("captured from nowhere")


def test_up_and_down_may_be_repeated(prefix: str) -> None:
    """The second of either changes nothing and is no error; nothing is left in the end."""
    lab = Lab(prefix)
    assert (lab.up(), Lab(prefix).up()) == (True, False)
    servers_inside = pids_inside(lab)
    assert sorted(server["pid"] for server in lab.status()["servers"]) == sorted(servers_inside)
    assert (Lab(prefix).down(), lab.down()) == (True, False)
    assert traces(prefix) == []
    assert living(servers_inside) == []


def test_two_labs_side_by_side(lab: Lab, prefix: str) -> None:
    """Another prefix is another world; at its end everything in it ends, and what was up before stays up."""
    with Lab(prefix) as other, Lab(lab.prefix):
        assert lab.node("head").netns_path.stat().st_ino != other.node("head").netns_path.stat().st_ino
        for each in (lab, other):
            assert ask(each, INET2, "GET /whoami")[0] == 200
        forgotten = other.node("worker1").popen(["sleep", "60"])
    assert forgotten.returncode == -signal.SIGTERM
    assert lab.status()["up"] and not other.status()["up"]


def test_foreign_namespace_stops_up(prefix: str) -> None:
    """The last of the six names is taken: the error says so, the five before are gone, the sixth is there."""
    name = f"{prefix}-{NODES[-1]}"
    foreign = namespace.create(name)
    try:
        with pytest.raises(LabError, match=f"{name} exists already"):
            Lab(prefix).up()
        assert [name] == traces(prefix)
        assert foreign == namespace.identity_of(name)
        assert not Lab(prefix).down()
    finally:
        namespace.remove(name)


def test_foreign_namespace_survives_down(prefix: str) -> None:
    """One of the lab's namespaces was replaced by another of the same name: down leaves that one alone."""
    lab = Lab(prefix)
    lab.up()
    name = f"{prefix}-worker1"
    namespace.remove(name)
    foreign = namespace.create(name)
    try:
        assert f"the namespace {name} is not the one it made" in lab.status()["troubles"]
        with pytest.raises(LabError, match="damaged"):
            lab.up()
        with pytest.raises(LabError, match=f"left alone.*: {name}"):
            lab.down()
        assert [name] == traces(prefix)
        assert foreign == namespace.identity_of(name)
    finally:
        namespace.remove(name)


def test_down_spares_a_process_with_a_recycled_pid(prefix: str) -> None:
    """A server's pid now belongs to somebody else, as the start time shows."""
    lab = Lab(prefix)
    lab.up()
    record = json.loads(record_path(prefix).read_text())
    with subprocess.Popen(["sleep", "60"]) as bystander:
        own_pid, started = record["servers"][0]["pid"], record["servers"][0]["start_time"]
        record["servers"][0]["pid"] = bystander.pid
        record_path(prefix).write_text(json.dumps(record))
        assert lab.down()
        assert bystander.poll() is None
        bystander.kill()
    processes.stop(own_pid, started)


def test_failed_up_leaves_nothing(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error after the links and the servers were made: all of it is taken down again."""
    pids: list[int] = []

    def fail(_builder: links.Builder) -> None:
        pids.extend(pids_inside(Lab(prefix)))
        raise LabError("the cable is too short")

    monkeypatch.setattr(links.Builder, "wait_for_carrier", fail)
    with pytest.raises(LabError, match="too short"):
        Lab(prefix).up()
    assert pids and living(pids) == []
    assert traces(prefix) == []


def test_failed_server(prefix: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A server that cannot start fails `up`, with the last line of the server's log."""
    script = tmp_path / "broken.py"
    script.write_text("raise SystemExit('no teapot')\n")
    monkeypatch.setattr(lab_module.servers, "__file__", str(script))
    with pytest.raises(LabError, match="ended at once: no teapot"):
        Lab(prefix).up()
    assert traces(prefix) == []


STEPS = [(namespace, "create"), (links.Builder, "build"), (processes, "start_detached")]


@pytest.mark.parametrize(("owner", "step"), STEPS)
def test_killed_up(prefix: str, monkeypatch: pytest.MonkeyPatch, owner: object, step: str) -> None:
    """SIGKILL right after a step, before it could be noted: `down` finds what the step has made."""
    original = getattr(owner, step)
    monkeypatch.setattr(owner, step, lambda *arguments: (original(*arguments), os._exit(9)))
    if (child := os.fork()) == 0:
        Lab(prefix).up()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    with pytest.raises(LabError, match="take it down first"):
        Lab(prefix).up()
    assert Lab(prefix).down()


def test_record_of_an_earlier_boot_is_void(prefix: str) -> None:
    """Where /run is on a disk the record outlives a boot; its namespaces and pids do not."""
    with Lab(prefix) as lab:
        old = json.loads(record_path(prefix).read_text())
    old["boot_id"] = "an earlier one"
    RUN_DIR.mkdir(exist_ok=True)
    record_path(prefix).write_text(json.dumps(old))
    lab.node("head").netns_path.touch()   # what is left of a mount point
    assert not lab.status()["up"]
    assert lab.up() and lab.status()["up"] and lab.down()


def test_chosen_link_kind_never_falls_back(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """bond/vlan by name on a kernel without it is an error, veth by name is veth on every kernel."""
    with Lab(prefix, links=LinkKind.VETH) as lab:
        assert lab.status()["links"] == "veth"
    monkeypatch.setattr(links.Builder, "supports_bond_vlan", lambda _builder: False)
    with pytest.raises(LabError, match="lacks bonding"):
        Lab(prefix, links=LinkKind.BOND_VLAN).up()


def test_command_line(prefix: str) -> None:
    """The whole life of a lab by hand, with the exit statuses that scripts rely on."""
    for command, status, said in [
        (["status"], 1, f"{prefix} is not up"),
        (["up"], 0, f"{prefix} is up ("),
        (["up"], 0, f"{prefix} is up already ("),
        (["status"], 0, "10.1.0.1/24"),
        (["status", "--json"], 0, '"up": true'),
        (["exec", "head", "ip", "-br", "addr"], 0, "10.1.0.1/24"),
        (["exec", "head", "sh", "-c", "exit 7"], 7, ""),
        (["exec", "head", "no-such-command"], 127, ""),
        (["down"], 0, f"{prefix} is down"),
        (["down"], 0, f"{prefix} is not up"),
    ]:
        result = run_lab("--prefix", prefix, *command)
        assert status == result.returncode, command
        assert said in result.stdout


def test_mistakes_are_one_line() -> None:
    """A person's mistake is one line and 1, or the usage and 2 if the command line is wrong."""
    for command, status, said in [
        ("exec nobody ls", 1, "there is no node 'nobody'"),
        ("exec head ls", 1, "lbnone is not up"),
        ("--prefix ../x status", 1, "cannot be a prefix"),
        ("exec head", 2, "CMD"),
        ("frobnicate", 2, "invalid choice"),
    ]:
        result = run_lab("--prefix", "lbnone", *command.split())
        assert status == result.returncode, command
        assert said in result.stderr.splitlines()[-1]
        assert status == 2 or len(result.stderr.splitlines()) == 1


def test_without_root(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command says what it needs."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for arguments in (["up"], ["down"], ["status"], ["exec", "head", "ls"]):
        assert cli.main(["--prefix", "lbnone", *arguments]) == 1
        assert "needs root" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_during_up_takes_everything_down(prefix: str, number: signal.Signals, status: int) -> None:
    """`lab up` is stopped from outside as soon as its first namespace is there."""
    argv = [sys.executable, str(LAB_SCRIPT), "--prefix", prefix, "up"]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as command:
        deadline = time.monotonic() + 60   # long enough for an emulator
        while not namespace.path_of(f"{prefix}-{NODES[0]}").exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        command.send_signal(number)
        _, said = command.communicate(timeout=60)
    assert status == command.returncode
    assert "Traceback" not in said
    assert traces(prefix) == []


class Finalized:
    """Gets a Ctrl-C while it is taken out of memory."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def test_signal_in_a_finalizer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Python ignores what its handler raises there; the next step hears of it, once, and nothing is printed."""
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)      # so that it is put back
    interrupts.keep_lost()
    Finalized()
    with pytest.raises(KeyboardInterrupt):
        interrupts.check()
    interrupts.check()
    assert capsys.readouterr().err == ""
