"""Rules changed while the gateway runs: the owner's commands, mistakes, FORWARD, save, restore, a flush."""

from __future__ import annotations

import hashlib
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import NewEngine
from gateway_tools import (
    ADDRESS,
    DEADLINE_S,
    ECHO,
    UPLINK,
    Done,
    answers,
    connect,
    conntrack_lines,
    curl,
    echo,
    head_state,
    is_silent,
    natengine,
    ping,
    udp_socket,
    udp_whoami,
    whoami,
)
from natlab import Lab
from natlab.engine import OWNERS_COMMANDS, Engine
from natlab.servers import body_sha256
from support.backends import NAMES

pytestmark = pytest.mark.lab
# for what the fast path has no part in
one_fast_path = pytest.mark.parametrize("fast_path", [NAMES[-1]], indirect=True)

TRANSFER_BYTES = 40_000_000     # more than all buffers on the way hold
ACCEPT_ANSWERS = "iptables -A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"
Iptables = Callable[[str], Done]


@pytest.fixture
def kernel_iptables(lab: Lab) -> Iterator[Iptables]:
    """The real iptables, in a namespace where it does no harm."""
    switch = lab.node("switch")

    def run(line: str) -> Done:
        return switch.run(line.split(), timeout=20, check=False)

    yield run
    for words in ("-F", "-X", "-t nat -F", "-P FORWARD ACCEPT"):
        run(f"iptables {words}")


def forwards(lab: Lab, worker: str = "worker1", host: str = "inet2") -> bool:
    """Whether a worker's ping to a host is answered."""
    return answers(lab.node(worker), ADDRESS[host])


def blocks(lab: Lab, worker: str = "worker1", host: str = "inet2") -> bool:
    """Whether it is not."""
    return is_silent(lab.node(worker), ADDRESS[host])


def rules(engine: Engine) -> str:
    """The rule set as text, without counters."""
    return engine.run("iptables", "-S").stdout + engine.run("iptables", "-t", "nat", "-S").stdout


# ── changed at run time ─────────────────────────────────────────────────────────────────────────


@one_fast_path
def test_without_rules_nothing_is_touched(lab: Lab, new_engine: NewEngine) -> None:
    """No rules: forwarding stays off, no hook takes a packet, the head does what it did."""
    engine = new_engine()
    assert lab.node("head").sysctl("net/ipv4/ip_forward") == "0"
    assert not any("queue num" in rule or "NFQUEUE" in rule for rule in head_state(lab).rules)
    assert "1 received" in ping(lab.node("head"), ADDRESS["inet2"])
    assert blocks(lab)
    assert conntrack_lines(engine) == []


def test_owners_commands(lab: Lab, new_engine: NewEngine, kernel_iptables: Iptables) -> None:
    """The owner's commands, word for word, at run time: the real iptables' listings, and traffic flows."""
    engine = new_engine()
    for command in OWNERS_COMMANDS:
        done = engine.run(*command.split())
        assert (done.stdout, done.stderr) == ("", "")
        assert kernel_iptables(command).returncode == 0
    for listing in (
        "iptables -L -t nat", "iptables -L", "iptables -S", "iptables -t nat -S", "iptables -L FORWARD",
        "iptables -t nat -nL --line-numbers", "iptables -t nat -nL POSTROUTING",
    ):
        assert engine.run(*listing.split()).stdout == kernel_iptables(listing).stdout
    for worker in ("worker1", "worker2"):
        for host, address in UPLINK.items():
            assert whoami(lab.node(worker), host)[0] == address


def test_uplinks_come_one_after_the_other(lab: Lab, new_engine: NewEngine) -> None:
    """Any number of out-interfaces: each rule opens its own, and one that is taken back closes it again."""
    engine = new_engine()
    engine.type(OWNERS_COMMANDS[:1])
    assert forwards(lab, host="inet2")              # over bond0.3, which no rule names, it is a plain router
    engine.type(OWNERS_COMMANDS[1:2])
    assert forwards(lab, host="inet2") and forwards(lab, host="inet3")
    engine.type(["iptables -t nat -D POSTROUTING -o bond0.3 -j MASQUERADE"])
    assert forwards(lab, host="inet2")
    assert blocks(lab, "worker2", "inet3")          # dropped, where the kernel would let it leak


def test_masquerade_without_an_interface(lab: Lab, new_engine: NewEngine) -> None:
    """A rule without -o is for every interface; also TCP and UDP from port ranges of its own."""
    engine = new_engine()
    engine.type(["iptables -t nat -A POSTROUTING -p udp -j MASQUERADE --to-ports 5000-5010"])
    engine.type(["iptables -t nat -A POSTROUTING -j MASQUERADE"])
    with udp_socket(lab.node("worker1")) as link:
        address, port = udp_whoami(link, "inet2")
    assert address == UPLINK["inet2"] and 5000 <= port <= 5010
    assert whoami(lab.node("worker2"), "inet2")[0] == UPLINK["inet2"]


# ── FORWARD ─────────────────────────────────────────────────────────────────────────────────────


