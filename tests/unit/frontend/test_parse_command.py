"""Rule commands: what they mean, what is refused, and the way through `to_argv` and back."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.rules.rule_strategies import rules, rulesets

from natengine.errors import ConfigError, RuleSyntaxError
from natengine.frontend.command import Command, Kind
from natengine.frontend.iptables import PROGRAM, help_text, parse_command, render_error, version_text
from natengine.frontend.lexer import split_words
from natengine.frontend.listing import rule_line
from natengine.frontend.names import PROTOCOL_NAMES, parse_number
from natengine.frontend.options import OPTIONS
from natengine.rules.counters import Count, RuleCounters
from natengine.rules.model import (
    Accept,
    AddressTest,
    ChainName,
    ConntrackState,
    Drop,
    InterfaceTest,
    Masquerade,
    PortRange,
    PortTest,
    ProtocolTest,
    Return,
    Rule,
    RuleSet,
    TableName,
    TcpUdpPorts,
)
from natengine.vocab import CtState, Proto
from natengine.wire.addr import parse_prefix

NAT, FILTER = TableName.NAT, TableName.FILTER


def parse(line: str) -> Command:
    return parse_command(shlex.split(line))


def test_the_owners_rule() -> None:
    """The one line that natengine is for."""
    command = parse("-t nat -A POSTROUTING -o bond0.2 -j MASQUERADE")
    rule = Rule(out_iface=InterfaceTest("bond0.2"), target=Masquerade())
    assert command == Command(Kind.APPEND, NAT, "POSTROUTING", rule=rule)
    assert command.apply(RuleSet()) == RuleSet().append(NAT, ChainName.POSTROUTING, rule)


SYN_TO_WEB = TcpUdpPorts(Proto.TCP, dport=PortTest(PortRange(80, 90), True))


@pytest.mark.parametrize("line,rule", [
    ("", Rule()),
    ("-i a+ ! -o b", Rule(in_iface=InterfaceTest("a+"), out_iface=InterfaceTest("b", True))),
    ("-i +", Rule()),
    ("-p all", Rule()),
    ("! -p 47", Rule(proto=ProtocolTest(47, True))),
    ("-s 10.1.2.3/255.0.255.0", Rule(src=AddressTest(parse_prefix("10.0.2.0/255.0.255.0")))),
    ("! --destination 10/8", Rule(dst=AddressTest(parse_prefix("10.0.0.0/8"), True))),
    ("-s 0/0", Rule()),
    ("-p tcp ! --dport 80:90", Rule(proto=ProtocolTest(6), matches=(SYN_TO_WEB,))),
    ("-m tcp ! --dport 80:90 -p tcp", Rule(proto=ProtocolTest(6), matches=(SYN_TO_WEB,))),
    ("-m state --state new -j RETURN", Rule(matches=(ConntrackState(CtState.NEW, module="state"),),  # type: ignore
                                            target=Return())),
    # getopt's ways to attach a value
    ("--in-interface=eth0 -jACCEPT", Rule(in_iface=InterfaceTest("eth0"), target=Accept())),
    ("-ieth0 --jump=ACCEPT", Rule(in_iface=InterfaceTest("eth0"), target=Accept())),
    ("-p tcp --destination-port=80", Rule(proto=ProtocolTest(6), matches=(
        TcpUdpPorts(Proto.TCP, dport=PortTest(PortRange(80, 80))),))),
])
def test_rules(line: str, rule: Rule) -> None:
    assert parse(f"-A FORWARD {line}").rules == (rule,)


@pytest.mark.parametrize("line,command", [
    ("-L", Command(Kind.LIST)),
    ("-nvL FORWARD 3 --line-numbers -x",
     Command(Kind.LIST, chain="FORWARD", number=3, numeric=True, verbose=True, exact=True,
             line_numbers=True)),
    ("-t nat --list-rules -v", Command(Kind.LIST_RULES, NAT, verbose=True)),
    ("--list=FORWARD", Command(Kind.LIST, chain="FORWARD")),
    ("-N workers", Command(Kind.NEW_CHAIN, chain="workers")),
    ("-X", Command(Kind.DELETE_CHAIN)),
    ("-t nat -X workers", Command(Kind.DELETE_CHAIN, NAT, chain="workers")),
    ("-E workers guests", Command(Kind.RENAME_CHAIN, chain="workers", new_name="guests")),
    ("-F --flush-flows", Command(Kind.FLUSH, flush_flows=True)),
    ("--fl", Command(Kind.FLUSH)),          # still what it is in iptables
    ("-D FORWARD 2", Command(Kind.DELETE, chain="FORWARD", number=2)),
    ("-P FORWARD DROP", Command(Kind.POLICY, chain="FORWARD", policy=Drop())),
    ("-Z FORWARD 1", Command(Kind.ZERO, chain="FORWARD", number=1)),
    ("-L -Z", Command(Kind.LIST, zero=True)),
    ("-Z -L", Command(Kind.LIST, zero=True)),
    ("-A FORWARD -c 5 6", Command(Kind.APPEND, chain="FORWARD", rule=Rule(), counters=Count(5, 6))),
    ("-L --nonsense -h", None),
    ("-L -h --nonsense", Command(Kind.HELP)),
    ("-V", Command(Kind.VERSION)),
])
def test_commands(line: str, command: Command | None) -> None:
    """-h and -V end the reading; what is wrong before them is still wrong."""
    if command is None:
        with pytest.raises(RuleSyntaxError):
            parse(line)
    else:
        assert parse(line) == command


# iptables' own refusals are compared in tests/lab/test_iptables_parity.py; these are natengine's
@pytest.mark.parametrize("line,message,status", [
    ("-L --flush-flows", "Illegal option `--flush-flows' with this command", 2),
    ("-A FORWARD -f -f", "multiple -f flags not allowed", 2),
    ("-A FORWARD -j TCPMSS --clamp-mss-to-pmtu", "target TCPMSS is not available in natengine", 2),
    ("-A FORWARD -m set --match-set x src", "match set is not available in natengine: write -s or -d with a list of "
     "addresses, or a chain with one rule for each member", 2),
    ("-t security -L", "table 'security' holds no rules in natengine (filter, nat, mangle, raw do)", 1),
    # stricter than iptables, which stores something else than was written
    ("-A FORWARD -m conntrack --ctorigdstport 70000", "invalid port/service `70000' specified", 2),
    ("-A FORWARD -m conntrack --ctorigdstport 90:80", "invalid portrange (min > max)", 2),
    ("-A FORWARD -m conntrack --ctorigdst 1.2.3.4/40", 'conntrack: bad value for option "--ctorigdst", neither a valid '
     "network mask nor valid CIDR (0-32).", 2),
    ("-t nat -A PREROUTING -j NETMAP --to 10.0.0.0/255.0.255.0", 'NETMAP: bad value for option "--to", neither a valid '
     "network mask nor valid CIDR (0-32).", 2),
    ("-t nat -A POSTROUTING -j SNAT --to 1.2.3.9-1.2.3.4",
     "Address range is reversed: the lower address comes first", 2),
    ("-t nat -A POSTROUTING -p tcp -j SNAT --to 1.2.3.4:0", "Port `0' not valid", 2),
    ("-A FORWARD -m statistic --mode random --probability nan", 'statistic: bad value for option "--probability", or '
     "out of range (0-1).", 2),
    ("-t nosuch -L", "table 'nosuch' does not exist", 3),
    ("-F -m tcp", "Illegal option `-m' with this command", 2),
    ("-A FORWARD -s 010.0.0.1", "host/network `010.0.0.1' not found", 2),
    ("-A FORWARD -p udp --dport 65536", "invalid port/service `65536' specified", 2),
    ("-A FORWARD -p udp --dport 5:1", "invalid portrange (min > max)", 2),
    ("-A FORWARD -p udp --dport domain", "invalid port/service `domain' specified", 2),
    ("-A FORWARD -6", "natengine is for IPv4 only: use ip6tables", 2),
    ("-t nat -A POSTROUTING -p udp -j MASQUERADE --to-ports 0", "Port `0' not valid", 2),
])
def test_refused(line: str, message: str, status: int) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(line)
    assert (str(caught.value), caught.value.exit_status) == (message, status)


def test_names_come_from_the_caller() -> None:
    """A host with two addresses makes two rules; the canonical arguments need no names any more."""
    hosts = {"head": ["10.0.0.1", "10.0.0.2"]}
    ports = {("domain", "udp"): 53}
    command = parse_command(shlex.split("-A FORWARD -s head/24,1.1.1.1 -p udp --dport domain:60"),
                            lambda name: hosts.get(name, ()), lambda name, proto: ports.get((name, proto)))
    assert command.to_argv() == shlex.split(
        "-t filter -A FORWARD -s 10.0.0.0/24,10.0.0.0/24,1.1.1.1/32 -p udp -m udp --dport 53:60")
    assert len(command.rules) == 3
    with pytest.raises(RuleSyntaxError, match="! not allowed with multiple"):
        parse_command(["-A", "FORWARD", "!", "-s", "head"], lambda name: hosts[name])


def test_the_resolver_is_not_asked_for_a_wrong_command() -> None:
    def resolver(name: str) -> list[str]:
        raise AssertionError(name)

    with pytest.raises(RuleSyntaxError, match="unknown option"):
        parse_command(["-A", "FORWARD", "-s", "slow.example", "--nonsense"], resolver)


@given(rules(NAT, ChainName.POSTROUTING))
def test_a_printed_rule_parses_to_itself(rule: Rule) -> None:
    """What -S prints is a command that makes the same rule."""
    command = parse_command(["-A", "POSTROUTING", "-t", "nat", *words_of(rule)])
    assert command.rules == (rule,)


def words_of(rule: Rule) -> list[str]:
    return [word.text for word in split_words(rule_line("POSTROUTING", rule))][2:]


@given(rules(NAT, ChainName.PREROUTING))
def test_so_does_one_that_chooses_a_destination(rule: Rule) -> None:
    command = parse_command(["-A", "PREROUTING", "-t", "nat", *words_of(rule)])
    assert command.rules == (rule,)


PREFIXES = st.sampled_from([parse_prefix(text) for text in ("10.0.0.0/8", "1.2.3.4", "10.0.2.0/255.0.255.0")])
ADDRESS_LISTS = st.lists(st.none() | st.builds(AddressTest, PREFIXES), min_size=1, max_size=3)


@given(rules(), ADDRESS_LISTS, ADDRESS_LISTS, st.sampled_from("AIDC"), st.sampled_from([
    "FORWARD", "NOCHAIN", "-odd", "!odd", ""]), st.none() | st.just(Count(5, 6)))
def test_canonical_arguments_parse_to_the_same_command(
        rule: Rule, sources: list[AddressTest | None], destinations: list[AddressTest | None], letter: str,
        chain: str, counters: Count | None) -> None:
    kind = Kind(letter)
    bare = Rule(in_iface=rule.in_iface, out_iface=rule.out_iface, proto=rule.proto, matches=rule.matches,
                target=rule.target)
    command = Command(kind, FILTER, chain, 3 if kind is Kind.INSERT else None, bare, tuple(sources),
                      tuple(destinations), counters=counters if letter in "AI" else None)
    assert parse_command(command.to_argv()) == command


@pytest.mark.parametrize("line", [
    "-F --flush-flows", "-N workers", "-X", "-X workers", "-E workers guests", "-t mangle -A FORWARD -g m",
])
def test_commands_about_chains_survive_too(line: str) -> None:
    assert parse_command(parse(line).to_argv()) == parse(line)


@given(st.sampled_from("LSFZ"), st.none() | st.sampled_from(["FORWARD", "-odd", "!odd", ""]),
       st.none() | st.integers(1, 9), st.booleans(), st.booleans())
def test_listings_survive_too(letter: str, chain: str | None, number: int | None, verbose: bool,
                              more: bool) -> None:
    listing = letter == "L"
    command = Command(Kind(letter), NAT, chain, number if chain is not None and letter != "F" else None,
                      verbose=verbose, numeric=more and listing, exact=more and listing,
                      line_numbers=more and listing, zero=more and letter in "LS")
    assert parse_command(command.to_argv()) == command


WORDS = st.sampled_from(shlex.split(
    "-A -I -D -R -C -F -P -Z -L -S -N -X -E FORWARD POSTROUTING nat filter 1 0 -t -s -d -i -o -p -m -j -c -n -v -x -w "
    "! -- - 10.0.0.0/8 1.2.3.4,5.6.7.8 eth0 tcp udp icmp state conntrack comment --dport --sport 80 1:2 "
    "--tcp-flags SYN ALL --syn --icmp-type echo-request --state --ctstate NEW,ESTABLISHED --comment hello "
    "MASQUERADE ACCEPT DROP RETURN SNAT DNAT REDIRECT REJECT LOG MARK mangle workers multiport limit addrtype iprange "
    "statistic mark --dports --limit 3/s --dst-type LOCAL --src-range --mode nth --every --packet --mark 0x1/0xff "
    "-g --to --to-source 1.2.3.4:5 --to-destination --reject-with tcp-reset --log-prefix --set-mark "
    "--to-ports 5-6 --random --random-fully --to= --list= -h '' é"))
WORDS |= st.text(max_size=5)


@given(st.lists(WORDS, max_size=12), rulesets())
def test_any_words_give_a_command_or_a_refusal(argv: list[str], pair: tuple[RuleSet, RuleCounters]) -> None:
    """Nothing but ConfigError; and what is understood survives to_argv."""
    ruleset, counters = pair
    try:
        command = parse_command(argv)
        assert parse_command(command.to_argv()) == command
        after = command.apply(ruleset)
        command.touch_counters(ruleset, after, counters)
    except ConfigError as error:
        assert error.exit_status in (1, 2, 3, 4)


# --- what a person sees -----------------------------------------------------------------------------


def test_a_wrong_command_line_is_answered_with_a_pointer_to_the_help() -> None:
    with pytest.raises(RuleSyntaxError) as caught:
        parse("-A FORWARD --foo")
    assert render_error(caught.value) == (
        'natengine iptables: unknown option "--foo"\n'
        "Try `natengine iptables -h' or 'natengine iptables --help' for more information.\n")


def test_a_refusal_by_the_rule_set_is_not() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("-D FORWARD 1").apply(RuleSet())
    assert render_error(caught.value) == "natengine iptables: Index of deletion too big.\n"


def test_help_names_the_program_and_every_long_option() -> None:
    text = help_text()
    assert text.startswith(PROGRAM) and version_text().startswith(PROGRAM)
    not_needed = set("46WM")
    missing = [name for option in OPTIONS if option.letter not in not_needed for name in option.names[:1]
               if f"--{name}" not in text]
    assert not missing


@pytest.mark.parametrize("text,last,value", [
    ("0", 9, 0), ("10", 10, 10), ("11", 10, None), ("0x1F", 99, 31), ("010", 99, 8), ("08", 99, None),
    ("", 9, None),
    (" 1", 9, None), ("-1", 9, None), ("1_0", 99, None), ("\u0661", 9, None),
])
def test_numbers(text: str, last: int, value: int | None) -> None:
    assert parse_number(text, last) == value


def test_protocol_names_are_unique() -> None:
    assert len(set(PROTOCOL_NAMES.values())) == len(PROTOCOL_NAMES)
