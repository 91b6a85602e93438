"""The same lines to the real iptables and to natengine's front end: the same listings, the same refusals.

    scratch namespace:  iptables LINE         natengine:  parse_command(LINE).apply(ruleset)
                        iptables -S, -L, …                show(…), dump(…)
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator

import pytest
from iptables_lines import BAD, CHAINS, GOOD, REFUSED_BY_KERNEL, REFUSED_SEQUENCES, TEXTS, fwd, nat

from natengine.app import names
from natengine.errors import ConfigError
from natengine.frontend.command import LISTINGS, Kind
from natengine.frontend.iptables import PROGRAM, parse_command, render_error
from natengine.frontend.listing import show
from natengine.frontend.save import RestoreOptions, dump, parse_restore
from natengine.frontend.verbose import say
from natengine.rules.counters import RuleCounters
from natengine.rules.model import BUILT_IN_CHAINS, RuleSet, TableName

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
    text = dump(RuleSet(), tables=BUILT_IN_CHAINS)
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
            command = parse_command(words, addresses, names.port)
            assert command == parse_command(command.to_argv())
            after = command.apply(self.ruleset)
            output = say(command, self.ruleset)
            if command.kind in LISTINGS:
                output = show(command, after, self.counters, reverse_lookup=host_name,
                              service_lookup=names.service_name) + output
            command.touch_counters(self.ruleset, after, self.counters)
        except ConfigError as error:
            return subprocess.CompletedProcess(words, error.exit_status, "", render_error(error))
        self.ruleset = after
        return subprocess.CompletedProcess(words, 0, output, "")


def addresses(name: str) -> list[str]:
    return {"localhost": ["127.0.0.1"]}.get(name, [])       # what /etc/hosts says everywhere


def host_name(address: str) -> str | None:
    return {"127.0.0.1": "localhost"}.get(address)


def first_line(stderr: str) -> str:
    """Return the first line of a message behind the program's name, which iptables does not always say."""
    for prefix in (f"{VERSION}: ", "iptables: ", f"{PROGRAM}: "):
        stderr = stderr.removeprefix(prefix)
    return stderr.strip().partition("\n")[0]


VIEWS = [
    "-S", "-S -v", "-L", "-L -n", "-L -v", "-L -x", "-L -n -v -x", "-L -n -v --line-numbers", "-L --line",
    "-S FORWARD 1", "-S FORWARD 9999", "-L FORWARD 2 -n", "-L INPUT", "-nvL OUTPUT", "-S OUTPUT -v",
]


@pytest.fixture(scope="module")
def loaded(run: Run) -> tuple[Run, Natengine]:
    """Both sides with every good line entered."""
    assert run("iptables-restore", text=dump(RuleSet(), tables=BUILT_IN_CHAINS)).returncode == 0
    ours = Natengine()
    lacking = []
    for line in [*CHAINS, *GOOD]:
        words = shlex.split(line)
        if "-v" not in words:           # twice it is for debugging
            words = ["-v", *words]
        theirs = run("iptables", *words)
        if theirs.returncode == 4 or "missing kernel module" in theirs.stderr:
            lacking.append(line)
            continue
        assert (theirs.returncode, theirs.stderr) == (0, ""), line
        answer = ours(*words)
        assert (answer.stdout, answer.stderr) == (theirs.stdout, ""), line
    print(f"{len(GOOD) - len(lacking)} lines compared; this kernel has no module for: {lacking or 'none'}")
    assert len(lacking) < len(GOOD) / 2, "this kernel can hardly be compared with"
    return run, ours


@pytest.mark.parametrize("table", ["nat", "filter", "mangle", "raw"])
@pytest.mark.parametrize("view", VIEWS)
def test_listings_are_the_same(loaded: tuple[Run, Natengine], view: str, table: str) -> None:
    """Byte for byte, blanks at the end included."""
    run, ours = loaded
    if table == "nat":
        view = view.replace("FORWARD", "POSTROUTING")
    if table == "raw":
        view = view.replace("FORWARD", "PREROUTING").replace("INPUT", "PREROUTING")
    words = ["-t", table, *view.split()]
    assert run("iptables", *words).stdout == ours(*words).stdout


@pytest.mark.parametrize("table", list(BUILT_IN_CHAINS))
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



@pytest.mark.parametrize(("line", "ours_says"), [
    ("-6 -A FORWARD -j ACCEPT", "natengine is for IPv4 only: use ip6tables"),       # theirs: only where to get help
    ("--ipv6 -S", "natengine is for IPv4 only: use ip6tables"),
    ("-W 100 -S", "--wait-interval only makes sense with --wait"),      # theirs: first that the option is deprecated
])
def test_refusals_in_other_words(empty: Run, line: str, ours_says: str) -> None:
    """The same exit status."""
    answer = Natengine()(*line.split())
    assert (empty("iptables", *line.split()).returncode, first_line(answer.stderr)) == (answer.returncode, ours_says)