def test_forward_policy(lab: Lab, engine: Engine) -> None:
    """Under policy DROP only what a rule accepts passes, answers as well; as in the kernel."""
    engine.type(["iptables -P FORWARD DROP"])
    assert blocks(lab)                        # the owner's rule lets the question out, not the answer in
    engine.type([ACCEPT_ANSWERS])
    assert forwards(lab)
    assert whoami(lab.node("worker2"), "inet3")[0] == UPLINK["inet3"]
    engine.type(["iptables -D FORWARD -i bond0.def -j ACCEPT"])
    assert blocks(lab)
    engine.type(["iptables -P FORWARD ACCEPT"])
    assert forwards(lab)


@one_fast_path
def test_forward_in_interface(lab: Lab, engine: Engine) -> None:
    """`-i` is the interface that a packet came in by: a rule for another one does nothing."""
    engine.type(["iptables -I FORWARD -i bond0.3 -p icmp -j DROP"])
    assert forwards(lab, host="inet2")
    assert blocks(lab, host="inet3")          # the answers come in by it
    engine.type(["iptables -I FORWARD -i bond0.def -s 10.1.0.11 -j DROP"])
    assert blocks(lab, "worker1") and forwards(lab, "worker2")


def test_new_forward_rule_stops_a_flow(lab: Lab, engine: Engine) -> None:
    """A connection that is open asks again when the rules change, as every packet does in the kernel."""
    with connect(lab.node("worker1"), ADDRESS["inet2"], ECHO) as link:
        echo(link, b"before")
        engine.type(["iptables -I FORWARD -p tcp --dport 7 -j DROP"])
        link.settimeout(0.5)
        with pytest.raises(TimeoutError):
            echo(link, b"now")
        engine.type(["iptables -D FORWARD -p tcp --dport 7 -j DROP"])
        link.settimeout(DEADLINE_S)
        assert link.recv(3) == b"now"               # TCP has not given up


@one_fast_path
def test_head_is_not_forwarded(lab: Lab, engine: Engine) -> None:
    """FORWARD says nothing about the head's own traffic, either way."""
    engine.type(["iptables -P FORWARD DROP", "iptables -F FORWARD"])
    assert whoami(lab.node("head"), "inet2")[0] == UPLINK["inet2"]
    assert "1 received" in ping(lab.node("inet3"), UPLINK["inet3"])


# ── mistakes ────────────────────────────────────────────────────────────────────────────────────

MISTAKES = [
    "iptables --table nat --append POSTROUTING --out-interface bond0.2 -j MASQERADE",
    "iptables -t nat -A POSTROUTING -o bond0.2 -j",
    "iptables -t nat -A POSTROUTING -o bond0.2 --frobnicate",
    "iptables -t nat -A POSTROUTING -p tcp -j MASQUERADE --to-ports 99999",
    "iptables -t nat -A POSTROUTING -i bond0.2 -j MASQUERADE",
    "iptables -A FORWARD -s 10.1.0.300 -j ACCEPT",
    "iptables -A FORWARD -p tpc -j ACCEPT",
    "iptables -A FORWARD -m nonsense -j ACCEPT",
    "iptables -A",
]


def message(text: str) -> str:
    """A refusal without the name of the program that refuses."""
    first = text.strip().partition("\n")[0]
    for name in ("natengine iptables", "iptables"):
        first = first.removeprefix(name)
    return first.removeprefix(" v1.8.9 (nf_tables)").removeprefix(": ")


@one_fast_path
def test_mistakes(lab: Lab, engine: Engine, kernel_iptables: Iptables) -> None:
    """A wrong command is refused as iptables refuses it, with status 2, and changes nothing."""
    before = engine.run("save", "--file", "/dev/stdout", check=False), rules(engine)
    for line in MISTAKES:
        ours, theirs = engine.run(*line.split(), check=False), kernel_iptables(line)
        assert (ours.returncode, ours.stdout) == (theirs.returncode, theirs.stdout), line
        assert message(ours.stderr) == message(theirs.stderr), line
        assert ours.returncode == 2, line
    assert rules(engine) == before[1]
    assert forwards(lab)


@one_fast_path
def test_refusals(engine: Engine) -> None:
    """A well-formed command about something that is not there has status 1, as with iptables."""
    before = rules(engine)
    for line in (
        "iptables -D FORWARD -i bond0.9 -j ACCEPT", "iptables -D FORWARD 17", "iptables -A NOWHERE -j ACCEPT",
        "iptables -L NOWHERE", "iptables -P FORWARD MASQUERADE",
    ):
        done = engine.run(*line.split(), check=False)
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, (line, done)
    assert before == rules(engine)


@one_fast_path
def test_commands_without_an_engine(lab: Lab, new_engine: NewEngine, tmp_path: Path) -> None:
    """Every command that asks an engine says in one line that none is running, and how to start one."""
    env = {"NATENGINE_RUN_DIR": str(tmp_path), "NATENGINE_RULES": str(tmp_path / "rules")}
    for words in (["iptables", "-L"], ["save"], ["status"], ["conntrack", "-L"]):
        done = natengine(lab, *words, env=env)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done
        assert "no engine is running" in done.stderr and "natengine run" in done.stderr
    assert list(tmp_path.iterdir()) == []


