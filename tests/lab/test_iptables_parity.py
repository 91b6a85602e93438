"""The same lines to the real iptables and to natengine's front end: the same listings, the same refusals.

    scratch namespace:  iptables LINE         natengine:  parse_command(LINE).apply(ruleset)
                        iptables -S, -L, …                show(…), dump(…)
"""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator

import pytest

from natengine.errors import ConfigError
from natengine.frontend.command import LISTINGS
from natengine.frontend.iptables import PROGRAM, parse_command, render_error
from natengine.frontend.listing import show
from natengine.frontend.save import dump, parse_restore
from natengine.rules.counters import RuleCounters
from natengine.rules.model import RuleSet, TableName

pytestmark = pytest.mark.lab

VERSION = "iptables v1.8.9 (nf_tables)"
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Run a command in a namespace of our own, which is gone afterwards."""
    if os.geteuid() != 0:
        pytest.skip("needs root to make a network namespace")
    if shutil.which("iptables") is None or shutil.which("ip") is None:
        pytest.skip("needs iptables and ip")
    found = subprocess.run(["iptables", "-V"], capture_output=True, text=True, check=False).stdout.strip()
    if found != VERSION:
        pytest.skip(f"compares with {VERSION}, this is {found}")
    namespace = f"ne-parity-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", namespace], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"cannot make a network namespace: {made.stderr.strip()}")
    command = ["ip", "netns", "exec", namespace]

    def run_inside(*words: str, text: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *words], input=text, capture_output=True, text=True, check=False)

    try:
        yield run_inside
    finally:
        subprocess.run(["ip", "netns", "delete", namespace], check=True)


@pytest.fixture
def empty(run: Run) -> Run:
    """The same, with no rules and policies ACCEPT."""
    text = dump(RuleSet())
    assert run("iptables-restore", text=text).returncode == 0
    return run


class Natengine:
    """What stands where iptables and the kernel stand: a rule set, its counters, names of services."""

    def __init__(self) -> None:
        self.ruleset = RuleSet()
        self.counters = RuleCounters()

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Do one command as the command line would."""
        try:
            command = parse_command(words, services=service_port)
            assert command == parse_command(command.to_argv())
            after = command.apply(self.ruleset)
            output = ""
            if command.kind in LISTINGS:
                output = show(command, after, self.counters, reverse_lookup=host_name,
                              service_lookup=service_name)
            command.touch_counters(self.ruleset, after, self.counters)
        except ConfigError as error:
            return subprocess.CompletedProcess(words, error.exit_status, "", render_error(error))
        self.ruleset = after
        return subprocess.CompletedProcess(words, 0, output, "")


def service_port(name: str, proto: str) -> int | None:
    try:
        return socket.getservbyname(name, proto)
    except OSError:
        return None


def service_name(port: int, proto: str) -> str | None:
    try:
        return socket.getservbyport(port, proto)
    except OSError:
        return None


def host_name(address: str) -> str | None:
    return {"127.0.0.1": "localhost"}.get(address)          # what /etc/hosts says everywhere


def first_line(stderr: str) -> str:
    """Return the first line of a message behind the program's name, which iptables does not always say."""
    for prefix in (f"{VERSION}: ", "iptables: ", f"{PROGRAM}: "):
        stderr = stderr.removeprefix(prefix)
    return stderr.strip().partition("\n")[0]


def nat(line: str) -> str:
    return f"-t nat -A POSTROUTING {line}"


def fwd(line: str) -> str:
    return f"-A FORWARD {line}"