def test_more_verbose_is_as_verbose(empty: Run) -> None:
    """`-v` twice: iptables adds what it has told the kernel; that is not said here."""
    for line in ("-A FORWARD -j ACCEPT", "-S"):
        theirs, ours = empty("iptables", "-vv", *line.split()), Natengine()("-vv", *line.split())
        assert theirs.returncode == ours.returncode == 0
        assert ours.stdout == Natengine()("-v", *line.split()).stdout
        assert ours.stdout in theirs.stdout or line == "-S"


@pytest.mark.parametrize("option", ["-h", "--help", "-V", "--version"])
def test_help_and_version_are_answers(empty: Run, option: str) -> None:
    """Of either program, about itself."""
    assert empty("iptables", option).returncode == 0
    assert parse_command([option]).kind in (Kind.HELP, Kind.VERSION)


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
    ["-v -A FORWARD -s 1.2.3.4 -j ACCEPT", "-v -I FORWARD -i a -o b -p tcp --dport 80 -j DROP", "-v -C FORWARD -j LOG",
     "-v -C FORWARD -s 1.2.3.4 -j ACCEPT", "-v -R FORWARD 1 -j LOG", "-v -D FORWARD -j LOG", "-v -D FORWARD 1",
     "-v -A FORWARD -s 1.1.1.1,2.2.2.2", "-v -D FORWARD -s 1.1.1.1,2.2.2.2", "-v -D FORWARD -s 9.9.9.9",
     "-v -A FORWARD -j DROP", "-v -Z FORWARD 1", "-v -Z FORWARD", "-v -Z", "-v -F FORWARD", "-v -F", "-v -N foo",
     "-v -A FORWARD -g foo", "-v -D FORWARD -g foo", "-v -E foo bar", "-v -X bar", "-v -N x", "-v -N y", "-v -X",
     "-v -P FORWARD DROP", "-v -t nat -F", "-v -A FORWARD -s localhost -p udp --dport domain", "-v -n -L"],
    ["-L nosuch", "-S nosuch", "-L nosuch -n", "-L nosuch 3", "-S nosuch 3", "-t nat -L FORWARD", "-t nat -S FORWARD",
     "-Z nosuch", "-F nosuch", "-X nosuch", "-L FORWARD 5", "-S FORWARD 5", "-Z -L FORWARD 3", "-D nosuch 1",
     "-C nosuch -j DROP", "-R nosuch 1 -j DROP", "-I nosuch -j DROP", "-E nosuch x", "-N foo", "-N foo", "-E foo foo",
     "-A FORWARD -j foo", "-X foo", "-E foo bar", "-S", "-L bar", "-L bar -v -n", "-P bar DROP", "-F bar", "-X bar",
     "-L bar 1", "-D FORWARD 1", "-X bar", "-L bar"],
    ["-N foo", fwd("-c 5 6 -j ACCEPT"), fwd("-c 7 8 -j foo"), "-A foo -c 9 10 -j DROP", "-A foo -c 11 12 -j LOG",
     "-L FORWARD 1 -Z -v", "-S -v", fwd("-c 5 6 -j ACCEPT"), "-Z FORWARD 3 -L", "-S -v", fwd("-c 5 6 -j ACCEPT"),
     "-L FORWARD 4 -Z foo", "-S -v", "-A foo -c 5 6 -j ACCEPT", "-L -Z foo 3 -v", "-L -Z FORWARD 4", "-S -v",
     "-A foo -c 5 6 -j ACCEPT", "-Z -S foo 4 -v", "-S -v", "-v -S -Z foo", "-S -Z FORWARD", "-S FORWARD -Z 1",
     "-L FORWARD -Z 1", "-Z foo -L FORWARD", "-Z foo 1 -L", "-L -Z -n -v", "-Z -Z", "-L -L", "-L -Z -L", "-Z foo -Z",
     "-L nosuch -Z", "-Z nosuch -L", "-Z nosuch -L foo", "-L -Z nosuch", "-v -Z foo 1", "-Z foo 0", "-Z foo 1 2"],
    [fwd("-m limit --limit-burst 0"), fwd("-m limit --limit 3/s --limit-burst 0 -j ACCEPT"), "-S", "-v -L -n",
     "-C FORWARD -m limit --limit-burst 0", "-C FORWARD -m limit --limit-burst 5",
     "-D FORWARD -m limit --limit-burst 0",
     "-v -I FORWARD -m limit --limit-burst 0", "-v -R FORWARD 1 -m limit --limit-burst 0 -j DROP", "-S"],
    ["-M /bin/true -N a", "--modprobe=/bin/true -S", "--modpro /bin/true -S", fwd("-M /bin/true -j DROP"), "-M",
     "-w -S", fwd("-w 5 -j ACCEPT"), fwd("-j ACCEPT -w5"), "--wait=5 -S", "--wait 5 -S", "-w x -S", "-w -1 -S",
     "-w 1 -W x -S", "-4 -S", "--ipv4 -L", fwd("-4 -j ACCEPT"), fwd("-c 1,2 -j DROP"), fwd("--set-counters 3 4"),
     fwd("-c 18446744073709551615 0 -j DROP"), fwd("-c 1"), fwd("-c 1 x"), fwd("-c x 1"), fwd("-c 1 2 -c 3 4"),
     "-I FORWARD -c 1 2", "-R FORWARD 1 -c 5 6 -j DROP", "-D FORWARD -c 1 2", "-C FORWARD -c 1 2", "-L -c 1 2",
     "-S FORWARD 0", "-S FORWARD x", "-S 1", "-L FORWARD 0", "-L FORWARD x", "-L 1", "-L FORWARD -1", "-LFORWARD 1",
     "--list=FORWARD 1", "-L FORWARD 1 2", "-S FORWARD 1 2", "-nL FORWARD 1 --line-numbers", "-n", "-t nat", "-S -v"],
    [fwd("-f -j ACCEPT"), fwd("! -f -j ACCEPT"), fwd("-f -s 1.2.3.4 -j DROP"), fwd("! --fragments -p tcp --dport 1"),
     "-C FORWARD -f -j ACCEPT", "-C FORWARD -j ACCEPT", "-v -D FORWARD ! -f -j ACCEPT", "-D FORWARD -j ACCEPT", "-S",
     "-L", "-L FORWARD 1 -v", "-R FORWARD 1 -f -j LOG", "-S", "-f", "-L -f", "-P FORWARD -f DROP", "-P FORWARD DROP -f",
     "-F -f", "-N x -f", "-Z -f", "-E a b -f", "-D FORWARD 1 -f", "-A FORWARD -f -f", "-A FORWARD -f 1", "-S"],
]