# ── save, stop, start ───────────────────────────────────────────────────────────────────────────


def test_set_save_stop_start(lab: Lab, new_engine: NewEngine) -> None:
    """After a restart the rules are there again, and traffic flows, without any further command."""
    engine = new_engine()
    engine.type()
    engine.type(["iptables -P FORWARD DROP", ACCEPT_ANSWERS])
    engine.run("save")                              # to NATENGINE_RULES
    assert stat.S_IMODE(engine.rules_file.stat().st_mode) == 0o600
    before = rules(engine)
    assert engine.stop() == 0
    assert blocks(lab)
    engine.start()                                  # from NATENGINE_RULES
    assert before == rules(engine)
    assert forwards(lab, "worker1", "inet2") and forwards(lab, "worker2", "inet3")


@one_fast_path
def test_save_to_a_file_and_run_from_it(lab: Lab, new_engine: NewEngine, tmp_path: Path) -> None:
    """`save --file F` writes what iptables-restore reads, and `run --rules F` starts from it."""
    engine = new_engine()
    engine.type()
    path = tmp_path / "new" / "rules.v4"
    engine.run("save", "--file", str(path))
    checked = lab.node("switch").run(["iptables-restore", "--test", str(path)], timeout=20, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")
    before = rules(engine)
    engine.stop()
    assert rules(new_engine("--rules", path)) == before


@one_fast_path
def test_rules_of_the_real_iptables(
    lab: Lab, new_engine: NewEngine, kernel_iptables: Iptables, tmp_path: Path
) -> None:
    """What iptables-save prints can be run from as it is, comments and counters and all."""
    for command in OWNERS_COMMANDS:
        kernel_iptables(command)
    path = tmp_path / "saved"
    path.write_text(lab.node("switch").run(["iptables-save", "-c"], timeout=20).stdout)
    new_engine("--rules", path)
    assert forwards(lab)


@one_fast_path
def test_save_is_atomic(engine: Engine, tmp_path: Path) -> None:
    """A save that fails leaves the old file as it was, and nothing beside it."""
    path = tmp_path / "rules.v4"
    path.write_text("old\n")
    inode = path.stat().st_ino
    engine.run("save", "--file", str(path))
    assert path.stat().st_ino != inode              # replaced, not written over
    assert path.read_text().count("MASQUERADE") == 2
    directory = tmp_path / "taken"
    directory.mkdir()
    refused = engine.run("save", "--file", str(directory), check=False)
    assert refused.returncode != 0 and len(refused.stderr.splitlines()) == 1
    assert sorted(each.name for each in tmp_path.iterdir()) == ["rules.v4", "taken"]


@one_fast_path
def test_restore_at_run_time(lab: Lab, new_engine: NewEngine, owners_rules: Path, tmp_path: Path) -> None:
    """`natengine restore` puts a whole file in force; a wrong one changes nothing and names the line."""
    engine = new_engine()
    engine.run("restore", "--file", str(owners_rules))
    assert forwards(lab)
    wrong = tmp_path / "wrong"
    wrong.write_text("*nat\n-A POSTROUTING -o bond0.2 -j MASQUERADE\n-A POSTROUTING --nonsense\nCOMMIT\n")
    before = rules(engine)
    refused = engine.run("restore", "--file", str(wrong), check=False)
    assert refused.returncode == 2 and "line 3" in refused.stderr
    assert before == rules(engine)


# ── flush ───────────────────────────────────────────────────────────────────────────────────────


def test_flush_while_a_transfer_runs(lab: Lab, engine: Engine) -> None:
    """Without nat rules a transfer that runs goes on to its end; new connections do not get out, nor leak."""
    worker = lab.node("worker1")
    url = f"http://{ADDRESS['inet2']}"
    argv = ["curl", "-sS", "-m", "60", f"{url}/bytes/{TRANSFER_BYTES}"]
    with (
        worker.popen(argv, stdout=subprocess.PIPE) as transfer,
        connect(worker, ADDRESS["inet3"], ECHO) as link,
    ):
        assert transfer.stdout is not None
        digest = hashlib.sha256(transfer.stdout.read(1000))     # it is in the middle until we read on
        echo(link, b"before")
        engine.type(["iptables -t nat -F"])
        echo(link, b"after" * 1000)
        for host in UPLINK:
            assert blocks(lab, "worker2", host)
        refused = worker.run(["curl", "-s", "-m1", f"{url}/whoami"], timeout=20, check=False)
        assert refused.returncode == 28             # timed out
        while piece := transfer.stdout.read(1 << 20):
            digest.update(piece)
        assert transfer.wait(3 * DEADLINE_S) == 0
        assert digest.hexdigest() == body_sha256(TRANSFER_BYTES, 0)
        engine.type(OWNERS_COMMANDS[:2])
        assert curl(lab.node("worker2"), f"{url}/whoami").startswith(UPLINK["inet2"])
        echo(link, b"still the same connection")
