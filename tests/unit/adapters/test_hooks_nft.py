"""The text that goes to nft; nothing is run."""

from __future__ import annotations

import re
import subprocess

import pytest

from natengine.adapters import hooks_nft, programs
from natengine.adapters.hook_plan import Action, Flood, Flooder, HookPlan, HookRule, LocalService, Place
from natengine.adapters.hooks_nft import CHAINS, NftHooks
from natengine.errors import HostError


class FakeNft:
    """Stands where `subprocess.run` does."""

    def __init__(self) -> None:
        self.transactions: list[str] = []
        self.checks: list[str] = []
        self.is_there = False
        self.refuse: str | None = None
        self.refuse_shedding = ""
        self.counters = ""

    def __call__(self, argv: list[str], *, input: str | None, **options: object) -> object:
        assert options["timeout"] and argv[0] == "nft"
        if argv[1:3] == ["list", "counters"]:
            assert argv[3:] == ["table", "ip", "natengine"]
            return subprocess.CompletedProcess(argv, 0, self.counters, "")
        if argv[1] == "list":
            assert argv[2:] == ["table", "ip", "natengine"]
            return subprocess.CompletedProcess(argv, 0 if self.is_there else 1, "", "")
        assert input is not None and argv[-2:] == ["-f", "-"]
        if self.refuse is not None:
            return subprocess.CompletedProcess(argv, 1, "", self.refuse)
        if self.refuse_shedding and "limit rate" in input:
            return subprocess.CompletedProcess(argv, 1, "", self.refuse_shedding)
        if "--check" in argv:
            self.checks.append(input)
        else:
            self.transactions.append(input)
            self.is_there = "delete table" not in input
        return subprocess.CompletedProcess(argv, 0, "", "")


@pytest.fixture
def nft(monkeypatch: pytest.MonkeyPatch) -> FakeNft:
    fake = FakeNft()
    monkeypatch.setattr(subprocess, "run", fake)
    monkeypatch.setattr(hooks_nft.shutil, "which", lambda program: f"/sbin/{program}")
    return fake


FRAME = """\
add table ip natengine
add chain ip natengine leaving { type filter hook postrouting priority -151; policy accept; }
add chain ip natengine arriving { type filter hook prerouting priority -301; policy accept; }
flush table ip natengine
"""


def test_installation(nft: FakeNft) -> None:
    """One transaction; the chains stay, so that there is no moment between the old rules and the new ones."""
    NftHooks((7, 7)).sync(HookPlan(("bond0.2", "bond0.3")))
    assert nft.transactions == [FRAME + """\
add rule ip natengine leaving oifname "bond0.2" queue num 7
add rule ip natengine leaving oifname "bond0.3" queue num 7
add rule ip natengine arriving iifname "bond0.2" queue num 7
add rule ip natengine arriving iifname "bond0.3" queue num 7
"""]
    assert "bypass" not in nft.transactions[0] and "delete" not in nft.transactions[0]


def test_nothing_new_nothing_run(nft: FakeNft) -> None:
    """The same plan again costs nothing, another one replaces it."""
    installed = NftHooks((7, 7))
    for plan in (HookPlan(("bond0.2",)), HookPlan(("bond0.2",)), HookPlan()):
        installed.sync(plan)
    assert len(nft.transactions) == 2
    assert nft.transactions[1] == FRAME


@pytest.mark.parametrize(
    ("plan", "rule"),
    [
        (HookPlan((), any_interface=True), 'oifname != "lo" queue num 7'),
        (HookPlan(("ppp+",)), 'oifname "ppp*" queue num 7'),
        (HookPlan(("+",)), "queue num 7"),
        (HookPlan(("a*",)), r'oifname "a\*" queue num 7'),
    ],
)
def test_interfaces(nft: FakeNft, plan: HookPlan, rule: str) -> None:
    """All but the loopback, and iptables' wildcard in nft's words."""
    NftHooks((7, 7)).sync(plan)
    assert f"add rule ip natengine leaving {rule}\n" in nft.transactions[0]


SETS = """\
add set ip natengine flooders-syn { type ipv4_addr; flags timeout; }
add set ip natengine rate-syn { type ipv4_addr; flags dynamic,timeout; timeout 8s; size 1024; }
add counter ip natengine shed-syn {  }
add set ip natengine flooders-other { type ipv4_addr; flags timeout; }
add set ip natengine rate-other { type ipv4_addr; flags dynamic,timeout; timeout 8s; size 1024; }
add counter ip natengine shed-other {  }
"""
SHEDDING = """\
add rule ip natengine shed tcp flags & (fin | syn | rst | ack) == syn ip saddr @flooders-syn \
update @rate-syn { ip saddr limit rate over 2000/second burst 200 packets } counter name "shed-syn" drop
add rule ip natengine shed meta l4proto != tcp ip saddr @flooders-other \
update @rate-other { ip saddr limit rate over 10000/second burst 1000 packets } counter name "shed-other" drop
add rule ip natengine leaving oifname "bond0.2" jump shed
add rule ip natengine leaving oifname "bond0.2" queue num 7
add rule ip natengine arriving iifname "bond0.2" queue num 7
"""