GOOD = [
    # masquerading
    nat("-o bond0.2 -j MASQUERADE"),
    nat("-s 10.0.0.0/8 ! -d 10.0.0.0/255.0.255.0 -o bond0.2 -p tcp --dport 80 -j MASQUERADE "
        "--to-ports 1024-2048 --random"),
    nat("! -o bond0.3 -j MASQUERADE --random --random-fully"),
    nat("-p udp -j MASQUERADE --to-ports 4-4"),
    nat("-p icmp -j MASQUERADE --to-ports 1024"),
    nat("! -p udp -j MASQUERADE --to-ports 1024"),
    nat("-p tcp -j MASQUERADE --to http"),
    nat("-m comment --comment lab -j MASQUERADE --random-f"),
    "-t nat -A PREROUTING -i bond0.def -j ACCEPT",
    "-t nat -A OUTPUT -o lo -j RETURN",
    "-t nat -A INPUT",
    # addresses
    fwd("-s 10.0.0.5,10.1.2.3/24 -d 1.1.1.1,2.2.2.2 -j ACCEPT"),
    fwd("-s 0/0 -d 10/8"), fwd("-s 10.1"), fwd("-s 1.2.3.4/0"), fwd("-s 128.0.0.0/1"),
    fwd("-s 1.0.0.0/255.0.0.1"),
    fwd("! -s 127.0.0.1 ! -d 192.168.100.100/255.255.255.0 ! -p icmp ! -i a+ ! -o b"),
    fwd("-s 127.0.0.1 -j ACCEPT"), fwd("--src 1.2.3.4 --dst 1.2.3.5"), fwd("--so 1.2.3.4"),
    # interfaces
    fwd("-i a -o b+ -j ACCEPT"), fwd("-i + -j ACCEPT"), fwd("-i eth0+ ! -o + -j ACCEPT"),
    fwd("-i abcdefghijklmno"), fwd("-i a:b"), fwd("--in-interf a --out-int b"), "-A INPUT -i lo -j ACCEPT",
    # protocols
    fwd("-p all"), fwd("-p 0"), fwd("-p TCP"), fwd("-p 47"), fwd("-p 253"), fwd("-p ipv6-icmp"),
    fwd("-p udplite"),
    fwd("--proto udp --jump ACCEPT"), fwd("! -p tcp"), fwd("! -p tcp --dport 80"),
    # tcp and udp
    fwd("-p tcp -m tcp"), fwd("-p tcp -m tcp -m tcp --dport 8"), fwd("-p tcp --sport 1:2 ! --dport 3:4"),
    fwd("-p tcp --sport :2 --dport 3:"), fwd("-p tcp --sport :"), fwd("-p udp --sport 0:65535"),
    fwd("-p tcp --sport http --dport 0x50"), fwd("-p tcp --dport 010"), fwd("-p udp --dport domain"),
    fwd("-p tcp --source-port 1 --destination-port 2"), fwd("-p tcp ! --dport 1 ! --sport 4"),
    fwd("-m tcp --dport 80 -p tcp"), fwd("-p udp -j ACCEPT --dport 53"), fwd("-p tcp --syn"),
    fwd("-p tcp ! --syn"),
    fwd("-p tcp --tcp-flags ALL NONE"), fwd("-p tcp ! --tcp-flags ALL SYN,FIN"),
    fwd("-p tcp --tcp-flags NONE NONE"), fwd("-p tcp --tcp-flags SYN,FIN,RST,ACK syn --dport 22"),
    # icmp
    *(fwd(f"-p icmp --icmp-type {name}") for name in (
        "8", "8/0", "echo-request", "ping", "3", "3/4", "3/99", "frag", "TTL-EXCEEDED", "any", "255", "200/3",
        "host-redirect", "redir", "0x8", "timestamp-reply", "required-option-missing")),
    fwd("-p icmp ! --icmp-type any"), fwd("-p icmp ! --icmp-type 8"), fwd("-p icmp ! --icmp-type 8/0"),
    fwd("-p icmp ! --icmp-type 3/4"),
    # states
    fwd("-m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"), fwd("-m conntrack --ctstate new"),
    fwd("-m conntrack ! --ctstate NEW,INVALID,UNTRACKED,RELATED,ESTABLISHED -j DROP"),
    fwd("-m state --state ESTABLISHED,RELATED -j ACCEPT"), fwd("-m state ! --state INVALID -j RETURN"),
    fwd("-m conntrack --ctstate NEW -p udp --dport 53 -m comment --comment dns -j DROP"),
    # comments
    *(fwd(f"-m comment --comment {text}") for text in (
        "hello", "a_b-c", "a.b", "''", "'hello world'", "'say \"hi\" \\ $x'", '"it\'s"', "é", "x" * 255)),
    # counters, and options that do nothing
    *(fwd(f"-c {count} {count + 1}") for count in (
        0, 99_998, 99_999, 100_499, 999_999, 9_999_499, 10_000_000, 99_999_999, 9_999_999_999, 10**15)),
    fwd("-c 5,7 -j ACCEPT"), fwd("-w -j ACCEPT"), fwd("-w 5"), fwd("-w5"), fwd("-4"),
]

