"""The text that goes to iptables-restore; nothing is run."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from natengine.adapters import hooks
from natengine.adapters.hook_plan import Flood, Flooder, HookPlan, LocalService
from natengine.adapters.hooks import IptablesHooks
from natengine.errors import HostError


class FakeIptables:
    """Stands where `subprocess.run` does, and remembers chains and jumps."""

    def __init__(self) -> None:
        self.transactions: list[str] = []
        self.commands: list[list[str]] = []
        self.jumps: set[tuple[str, str]] = set()
        self.chains: set[tuple[str, str]] = set()
        self.refuse: str | None = None
        self.refuse_shedding = ""
        self.listing = ""
        self.failure: Exception | None = None

    def __call__(self, argv: list[str], *, input: str | None, **options: object) -> object:
        assert options["timeout"]
        if self.failure is not None:
            raise self.failure
        self.commands.append(argv)
        if argv[0] == "iptables-restore":
            assert argv[1:] == ["-w", "--noflush"]
            assert input is not None
            return self.restore(input)
        if argv == ["iptables-save"]:
            lines = "".join(f":{chain} - [0:0]\n" for _, chain in self.chains)
            return subprocess.CompletedProcess(argv, 0, f"*raw\n:PREROUTING ACCEPT [0:0]\n{lines}COMMIT\n", "")
        _, wait, _, table, *rest = argv
        assert wait == "-w"
        if rest[0] == "-nvxL":
            return subprocess.CompletedProcess(argv, 0, self.listing, "")
        if rest[0] == "-C":
            found = (table, rest[-1]) in self.jumps
        else:
            assert rest[:2] == ["-n", "-L"]
            found = (table, rest[2]) in self.chains
        return subprocess.CompletedProcess(argv, 0 if found else 1, "", "")

    def restore(self, text: str) -> object:
        if self.refuse is not None:
            return subprocess.CompletedProcess([], 2, "", self.refuse)
        if self.refuse_shedding and "-m recent" in text:
            return subprocess.CompletedProcess([], 2, "", self.refuse_shedding)
        self.transactions.append(text)
        lines = text.splitlines()
        table = lines[0][1:]
        for line in lines[1:-1]:
            words = line.split()
            if line.startswith(":"):
                self.chains.add((table, words[0][1:]))
            elif words[0] == "-I":
                self.jumps.add((table, words[-1]))
            elif words[0] == "-D":
                self.jumps.remove((table, words[-1]))
            elif words[0] == "-X":
                self.chains.remove((table, words[1]))
        assert lines[-1] == "COMMIT"
        return subprocess.CompletedProcess([], 0, "", "")


@pytest.fixture
def iptables(monkeypatch: pytest.MonkeyPatch) -> FakeIptables:
    fake = FakeIptables()
    monkeypatch.setattr(hooks.subprocess, "run", fake)
    monkeypatch.setattr(hooks.shutil, "which", lambda program: f"/sbin/{program}")
    return fake


FIRST = [
    "*mangle\n:natengine-out - [0:0]\n"
    "-A natengine-out -o bond0.2 -j NFQUEUE --queue-num 7\n"
    "-A natengine-out -o bond0.3 -j NFQUEUE --queue-num 7\n"
    "-I POSTROUTING -j natengine-out\nCOMMIT\n",
    "*raw\n:natengine-in - [0:0]\n"
    "-A natengine-in -i bond0.2 -j NFQUEUE --queue-num 7\n"
    "-A natengine-in -i bond0.3 -j NFQUEUE --queue-num 7\n"
    "-I PREROUTING -j natengine-in\nCOMMIT\n",
]


def test_installation(iptables: FakeIptables) -> None:
    """One transaction a table, outbound first; no --queue-bypass: fail closed."""
    IptablesHooks((7, 7)).sync(HookPlan(("bond0.2", "bond0.3")))
    assert iptables.transactions == FIRST
    assert "bypass" not in "".join(FIRST)


def test_nothing_new_nothing_run(iptables: FakeIptables) -> None:
    """The same uplinks again cost nothing."""
    installed = IptablesHooks((7, 7))
    installed.sync(HookPlan(("bond0.2",)))
    iptables.commands.clear()
    installed.sync(HookPlan(("bond0.2",)))
    assert iptables.commands == []


def test_change(iptables: FakeIptables) -> None:
    """The chains are written anew, in one transaction each; the jumps are there already."""
    installed = IptablesHooks((7, 7))
    installed.sync(HookPlan(("bond0.2",)))
    iptables.transactions.clear()
    installed.sync(HookPlan(("bond0.2", "eth+")))
    assert iptables.transactions == [
        "*mangle\n:natengine-out - [0:0]\n-A natengine-out -o bond0.2 -j NFQUEUE --queue-num 7\n"
        "-A natengine-out -o eth+ -j NFQUEUE --queue-num 7\nCOMMIT\n",
        "*raw\n:natengine-in - [0:0]\n-A natengine-in -i bond0.2 -j NFQUEUE --queue-num 7\n"
        "-A natengine-in -i eth+ -j NFQUEUE --queue-num 7\nCOMMIT\n",
    ]


def test_every_interface(iptables: FakeIptables) -> None:
    """A rule without -o: all but the loopback, in one rule."""
    IptablesHooks((7, 7)).sync(HookPlan(("bond0.2",), any_interface=True))
    assert "-A natengine-out ! -o lo -j NFQUEUE --queue-num 7\n" in iptables.transactions[0]
    assert "-A natengine-in ! -i lo -j NFQUEUE --queue-num 7\n" in iptables.transactions[1]
    assert "bond0.2" not in "".join(iptables.transactions)


def test_hairpinning(iptables: FakeIptables) -> None:
    """What is for an uplink's address is taken on any interface, marked, and taken again where it leaves."""
    IptablesHooks((7, 7)).sync(HookPlan(("bond0.2",), addresses=("203.0.113.1", "203.0.113.50"), mark=0x10))
    assert iptables.transactions == [
        "*mangle\n:natengine-out - [0:0]\n-A natengine-out -o bond0.2 -j NFQUEUE --queue-num 7\n"
        "-A natengine-out ! -o lo -m mark --mark 0x10/0x10 -j NFQUEUE --queue-num 7\n"
        "-I POSTROUTING -j natengine-out\nCOMMIT\n",
        "*raw\n:natengine-in - [0:0]\n-A natengine-in -i bond0.2 -j NFQUEUE --queue-num 7\n"
        "-A natengine-in ! -i lo -d 203.0.113.1 -j MARK --set-xmark 0x10/0x10\n"
        "-A natengine-in ! -i lo -d 203.0.113.50 -j MARK --set-xmark 0x10/0x10\n"
        "-A natengine-in ! -i lo -m mark --mark 0x10/0x10 -j NFQUEUE --queue-num 7\n"
        "-I PREROUTING -j natengine-in\nCOMMIT\n",
    ]


