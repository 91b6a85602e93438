"""iptables' language against a running gateway: refusals that are told, lines in the log, files, flushed flows."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from gateway_tools import ADDRESS, ECHO, UPLINK, connect, conntrack_lines, udp_socket, udp_whoami, wait_for, whoami
from natlab import Lab
from natlab.engine import Engine
from support.backends import NAMES

# the fast path has no part in any of this
pytestmark = [pytest.mark.lab, pytest.mark.parametrize("fast_path", [NAMES[-1]], indirect=True)]

CLOSED_TO_US = 8080


@pytest.mark.parametrize(("how", "number"), [
    ("tcp-reset", errno.ECONNREFUSED), ("icmp-port-unreachable", errno.ECONNREFUSED),
    ("icmp-host-prohibited", errno.EHOSTUNREACH), ("icmp-net-unreachable", errno.ENETUNREACH),
])
def test_reject_is_heard_by_real_clients(lab: Lab, engine: Engine, how: str, number: int) -> None:
    """A connect() fails at once, for the reason that the rule gives; other ports are open."""
    engine.type([f"iptables -I FORWARD -p tcp --dport {CLOSED_TO_US} -j REJECT --reject-with {how}"])
    with pytest.raises(OSError) as caught:
        connect(lab.node("worker1"), ADDRESS["inet2"], CLOSED_TO_US).close()
    assert caught.value.errno == number
    assert whoami(lab.node("worker1"), "inet2")[0] == UPLINK["inet2"]


def test_rules_go_from_chain_to_chain(lab: Lab, engine: Engine) -> None:
    """A chain for a worker, and what its rules counted."""
    engine.type([
        "iptables -N guests", f"iptables -A guests -p udp --dport {ECHO} -j RETURN", "iptables -A guests -j DROP",
        "iptables -I FORWARD -s 10.1.0.12 -j guests",
    ])
    with udp_socket(lab.node("worker2")) as link:
        assert udp_whoami(link, "inet2")[0] == UPLINK["inet2"]
    counted = engine.run("iptables", "-L", "guests", "-nvx").stdout.splitlines()[2].split()
    assert int(counted[0]) >= 1 and counted[2] == "RETURN"


def test_log_writes_to_the_engines_log(lab: Lab, engine: Engine) -> None:
    """One line for a flow."""
    engine.type(["iptables -I FORWARD -p udp -j LOG --log-prefix question:"])
    with udp_socket(lab.node("worker1")) as link:
        udp_whoami(link, "inet2")
        wanted = f"question:IN=bond0.def OUT=bond0.2 SRC=10.1.0.11 DST={ADDRESS['inet2']}"
        wait_for("the line", lambda: wanted in engine.log())
        udp_whoami(link, "inet2")
    assert engine.log().count(wanted) == 1


def test_packets_of_a_flow_are_chosen_one_by_one(lab: Lab, engine: Engine) -> None:
    """Every other question of one flow is dropped, both are counted; answers are not asked about."""
    engine.type([
        f"iptables -I FORWARD 1 -p udp --dport {ECHO} -m statistic --mode nth --every 2 --packet 1 -j DROP",
        f"iptables -I FORWARD 2 -p udp --dport {ECHO} -j ACCEPT",
    ])
    with udp_socket(lab.node("worker1")) as link:
        for n in range(10):
            link.sendto(b"%d" % n, (ADDRESS["inet2"], ECHO))
        assert [link.recv(10) for _ in range(5)] == [b"%d" % n for n in range(0, 10, 2)]
    rows = engine.run("iptables", "-L", "FORWARD", "-nvx").stdout.splitlines()
    assert [row.split()[0] for row in rows[2:] if f"dpt:{ECHO}" in row] == ["5", "5"]


def test_marks_decide(lab: Lab, engine: Engine) -> None:
    """A flow's, that one rule sets and another asks for; a packet's, that the kernel's own mangle table has set."""
    head, worker1, worker2 = (lab.node(name) for name in ("head", "worker1", "worker2"))
    engine.type([
        "iptables -I FORWARD 1 -m mark --mark 5/7 -j REJECT",
        f"iptables -I FORWARD 2 -p udp --dport {ECHO} -m conntrack --ctstate NEW -j CONNMARK --set-mark 1",
        "iptables -I FORWARD 3 -p udp -m connmark ! --mark 1 -j DROP",
    ])
    foreign = "iptables -t mangle {} FORWARD -s 10.1.0.12 -j MARK --set-mark 0x1d"
    head.run(foreign.format("-A").split(), timeout=20)
    try:
        with udp_socket(worker1) as allowed, udp_socket(worker2) as refused:
            for _ in range(3):
                assert udp_whoami(allowed, "inet2")[0] == UPLINK["inet2"]
            refused.connect((ADDRESS["inet2"], ECHO))
            refused.send(b"who am I?")
            with pytest.raises(ConnectionRefusedError):
                refused.recv(100)
            assert [line.split()[-2] for line in conntrack_lines(engine, "-p", "udp", "-m", "1/1")] == ["mark=1"]
    finally:
        head.run(foreign.format("-D").split(), timeout=20)