VIEWS = [
    "-S", "-S -v", "-L", "-L -n", "-L -v", "-L -x", "-L -n -v -x", "-L -n -v --line-numbers", "-L --line",
    "-S FORWARD 1", "-S FORWARD 9999", "-L FORWARD 2 -n", "-L INPUT", "-nvL OUTPUT", "-S OUTPUT -v",
]


@pytest.fixture(scope="module")
def loaded(run: Run) -> tuple[Run, Natengine]:
    """Both sides with every good line entered."""
    assert run("iptables-restore", text=dump(RuleSet())).returncode == 0
    ours = Natengine()
    for line in GOOD:
        words = shlex.split(line)
        theirs = run("iptables", *words)
        assert (theirs.returncode, theirs.stderr) == (0, ""), line
        assert ours(*words).stderr == "", line
    return run, ours


@pytest.mark.parametrize("table", ["nat", "filter"])
@pytest.mark.parametrize("view", VIEWS)
def test_listings_are_the_same(loaded: tuple[Run, Natengine], view: str, table: str) -> None:
    """Byte for byte, blanks at the end included."""
    run, ours = loaded
    if table == "nat":
        view = view.replace("FORWARD", "POSTROUTING")
    words = ["-t", table, *view.split()]
    assert run("iptables", *words).stdout == ours(*words).stdout


@pytest.mark.parametrize("table", [TableName.NAT, TableName.FILTER])
@pytest.mark.parametrize("with_counters", [True, False])
def test_saved_text_is_the_same(loaded: tuple[Run, Natengine], table: TableName, with_counters: bool) -> None:
    """iptables-save, except for its comments with the date; and it reads back to the same rules."""
    run, ours = loaded
    option = ["-c"] if with_counters else []
    text = run("iptables-save", "-t", table, *option).stdout
    theirs = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))
    assert theirs == dump(ours.ruleset, ours.counters, rule_counters=with_counters, tables=[table])
    again, _ = parse_restore(text)
    assert again.table(table) == ours.ruleset.table(table)


def test_iptables_restores_what_natengine_saves(loaded: tuple[Run, Natengine]) -> None:
    """dump -> iptables-restore --test has no complaint."""
    run, ours = loaded
    text = dump(ours.ruleset, ours.counters, header_lines=["by natengine"])
    done = run("iptables-restore", "--test", text=text)
    assert (done.returncode, done.stderr) == (0, "")