def test_the_heads_own_packets(iptables: FakeIptables) -> None:
    """Two chains more, only where there is something to take; emptied when there is nothing any more."""
    installed = IptablesHooks((7, 7))
    installed.sync(HookPlan(("bond0.2",), mark=0x10, own_destinations=("203.0.113.1/32",)))
    assert iptables.transactions[1] == (
        "*mangle\n:natengine-receive - [0:0]\n-A natengine-receive -i bond0.2 -j NFQUEUE --queue-num 7\n"
        "-A natengine-receive ! -i lo -m mark --mark 0x10/0x10 -j NFQUEUE --queue-num 7\n"
        "-I INPUT -j natengine-receive\nCOMMIT\n"
    )
    assert iptables.transactions[3] == (
        "*raw\n:natengine-send - [0:0]\n-A natengine-send -d 203.0.113.1/32 -j MARK --set-xmark 0x10/0x10\n"
        "-A natengine-send -m mark --mark 0x10/0x10 -j NFQUEUE --queue-num 7\n"
        "-I OUTPUT -j natengine-send\nCOMMIT\n"
    )
    iptables.transactions.clear()
    installed.sync(HookPlan(("bond0.2",)))
    assert "*raw\n:natengine-send - [0:0]\nCOMMIT\n" in iptables.transactions
    installed.remove()
    assert iptables.jumps == iptables.chains == set()