@pytest.mark.parametrize("story", STORIES, ids=["edit", "policy", "counters", "masquerade", "verbose", "missing",
                                           "zero", "burst", "options", "fragments"])
def test_stories_go_the_same_way(empty: Run, story: list[str]) -> None:
    """Several commands in turn: the same output, exit status and message at each."""
    ours = Natengine()
    for line in story:
        theirs, answer = empty("iptables", *line.split()), ours(*line.split())
        assert (theirs.returncode, theirs.stdout) == (answer.returncode, answer.stdout), line
        assert first_line(theirs.stderr) == first_line(answer.stderr), line


@pytest.mark.parametrize("lines", REFUSED_SEQUENCES, ids=lambda lines: lines[-1])
def test_where_jumps_must_not_lead(empty: Run, lines: list[str]) -> None:
    """The last command is refused, with the same exit status; all before are taken."""
    ours = Natengine()
    for line in lines:
        words = shlex.split(line)
        theirs, answer = empty("iptables", *words), ours(*words)
        assert theirs.returncode == answer.returncode == (4 if line is lines[-1] else 0), (theirs.stderr, answer.stderr)


def restore_options(words: list[str]) -> RestoreOptions:
    """What `natengine iptables-restore` makes of its options."""
    only = TableName(words[words.index("-T") + 1]) if "-T" in words else None
    return RestoreOptions("-c" in words, not {"-n", "--noflush"} & set(words), only)


@pytest.mark.parametrize("steps", TEXTS, ids=[f"{n}{steps[-1][0]}" for n, steps in enumerate(TEXTS)])
def test_texts_come_to_the_same(empty: Run, steps: list[tuple[str, str]]) -> None:
    """Exit status, and all rules and counters after it; a text that is refused changes nothing."""
    ours = Natengine()
    for option, text in steps:
        words = option.split()
        theirs = empty("iptables-restore", *words, text=text)
        try:
            ruleset, counters = parse_restore(text, base=ours.ruleset, base_counters=ours.counters,
                                              options=restore_options(words), resolver=addresses,
                                              services=names.port)
            status = 0
        except ConfigError as error:
            status = error.exit_status
        if status == 0 and "--test" not in words:
            ours.ruleset, ours.counters = ruleset, counters
        assert (theirs.returncode, theirs.stdout) == (status, ""), theirs.stderr
        for table in BUILT_IN_CHAINS:
            assert empty("iptables", "-t", table, "-S", "-v").stdout == ours("-t", table, "-S", "-v").stdout