BAD = [
    # the command line
    "", "-n", "-t nat", "foo", "--foo", "-z", "-A", "-t", "-L --table", "-L --tablex", "-L --numeric=5",
    "-L -nz",
    "-L -n -- FORWARD", "--li", "--de FORWARD 1", "-t nosuch -L", "-t '' -L", "-t NAT -L", "-A -j ACCEPT",
    "-A " + "x" * 29, "-A " + "x" * 28,
    # commands
    "-A NOCHAIN -j ACCEPT", "-A '' -j ACCEPT", "-A forward", "-t nat -A FORWARD -j ACCEPT",
    "-C NOCHAIN -j DROP",
    "-D NOCHAIN 1", "-D FORWARD", "-D FORWARD 1 -j DROP", "-D FORWARD 1 2", "-D FORWARD x",
    "-R NOCHAIN 1 -j DROP",
    "-R FORWARD", "-R FORWARD -s 7.7.7.7", "-R FORWARD 1", "-R FORWARD 0", "-R FORWARD 1 -s 7.7.7.7,8.8.8.8",
    "-I FORWARD 2", "-I FORWARD 0", "-I FORWARD -1", "-I FORWARD x", "-I FORWARD 4294967296",
    "-I FORWARD 1 2",
    "-D FORWARD 9", "-D FORWARD 0", "-D FORWARD -s 9.9.9.9", "-C FORWARD -s 9.9.9.9", "-C FORWARD",
    "-F NOCHAIN", "-F FORWARD 1", "-F -s 1.2.3.4", "-F -n", "-F -L", "-F --line-numbers", "-Z NOCHAIN",
    "-Z FORWARD 0",
    "-Z FORWARD x", "-P", "-P FORWARD", "-P FORWARD foo", "-P FORWARD RETURN", "-P NOCHAIN ACCEPT",
    "-P FORWARD DROP ACCEPT", "-P FORWARD DROP -s 1.2.3.4", "-P FORWARD DROP -j ACCEPT",
    "-t nat -P OUTPUT DROP",
    "-L FORWARD 0", "-L FORWARD x", "-L FORWARD foo bar", "-L -s 1.2.3.4", "-L -j ACCEPT", "-S -n", "-S -x",
    "-S --line-numbers", "-S FORWARD x", "-S -c 1 2",
    # options of rules
    fwd("--foo"), fwd("foo"), fwd("-n"), fwd("-x"), fwd("--line-numbers"), fwd("-A FORWARD"),
    fwd("-L FORWARD"),
    fwd("! -j ACCEPT"), fwd("-j ACCEPT !"), fwd("! ! -s 1.2.3.4"), "! -A FORWARD", "! -t nat -A OUTPUT",
    fwd("! -m tcp"), fwd("! -n"), fwd("-s ! 1.2.3.4"), fwd("--s 1.2.3.4"),
    fwd("-p tcp --dport 1 --dest 2.2.2.2"),
    fwd("-w x"), fwd("-c 1"), fwd("-c x 1"), fwd("-c 1 x"), fwd("-c 1,x"),
    # addresses
    *(fwd(f"-s {text}") for text in (
        "10.0.0.256", "nosuch.invalid", "10.0.0.1/33", "10.0.0.1/", "''", "10.0.0.0/8/8", "10.0.0.1,",
        "1.2.3.4/8x",
        "1.2.3.4/08", "1.2.3.4/-1", "1.2.3.4/255.255.255", "1.2.3.4 -s 1.2.3.5")),
    fwd("! -s 10.0.0.1,10.0.0.2"),
    # interfaces
    nat("-i bond0.2 -j MASQUERADE"), "-t nat -A PREROUTING -o a", "-A INPUT -o lo", "-A OUTPUT -i lo",
    fwd("-i ''"), fwd("-i abcdefghijklmnop"), fwd("-i eth0 -i eth1"),
    # protocols, tcp, udp
    fwd("-p nosuch"), fwd("-p 256"), fwd("-p ''"), fwd("-p"), fwd("! -p all"), fwd("! -p 0"),
    fwd("-p tcp -p udp"),
    fwd("--dport 80"), fwd("-m tcp --dport 80"), fwd("-p udp -m tcp --dport 80"),
    fwd("-p tcp -m udp --dport 3"),
    *(fwd(f"-p tcp {text}") for text in (
        "--dport", "--dport ''", "--sport 5:2", "--sport nosuchport", "--sport 65536", "--sport 1-2",
        "--dport 1:x",
        "--sport 1 --sport 2", "--dport 1 --dport 1", "--tcp-flags FOO SYN", "--tcp-flags SYN",
        "--tcp-flags SYN SYN --syn", "--tcp-flags SYN SYN --tcp-flags SYN SYN")),
    fwd("-p udp --dport 1 --dport 1"),
    # icmp
    *(fwd(f"-p icmp {text}") for text in (
        "--icmp-type time", "--icmp-type timestamp", "--icmp-type 256", "--icmp-type 8/256",
        "--icmp-type foo",
        "--icmp-type 8/", "--icmp-type /", "--icmp-type ''", "--icmp-type e", "--icmp-type -j ACCEPT",
        "-m icmp",
        "--icmp-type 8 --icmp-type 0")),
    # states, comments
    *(fwd(f"-m conntrack {text}") for text in (
        "", "--ctstate FOO", "--ctstate NEW,", "--ctstate ''", "--ctstate NEW --ctstate INVALID",
        "--state NEW")),
    *(fwd(f"-m state {text}") for text in ("", "--state FOO", "--state NEW,", "--ctstate NEW")),
    fwd("--state NEW"), fwd("-m comment"), fwd("-m comment ! --comment x"), fwd("-m comment --comment"),
    fwd("-m comment --comment x --comment y"), fwd("-m nosuch"), fwd("-m"), fwd("-m ''"),
    # targets
    fwd("-j"), fwd("-j ''"), fwd("-j NOSUCH"), fwd("-j NOSUCH --foo"), fwd("-j ACCEPT -j DROP"),
    fwd("-j ACCEPT --to-ports 4"),
    fwd("-j -s 1.2.3.4"), "-F -j NOSUCH", fwd("--to-ports 4 -j ACCEPT"), nat("-j DROP"),
    nat("-j masquerade"), nat("-j MASQUERADE extra"),
    *(nat(f"-p udp -j MASQUERADE {text}") for text in (
        "--to-ports 2000-1000", "--to-ports 70000", "--to-ports x", "--to-ports 1-", "--to-ports",
        "--to-ports 4:5",
        "--to-ports 4-5-6", "--to-ports 4 --to-ports 5", "! --to-ports 4", "--rand", "--random --random")),
    nat("-j MASQUERADE --to-ports 1024"),
]