def test_services_of_the_heads_own(iptables: FakeIptables) -> None:
    """What they answer is taken on the loopback, and the errors about closed ports; nothing else there."""
    services = (LocalService("127.0.0.1", 6, (8080, 8081)), LocalService("127.0.0.1", 1), LocalService("10.1.0.1"))
    plan = HookPlan(("bond0.2",), mark=0x10, own_destinations=("203.0.113.1/32",), own_services=services)
    IptablesHooks((7, 7)).sync(plan)
    unreachable = "-p icmp --icmp-type destination-unreachable"
    assert [line for line in "".join(iptables.transactions).splitlines() if " lo " in line and "!" not in line] == [
        f"-A natengine-receive -i lo {unreachable} -s 127.0.0.1 -j NFQUEUE --queue-num 7",
        f"-A natengine-receive -i lo {unreachable} -s 10.1.0.1 -j NFQUEUE --queue-num 7",
        "-A natengine-receive -i lo -s 127.0.0.1 -p 6 --sport 8080:8081 -j NFQUEUE --queue-num 7",
        "-A natengine-receive -i lo -s 127.0.0.1 -p 1 -j NFQUEUE --queue-num 7",
        "-A natengine-receive -i lo -s 10.1.0.1 -j NFQUEUE --queue-num 7",
    ]


def test_no_hairpinning_without_a_mark(iptables: FakeIptables) -> None:
    """Or where every interface is taken anyway."""
    addresses = ("203.0.113.1",)
    for plan in (HookPlan(("bond0.2",), addresses=addresses), HookPlan((), True, addresses, 0x10)):
        IptablesHooks((7, 7)).sync(plan)
    assert "mark" not in "".join(iptables.transactions).lower()


SHEDDING = (
    "*mangle\n:natengine-shed - [0:0]\n"
    "-A natengine-shed -p tcp --syn -m recent --name natengine-syn --rcheck --seconds 4 "
    "-m hashlimit --hashlimit-name natengine-syn-2000 --hashlimit-mode srcip "
    "--hashlimit-above 2000/second --hashlimit-burst 200 -j DROP\n"
    "-A natengine-shed ! -p tcp -m recent --name natengine-other --rcheck --seconds 4 "
    "-m hashlimit --hashlimit-name natengine-other-10000 --hashlimit-mode srcip "
    "--hashlimit-above 10000/second --hashlimit-burst 1000 -j DROP\nCOMMIT\n"
)


def test_shedding(iptables: FakeIptables) -> None:
    """A chain that only those are dropped in who are listed; only of what would be queued, and just before it is."""
    installed = IptablesHooks((7, 7))
    installed.sync(HookPlan(("bond0.2", "bond0.3"), flows_a_second=1000))
    assert iptables.transactions == [
        SHEDDING,
        "*mangle\n:natengine-out - [0:0]\n"
        "-A natengine-out -o bond0.2 -j natengine-shed\n-A natengine-out -o bond0.2 -j NFQUEUE --queue-num 7\n"
        "-A natengine-out -o bond0.3 -j natengine-shed\n-A natengine-out -o bond0.3 -j NFQUEUE --queue-num 7\n"
        "-I POSTROUTING -j natengine-out\nCOMMIT\n",
        FIRST[1],
    ]
    assert installed.cannot_shed == ""
    installed.sync(HookPlan(("bond0.2",), flows_a_second=1000))
    assert iptables.transactions.count(SHEDDING) == 1, "its counters go on"
    iptables.transactions.clear()
    installed.sync(HookPlan(("bond0.2",), guard=True, flows_a_second=1000))
    assert iptables.transactions == GUARD, "a guard drops everything"
    installed.remove()
    assert iptables.jumps == iptables.chains == set()