def test_shedding(nft: FakeNft) -> None:
    """Only who is in the set is dropped, only what would be queued; counts begin with the engine, and then go on."""
    installed = NftHooks((7, 7))
    installed.sync(HookPlan(("bond0.2",), flows_a_second=1000))
    deleted = re.sub("add (.*) {.*}", r"delete \1", SETS)
    table, frame = FRAME.split("\n", 1)
    begin = f"{table}\n{SETS}add chain ip natengine shed\n{frame}"
    assert nft.transactions == [begin + deleted + SETS + SHEDDING]
    installed.sync(HookPlan(("bond0.2",), flows_a_second=1000, mark=1))
    assert nft.transactions[1] == begin + SHEDDING
    assert installed.cannot_shed == ""


def test_a_kernel_that_cannot_shed(nft: FakeNft) -> None:
    """The hooks are as they would be without; the kernel is asked once."""
    nft.refuse_shedding = "Error: Could not process rule: No such file or directory"
    installed, without = NftHooks((7, 7)), NftHooks((7, 7))
    installed.sync(HookPlan(("bond0.2",), flows_a_second=1000))
    assert installed.cannot_shed == nft.refuse_shedding
    without.sync(HookPlan(("bond0.2",)))
    assert nft.transactions[0] == nft.transactions[1]
    nft.refuse_shedding = ""
    installed.sync(HookPlan(("bond0.3",), flows_a_second=1000))
    assert "shed" not in "".join(nft.transactions)


class Running:
    """A program that has been started."""

    def __init__(self, argv: list[str]) -> None:
        self.argv = argv
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self.returncode

    def wait(self) -> None:
        self.returncode = 0