@pytest.mark.parametrize("line", BAD)
def test_refusals_are_the_same(empty: Run, line: str) -> None:
    """Exit status, and the first line behind the program's name; nothing is changed."""
    words = shlex.split(line)
    theirs = empty("iptables", *words)
    ours = Natengine()
    answer = ours(*words)
    assert theirs.returncode != 0
    assert (theirs.returncode, first_line(theirs.stderr)) == (answer.returncode, first_line(answer.stderr))
    assert theirs.stderr.count("Try `") == answer.stderr.count("Try `")
    assert ours.ruleset == RuleSet()


# iptables prints "RULE_APPEND failed (Invalid argument)" for these; natengine says what is wrong
REFUSED_BY_KERNEL = [
    "-t nat -A PREROUTING -j MASQUERADE", fwd("-j MASQUERADE"), nat("! -s 0.0.0.0/0 -j MASQUERADE"),
    fwd("-m tcp"), fwd("-p tcp -m udp"), fwd("-m icmp --icmp-type 8"), fwd("! -p icmp --icmp-type 3/4"),
    fwd("-p tcp -m icmp --icmp-type 3/4"),
]


@pytest.mark.parametrize("line", REFUSED_BY_KERNEL)
def test_what_the_kernel_refuses_is_refused(empty: Run, line: str) -> None:
    """The same exit status, in clearer words."""
    words = shlex.split(line)
    assert empty("iptables", *words).returncode == Natengine()(*words).returncode == 4


STORIES = [
    ["-I FORWARD 1 -s 1.1.1.1,2.2.2.2,3.3.3.3 -j ACCEPT", "-I FORWARD 3 -s 4.4.4.4,5.5.5.5 -j ACCEPT",
     "-D FORWARD -s 4.4.4.4,5.5.5.5 -j ACCEPT", "-D FORWARD -s 1.1.1.1,9.9.9.9 -j ACCEPT",
     "-C FORWARD -s 2.2.2.2,3.3.3.3 -j ACCEPT", "-C FORWARD -s 2.2.2.2,9.9.9.9 -j ACCEPT",
     "-R FORWARD 2 -j DROP", "-R FORWARD 4 -j DROP", "-D FORWARD 1", "-D FORWARD 9", "-S"],
    ["-P FORWARD DROP", "-P INPUT DROP", "-P INPUT ACCEPT", "-L", "-F", "-L FORWARD"],
    [fwd("-c 5 6 -j ACCEPT"), fwd("-c 7 8 -j DROP"), "-Z FORWARD 1", "-Z FORWARD 9", "-S -v", "-L -Z",
     "-S -v",
     "-R FORWARD 1 -c 3 4 -j DROP", "-S -v", "-Z -L", "-S -v", fwd("-c 5 6 -j ACCEPT"), "-Z", "-S -v"],
    [nat("-o bond0.2 -j MASQUERADE"), nat("-o bond0.2 -j MASQUERADE"),
     "-t nat -D POSTROUTING -o bond0.2 -j MASQUERADE",
     "-t nat -S", "-t nat -D POSTROUTING -o bond0.2 -j MASQUERADE --random", "-t nat -F POSTROUTING",
     "-t nat -S"],
]


@pytest.mark.parametrize("story", STORIES, ids=["edit", "policy", "counters", "masquerade"])
def test_stories_go_the_same_way(empty: Run, story: list[str]) -> None:
    """Several commands in turn: the same output, exit status and message at each."""
    ours = Natengine()
    for line in story:
        theirs, answer = empty("iptables", *line.split()), ours(*line.split())
        assert (theirs.returncode, theirs.stdout) == (answer.returncode, answer.stdout), line
        assert first_line(theirs.stderr) == first_line(answer.stderr), line