def test_a_kernel_that_cannot_shed(iptables: FakeIptables) -> None:
    """The hooks are as they would be without; the kernel is asked once."""
    installed = IptablesHooks((7, 7))
    iptables.refuse_shedding = "Couldn't load match `recent'"
    installed.sync(HookPlan(("bond0.2", "bond0.3"), flows_a_second=1000))
    assert iptables.transactions == FIRST
    assert installed.cannot_shed == "Couldn't load match `recent'"
    iptables.refuse_shedding = ""
    installed.sync(HookPlan(("bond0.2",), flows_a_second=1000))
    assert "natengine-shed" not in "".join(iptables.transactions)


def test_naming_a_sender(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, iptables: FakeIptables) -> None:
    """A line for the list of its kind; no program is run."""
    monkeypatch.setattr(hooks, "LISTS", tmp_path)
    installed = IptablesHooks((7, 7))
    installed.shed(Flooder(0x0A01000B, Flood.OTHER))
    assert (tmp_path / "natengine-other").read_text() == "+10.1.0.11\n"
    assert iptables.commands == []
    monkeypatch.setattr(hooks, "LISTS", tmp_path / "nowhere")
    with pytest.raises(HostError, match="natengine-syn: No such file"):
        installed.shed(Flooder(0x0A01000B, Flood.SYN))


def test_what_was_shed(iptables: FakeIptables) -> None:
    """The rules count it; where they are gone, nothing."""
    installed = IptablesHooks((7, 7))
    assert installed.shed_packets() == 0
    iptables.listing = (
        "Chain natengine-shed (2 references)\n    pkts      bytes target     prot opt in     out     source\n"
        "  261795 10471800 DROP       6    --  *      *       0.0.0.0/0\n"
        "       5      160 DROP      !6    --  *      *       0.0.0.0/0\n"
    )
    assert installed.shed_packets() == 261_800


@pytest.mark.parametrize(("flows_a_second", "syns", "others"), [(1, 2, 10), (600_000, 1_000_000, 1_000_000)])
def test_rates(flows_a_second: int, syns: int, others: int) -> None:
    """Above what the engine lets a sender have; no rate that the matches cannot say."""
    plan = HookPlan(flows_a_second=flows_a_second)
    assert (plan.shed_above(Flood.SYN), plan.shed_above(Flood.OTHER)) == (syns, others)


def test_several_queues(iptables: FakeIptables) -> None:
    """The kernel spreads connections over them."""
    IptablesHooks((7, 10)).sync(HookPlan(("bond0.2",)))
    assert "-j NFQUEUE --queue-balance 7:10\n" in iptables.transactions[0]


def test_no_uplinks_at_the_start(iptables: FakeIptables) -> None:
    """Empty chains: nothing is taken, and what a killed engine left is emptied."""
    IptablesHooks((7, 7)).sync(HookPlan(()))
    assert "NFQUEUE" not in "".join(iptables.transactions)
    assert len(iptables.transactions) == 2


GUARD = [
    "*mangle\n:natengine-out - [0:0]\n"
    "-A natengine-out -o bond0.2 -m addrtype --src-type UNICAST -j DROP\n"
    "-A natengine-out -o bond0.2 -p tcp --tcp-flags RST RST -j DROP\n"
    "-A natengine-out -o bond0.2 -p icmp --icmp-type destination-unreachable -j DROP\nCOMMIT\n",
    "*raw\n:natengine-in - [0:0]\n-A natengine-in -i bond0.2 -m addrtype --dst-type UNICAST -j DROP\nCOMMIT\n",
]