def test_flows_stay_unless_they_are_to_go(lab: Lab, engine: Engine) -> None:
    with udp_socket(lab.node("worker1")) as link:
        udp_whoami(link, "inet2")
        mine = f"sport={link.getsockname()[1]}"
        engine.type(["iptables -A FORWARD -s 10.9.9.9 -j DROP"])
        assert any(mine in line for line in conntrack_lines(engine))
        engine.type(["iptables -D FORWARD -s 10.9.9.9 -j DROP --flush-flows"])
        assert not any(mine in line for line in conntrack_lines(engine))


def test_a_file_is_tried_and_then_taken(engine: Engine, tmp_path: Path) -> None:
    """--test changes nothing; what comes into force is what iptables-save prints; -c keeps the counters."""
    text = "*filter\n:FORWARD ACCEPT [0:0]\n:guests - [0:0]\n[5:6] -A FORWARD -j guests\nCOMMIT\n"
    path = tmp_path / "rules"
    path.write_text(text)
    before = engine.run("iptables-save", "-t", "filter").stdout.splitlines()[1:-1]
    engine.run("iptables-restore", "--test", str(path))
    assert engine.run("iptables-save", "-t", "filter").stdout.splitlines()[1:-1] == before
    engine.run("iptables-restore", "-c", str(path))
    saved = engine.run("iptables-save", "-c", "-t", "filter").stdout
    assert "[5:6] -A FORWARD -j guests\n" in saved
    path.write_text(saved)
    engine.run("iptables-restore", "-c", str(path))
    assert engine.run("iptables-save", "-c", "-t", "filter").stdout.splitlines()[1:-1] == saved.splitlines()[1:-1]


def test_what_the_engine_would_not_do_is_refused(engine: Engine) -> None:
    """With what to write instead; nothing is changed."""
    before = engine.run("iptables", "-S").stdout
    rule = "iptables -A FORWARD -m conntrack --ctexpire 1:5 -j DROP"
    done = engine.run(*rule.split(), check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "natengine iptables: natengine does not look at --ctexpire: leave it out\n"
    )
    assert engine.run("iptables", "-S").stdout == before


def test_tables_that_are_left_alone_say_so(engine: Engine) -> None:
    done = engine.run("iptables", "-t", "mangle", "-A", "FORWARD", "-j", "MARK", "--set-mark", "1")
    assert done.stderr == (
        "natengine iptables: warning: table mangle is left alone: its 1 rule is kept and listed, not carried out\n"
    )
    done = engine.run("iptables", "-A", "INPUT", "-p", "tcp", "--dport", "22", "-j", "DROP")
    assert done.stderr == (
        "natengine iptables: warning: chain INPUT is kept and listed, not carried out: "
        "what is for the head itself or from it is for its iptables or nft\n"
    )
    done = engine.run("iptables", "-t", "mangle", "-A", "FORWARD", "-j", "DROP", check=False)
    assert done.returncode == 1 and "write that in table filter, chain FORWARD, instead" in done.stderr