def test_naming_a_sender(nft: FakeNft, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a time-out, also where it is named already; nobody waits for nft, but a failure is noticed."""
    started: list[Running] = []
    monkeypatch.setattr(programs, "start", lambda argv: started.append(Running(argv)) or started[-1])
    installed = NftHooks((7, 7))
    installed.shed(Flooder(0x0A01000B, Flood.SYN))
    assert [each.argv for each in started] == [["nft", (
        "add element ip natengine flooders-syn { 10.1.0.11 }; delete element ip natengine flooders-syn { 10.1.0.11 }; "
        "add element ip natengine flooders-syn { 10.1.0.11 timeout 4s }"
    )]]
    installed.shed(Flooder(0x0A01000C, Flood.SYN))
    started[0].returncode = 0
    installed.shed(Flooder(0x0A01000D, Flood.SYN))
    started[1].returncode = 1
    with pytest.raises(HostError, match="could not add an element"):
        installed.shed(Flooder(0x0A01000E, Flood.SYN))
    installed.remove()
    assert all(each.returncode is not None for each in started), "none comes after the table is gone"


def test_what_was_shed(nft: FakeNft) -> None:
    """The counters say it; where they are gone, nothing."""
    assert NftHooks((7, 7)).shed_packets() == 0
    nft.counters = "table ip natengine {\n\tcounter shed-syn {\n\t\tpackets 40 bytes 1600\n\t}\n" \
        "\tcounter shed-other {\n\t\tpackets 2 bytes 64\n\t}\n}\n"
    assert NftHooks((7, 7)).shed_packets() == 42


def test_several_queues(nft: FakeNft) -> None:
    """The kernel spreads connections over them."""
    NftHooks((7, 10)).sync(HookPlan(("bond0.2",)))
    assert 'iifname "bond0.2" queue num 7-10\n' in nft.transactions[0]


def test_a_rule_that_drops(nft: FakeNft) -> None:
    """Instead of queueing."""
    rule = HookRule(Place.LEAVING, "bond0.2", action=Action.DROP)
    assert NftHooks((7, 7))._text(CHAINS[Place.LEAVING], rule, 0) == 'oifname "bond0.2" drop'


def test_hairpinning(nft: FakeNft) -> None:
    """What is for an uplink's address is taken on any interface, marked, and taken again where it leaves."""
    NftHooks((7, 7)).sync(HookPlan(("bond0.2",), addresses=("203.0.113.1",), mark=0x10))
    assert nft.transactions == [FRAME + """\
add rule ip natengine leaving oifname "bond0.2" queue num 7
add rule ip natengine leaving oifname != "lo" meta mark & 0x10 == 0x10 queue num 7
add rule ip natengine arriving iifname "bond0.2" queue num 7
add rule ip natengine arriving iifname != "lo" ip daddr 203.0.113.1 meta mark set meta mark | 0x10
add rule ip natengine arriving iifname != "lo" meta mark & 0x10 == 0x10 queue num 7
"""]


def test_guard(nft: FakeNft) -> None:
    """In the place of the hooks: nothing that is not the head's own, and no RST of the head's."""
    NftHooks((7, 7)).sync(HookPlan(("bond0.2",), guard=True))
    assert nft.transactions == [FRAME + """\
add rule ip natengine leaving oifname "bond0.2" fib saddr type unicast drop
add rule ip natengine leaving oifname "bond0.2" tcp flags & rst == rst drop
add rule ip natengine leaving oifname "bond0.2" icmp type destination-unreachable drop
add rule ip natengine arriving iifname "bond0.2" fib daddr type unicast drop
"""]


def test_the_heads_own_packets(nft: FakeNft) -> None:
    """Two chains more, and only where there is something to take."""
    NftHooks((7, 7)).sync(HookPlan(("bond0.2",), mark=0x10, own_destinations=("203.0.113.1/32",)))
    (text,) = nft.transactions
    assert "add chain ip natengine sending { type filter hook output priority -301; policy accept; }\n" in text
    assert "add chain ip natengine receiving { type filter hook input priority -151; policy accept; }\n" in text
    assert text.endswith("""\
add rule ip natengine sending ip daddr 203.0.113.1/32 meta mark set meta mark | 0x10
add rule ip natengine sending meta mark & 0x10 == 0x10 queue num 7
""")
    assert """\
add rule ip natengine receiving iifname "bond0.2" queue num 7
add rule ip natengine receiving iifname != "lo" meta mark & 0x10 == 0x10 queue num 7
""" in text


def test_services_of_the_heads_own(nft: FakeNft) -> None:
    """What they answer is taken on the loopback, and the errors about closed ports; nothing else there."""
    services = (LocalService("127.0.0.1", 6, (8080, 8081)), LocalService("127.0.0.1", 1))
    plan = HookPlan(("bond0.2",), mark=0x10, own_destinations=("203.0.113.1/32",), own_services=services)
    NftHooks((7, 7)).sync(plan)
    assert """\
add rule ip natengine receiving iifname "lo" icmp type destination-unreachable ip saddr 127.0.0.1 queue num 7
add rule ip natengine receiving iifname "lo" ip saddr 127.0.0.1 meta l4proto 6 th sport 8080-8081 queue num 7
add rule ip natengine receiving iifname "lo" ip saddr 127.0.0.1 meta l4proto 1 queue num 7
""" in nft.transactions[0]


def test_a_name_that_nft_cannot_say(nft: FakeNft) -> None:
    """It would end the string, and what follows would be read as rules."""
    with pytest.raises(HostError, match=r'a"b.*--hooks iptables'):
        NftHooks((7, 7)).sync(HookPlan(('a"b',)))
    assert nft.transactions == []


def test_removal(nft: FakeNft) -> None:
    """The table in one piece; what is not there is no error."""
    installed = NftHooks((7, 7))
    installed.sync(HookPlan(("bond0.2",)))
    nft.transactions.clear()
    installed.remove()
    installed.remove()
    assert nft.transactions == ["delete table ip natengine\n"]


def test_probe(nft: FakeNft) -> None:
    """The kernel is asked with everything that a plan needs, about a table that never comes to be."""
    NftHooks((7, 7)).probe()
    assert nft.transactions == []
    assert 'add rule ip natengine-trial arriving iifname "lo" queue num 7\n' in nft.checks[0]
    assert "meta mark set" in nft.checks[0]


def test_refusal(nft: FakeNft) -> None:
    """What nft said, what is missing, what to try; and it is tried again next time."""
    installed = NftHooks((7, 7))
    nft.refuse = "Error: Could not process rule: No such file or directory\n  ^^^^\n"
    for attempt in (installed.probe, lambda: installed.sync(HookPlan(("bond0.2",)))):
        with pytest.raises(HostError, match=r"No such file or directory.*modprobe nft_queue, or --hooks iptables"):
            attempt()
    nft.refuse = None
    installed.sync(HookPlan(("bond0.2",)))
    assert len(nft.transactions) == 1


def test_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which one, and how to get it."""
    monkeypatch.setattr(hooks_nft.shutil, "which", lambda _program: None)
    with pytest.raises(HostError, match="nft is not installed"):
        NftHooks((7, 7))