def test_guard(iptables: FakeIptables) -> None:
    """In the place of the hooks, outbound first: nothing that is not the head's own, and no RST of the head's."""
    installed = IptablesHooks((7, 7))
    installed.sync(HookPlan(("bond0.2",)))
    iptables.transactions.clear()
    installed.sync(HookPlan(("bond0.2",), guard=True))
    assert iptables.transactions == GUARD


def test_from_the_guard_to_the_hooks(iptables: FakeIptables) -> None:
    """Inbound first: what arrives is looked at before the head may answer it."""
    IptablesHooks((7, 7)).sync(HookPlan(("bond0.2",), guard=True))
    iptables.transactions.clear()
    IptablesHooks((7, 7)).sync(HookPlan(("bond0.2",)))
    assert [text.split("\n")[0] for text in iptables.transactions] == ["*raw", "*mangle"]


def test_removal(iptables: FakeIptables) -> None:
    """Jumps first, then the chains, in one transaction; inbound first."""
    installed = IptablesHooks((7, 7))
    installed.sync(HookPlan(("bond0.2",)))
    iptables.transactions.clear()
    installed.remove()
    assert iptables.transactions == [
        "*raw\n:natengine-in - [0:0]\n-D PREROUTING -j natengine-in\n-X natengine-in\nCOMMIT\n",
        "*mangle\n:natengine-out - [0:0]\n-D POSTROUTING -j natengine-out\n-X natengine-out\nCOMMIT\n",
    ]
    assert iptables.jumps == iptables.chains == set()
    iptables.transactions.clear()
    installed.remove()
    assert iptables.transactions == []


def test_removal_of_half_of_it(iptables: FakeIptables) -> None:
    """A chain without its jump goes too."""
    iptables.chains.add(("raw", "natengine-in"))
    IptablesHooks((7, 7)).remove()
    assert iptables.transactions == ["*raw\n:natengine-in - [0:0]\n-X natengine-in\nCOMMIT\n"]


def test_is_installed(iptables: FakeIptables) -> None:
    """A chain is enough; no table is asked for by name, for that would make it."""
    hooks = IptablesHooks((7, 7))
    assert not hooks.is_installed()
    iptables.chains.add(("raw", "natengine-in"))
    assert hooks.is_installed()
    assert iptables.commands == [["iptables-save"]] * 2


def test_left_behind_by_a_killed_engine(iptables: FakeIptables) -> None:
    """Taken over: one jump stays one jump."""
    iptables.jumps = {("mangle", "natengine-out"), ("raw", "natengine-in")}
    IptablesHooks((7, 7)).sync(HookPlan(("bond0.2",)))
    assert "-I" not in "".join(iptables.transactions)


def test_refusal(iptables: FakeIptables) -> None:
    """What iptables said, what is missing, what to try; and it is tried again next time."""
    installed = IptablesHooks((7, 7))
    iptables.refuse = "iptables-restore: line 3 failed\n  unknown target\n"
    with pytest.raises(HostError, match=r"table mangle: .*line 3 failed unknown target.*modprobe"):
        installed.sync(HookPlan(("bond0.2",)))
    iptables.refuse = None
    installed.sync(HookPlan(("bond0.2",)))
    assert len(iptables.transactions) == 2


def test_no_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which one, and how to get it."""
    monkeypatch.setattr(hooks.shutil, "which", lambda _program: None)
    with pytest.raises(HostError, match="iptables is not installed"):
        IptablesHooks((7, 7))


@pytest.mark.parametrize(
    "failure", [subprocess.TimeoutExpired("iptables", 30), FileNotFoundError(2, "No such file or directory")]
)
def test_programs_that_do_not_work(iptables: FakeIptables, failure: Exception) -> None:
    """A lock that is never given back; a program that went away."""
    iptables.failure = failure
    with pytest.raises(HostError, match="iptables"):
        IptablesHooks((7, 7)).sync(HookPlan(("bond0.2",)))
