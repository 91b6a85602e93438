"""Read the arguments of one rule command, left to right, as iptables does.

1. `!` inverts the option that follows.
2. `-p tcp` makes the tcp match available: the first of its options loads it, without `-m tcp`.
3. What is wrong is said at the first word that is wrong, in iptables' words; what the options mean
   together is looked at when all of them are read.

Departures: `--long=value` and `-xvalue` are read as getopt means them (iptables 1.8.9 takes the whole
word for the value with some options).  `-m` with a command that has no rule is refused, not ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from natengine.errors import RuleApplyError, RuleSyntaxError
from natengine.frontend.addresses import parse_addresses
from natengine.frontend.arguments import (
    POLICIES,
    check_jump,
    check_length,
    check_new_chain,
    parse_counters,
    table_by_name,
)
from natengine.frontend.command import LISTINGS, Command, Kind
from natengine.frontend.extensions import MATCHES, MISSING_MATCHES, MISSING_TARGETS, TARGETS
from natengine.frontend.names import MAX_COUNTER, Lookups, parse_number, protocol_name, protocol_number
from natengine.frontend.options import (
    COMMAND_LETTERS,
    INVERTIBLE,
    AnyReader,
    Argument,
    ExtensionUse,
    Option,
    by_letter,
    by_name,
    misplaced,
)
from natengine.frontend.readers import Reader
from natengine.rules.counters import Count
from natengine.rules.matches import ANY_INTERFACE, AddressTest, InterfaceTest, Match, ProtocolTest
from natengine.rules.model import Rule, TableName
from natengine.rules.targets import Goto, Jump, Policy, Target
from natengine.rules.validate import check_form, check_policy

_MAX_RULE_NUMBER = 2**31 - 1
_ANYWHERE = frozenset("v1wW")
_RULE_COMMANDS = (Kind.APPEND, Kind.INSERT, Kind.DELETE, Kind.REPLACE, Kind.CHECK)
_LIST_AND_ZERO = tuple(pair for each in LISTINGS for pair in ((each, Kind.ZERO), (Kind.ZERO, each)))
_TAKES_NUMBER = (Kind.INSERT, Kind.DELETE, Kind.REPLACE, Kind.LIST, Kind.LIST_RULES, Kind.ZERO)


class CommandParser:
    """One reading of one command line; `position` is the index of the word being read."""

    def __init__(self, argv: Sequence[str], lookups: Lookups, fixed_table: TableName | None = None) -> None:
        self.argv = list(argv)
        self.position = -1
        self._lookups = lookups
        self._fixed_table = fixed_table
        self._table = fixed_table or TableName.FILTER
        self._kind: Kind | None = None
        self._zero = self._zeroes_rule = False
        self._chain: str | None = None
        self._number: int | None = None
        self._policy: Policy | None = None
        self._inverted = False
        self._given: set[str] = set()
        self._matches: list[Reader[Match]] = []
        self._target: Reader[Target] | None = None
        self._jump: Jump | Goto | None = None
        self._new_name: str | None = None
        self._addresses: dict[str, tuple[str, bool, int]] = {}      # text, inverted, position
        self._interfaces: dict[str, InterfaceTest | None] = {}
        self._proto: ProtocolTest | None = None
        self._fragment: bool | None = None
        self._counters: Count | None = None

    def parse(self) -> Command:
        """Read all words.

        Raises:
            RuleSyntaxError: The command line is wrong.
            RuleApplyError: It is right, but names something that is not there (a table, a policy).
        """
        while (word := self._take()) is not None:
            if word == "--":
                if self._take() is not None:
                    raise RuleSyntaxError("unknown arguments found on commandline")
            elif word == "!":
                if self._inverted:
                    raise RuleSyntaxError("multiple consecutive ! not allowed")
                self._inverted = True
            elif word.startswith("--"):
                self._read_long(word)
            elif word.startswith("-") and word != "-":
                self._read_short(word)
            else:
                raise RuleSyntaxError(f"Bad argument `{word}'")
            if self._kind in (Kind.HELP, Kind.VERSION, Kind.IPV6):
                return Command(self._kind)
        if self._inverted:
            raise RuleSyntaxError("nothing appropriate following !")
        return self._finish()

    # --- words --------------------------------------------------------------------------------------

    def _take(self) -> str | None:
        if self.position + 1 >= len(self.argv):
            return None
        self.position += 1
        return self.argv[self.position]

    def _take_value(self) -> str | None:
        """Take the next word unless it looks like an option."""
        following = self.argv[self.position + 1:self.position + 2]
        return self._take() if following and following[0][:1] not in ("-", "!") else None

    def _take_required(self, option: str) -> str:
        word = self._take()
        if word is None:
            raise RuleSyntaxError(f'option "{option}" requires an argument')
        return word

    def _read_long(self, word: str) -> None:
        name, equals, attached = word[2:].partition("=")
        value = attached if equals else None
        option = by_name(name, self._readers()) or self._by_protocol(name)
        match option:
            case Option(letter, _, argument):
                if argument is Argument.NONE and equals:
                    raise RuleSyntaxError(f'unknown option "{word}"')
                if argument is Argument.REQUIRED and value is None:
                    value = self._take_required(word)
                self._handle(letter, value)
            case ExtensionUse(reader, extension_option):
                if not extension_option.arguments and equals:
                    raise RuleSyntaxError(f'unknown option "{word}"')
                values = [attached] if equals else []
                if extension_option.arguments and not equals:
                    values.append(self._take_required(word))
                if extension_option.arguments == 2:
                    second = self._take_value()
                    if second is None:
                        raise RuleSyntaxError(f"--{extension_option.names[0]} requires two args.")
                    values.append(second)
                inverted, self._inverted = self._inverted, False
                reader.read(extension_option, inverted, values)
            case _:
                raise RuleSyntaxError(f'unknown option "{word}"')

    def _read_short(self, word: str) -> None:
        for index, letter in enumerate(word[1:], 2):
            option = by_letter(letter)
            if option is None:
                raise RuleSyntaxError(f'unknown option "{word}"')
            if option.argument is Argument.NONE:
                self._handle(letter, None)
                continue
            value = word[index:] or None
            if option.argument is Argument.REQUIRED and value is None:
                value = self._take_required(word)
            self._handle(letter, value)
            return

    def _readers(self) -> list[AnyReader]:
        return [*self._matches, *([] if self._target is None else [self._target])]

    def _by_protocol(self, name: str) -> ExtensionUse | None:
        """Load the match of the rule's protocol if one of its options is meant."""
        protocol = protocol_name(self._proto.number) if self._proto is not None else ""
        if protocol not in MATCHES or any(reader.name == protocol for reader in self._matches):
            return None
        reader = MATCHES[protocol](protocol, self._lookups)
        option = by_name(name, [*self._readers(), reader])
        if not isinstance(option, ExtensionUse) or option.reader is not reader:
            return None
        self._load(reader)
        return option

    def _load(self, reader: Reader[Match]) -> None:
        self._matches.append(reader)
        self._given.add("m")

    # --- one option ---------------------------------------------------------------------------------

    def _handle(self, letter: str, value: str | None) -> None:
        if letter in COMMAND_LETTERS:
            self._set_command(Kind(letter), value)
            return
        inverted, self._inverted = self._inverted, False
        if inverted and letter not in INVERTIBLE:
            names = {"t": "unexpected ! flag before --table", "m": "unexpected ! flag before --match",
                     "g": "cannot have ! before -j"}
            raise RuleSyntaxError(names.get(letter, f"cannot have ! before -{letter}"))
        if letter in "sdpjgion0xcf":
            # to iptables, -g is a kind of -j
            named = "j" if letter == "g" else letter
            if named in self._given:
                raise RuleSyntaxError(f"multiple -{named} flags not allowed")
            self._given.add(named)
        elif letter in "v1wW":
            self._given.add(letter)
        if letter in "hV":
            self._kind = Kind(letter)
        elif letter == "6":
            self._skip_ipv6()
        elif letter == "f":
            self._fragment = not inverted
        elif letter in _HANDLERS:
            _HANDLERS[letter](self, letter, value or "", inverted)

    def _skip_ipv6(self) -> None:
        if self._fixed_table is None:
            raise RuleSyntaxError("natengine is for IPv4 only: use ip6tables")
        self._kind = Kind.IPV6

    def _set_command(self, kind: Kind, value: str | None) -> None:
        if self._inverted:
            raise RuleSyntaxError("unexpected '!' flag")
        if self._kind is None:
            self._kind = kind
        elif not self._zero and (kind, self._kind) in _LIST_AND_ZERO:
            self._kind = kind if kind in LISTINGS else self._kind
            self._zero = True
        else:
            raise RuleSyntaxError(f"Cannot use -{kind.value} with -{self._kind.value}")
        chain = self._take_value() if value is None else value
        self._chain = self._chain if chain is None else chain
        if chain is None:
            return
        check_length(chain)
        if kind is Kind.NEW_CHAIN:
            check_new_chain(chain)
        elif kind in _TAKES_NUMBER:
            self._read_number(kind)
        elif kind is Kind.POLICY:
            self._read_policy()
        elif kind is Kind.RENAME_CHAIN:
            self._new_name = self._take_value()
            if self._new_name is None:
                raise RuleSyntaxError("-E requires old-chain-name and new-chain-name")
            check_new_chain(self._new_name)

    def _read_number(self, kind: Kind) -> None:
        text = self._take_value()
        if text is None:
            if kind is Kind.REPLACE:
                raise RuleSyntaxError("-R requires a rule number")
            return
        self._number = parse_number(text, _MAX_RULE_NUMBER)
        if not self._number:
            raise RuleSyntaxError(f"Invalid rule number `{text}'")
        if kind is Kind.ZERO:
            self._zeroes_rule = True
            self._kind, self._zero = kind, False        # to iptables, -L is forgotten then, if it stands before

    def _read_policy(self) -> None:
        text = self._take_value()
        if text is None:
            raise RuleSyntaxError("-P requires a chain and a policy")
        if text not in POLICIES:
            raise RuleApplyError("Bad policy name. Run `dmesg' for more information.")
        self._policy = POLICIES[text]

    def _read_table(self, letter: str, value: str, inverted: bool) -> None:
        if self._fixed_table is not None:
            raise RuleSyntaxError("The -t option cannot be used in iptables-restore.")
        self._table = table_by_name(value)

    def _read_address(self, letter: str, value: str, inverted: bool) -> None:
        # Read at the end, as iptables does: a slow resolver is not asked for a command that is wrong.
        self._addresses[letter] = (value, inverted, self.position)

    def _tests_of(self, letter: str) -> tuple[AddressTest | None, ...]:
        if letter not in self._addresses:
            return (None,)
        text, inverted, self.position = self._addresses[letter]
        return parse_addresses(text, inverted, self._lookups.host)

    def _read_interface(self, letter: str, value: str, inverted: bool) -> None:
        everything = value == ANY_INTERFACE and not inverted
        self._interfaces[letter] = None if everything else InterfaceTest(value, inverted)

    def _read_protocol(self, letter: str, value: str, inverted: bool) -> None:
        number = protocol_number(value)
        if number is None:
            raise RuleSyntaxError(f'unknown protocol "{value.lower()}" specified')
        if number == 0 and inverted:
            raise RuleSyntaxError("rule would never match protocol")
        self._proto = ProtocolTest(number, inverted) if number else None

    def _read_match(self, letter: str, value: str, inverted: bool) -> None:
        if value in MISSING_MATCHES:
            raise RuleSyntaxError(f"match {value} is not available in natengine: {MISSING_MATCHES[value]}")
        if value not in MATCHES:
            raise RuleSyntaxError(f"Couldn't load match `{value}':No such file or directory")
        self._load(MATCHES[value](value, self._lookups))

    def _read_target(self, letter: str, value: str, inverted: bool) -> None:
        check_jump(value)
        if letter == "g":
            self._jump = Goto(value)
        elif value in MISSING_TARGETS:
            raise RuleSyntaxError(f"target {value} is not available in natengine")
        elif value in TARGETS:
            self._target = TARGETS[value](value, self._lookups)
        else:
            self._jump = Jump(value)            # whether there is such a chain, the rule set knows

    def _read_counters(self, letter: str, value: str, inverted: bool) -> None:
        packets, comma, bytes_ = value.partition(",")
        second = bytes_ if comma else self._take_value()
        if second is None:
            raise RuleSyntaxError("-c requires packet and byte counter")
        self._counters = parse_counters(packets, second)

    def _read_wait(self, letter: str, value: str, inverted: bool) -> None:
        self._refuse_in_text(letter)
        seconds = value or self._take_value()
        if seconds and parse_number(seconds, MAX_COUNTER) is None:
            raise RuleSyntaxError("wait seconds not numeric")

    def _read_wait_interval(self, letter: str, value: str, inverted: bool) -> None:
        self._refuse_in_text(letter)
        if parse_number(value, MAX_COUNTER) is None:
            raise RuleSyntaxError("wait interval not numeric")

    def _refuse_in_text(self, letter: str) -> None:
        if self._fixed_table is not None:
            raise RuleSyntaxError(f"You cannot use `-{letter}' from iptables-restore")

    # --- all options together -----------------------------------------------------------------------

    def _finish(self) -> Command:
        if self._kind is None:
            raise RuleSyntaxError("no command specified")
        if "W" in self._given and "w" not in self._given:
            raise RuleSyntaxError("--wait-interval only makes sense with --wait")
        rule = self._rule()
        wrong = misplaced(self._kind, self._number, self._given - _ANYWHERE)
        if wrong is not None:
            raise RuleSyntaxError(f"Illegal option `-{wrong}' with this command")
        has_rule = self._kind in _RULE_COMMANDS and not (self._kind is Kind.DELETE and self._number)
        command = Command(
            self._kind, self._table, self._chain, self._number, rule if has_rule else None,
            self._tests_of("s"), self._tests_of("d"), self._policy, self._counters, self._new_name,
            numeric="n" in self._given, verbose="v" in self._given, exact="x" in self._given,
            line_numbers="0" in self._given, zero=self._zero,
            zeroes_rule=self._zero and self._zeroes_rule, flush_flows="1" in self._given)
        if command.flush_flows and not command.changes_rules:
            raise RuleSyntaxError("Illegal option `--flush-flows' with this command")
        if self._kind is Kind.REPLACE and len(command.rules) > 1:
            raise RuleSyntaxError("Replacement rule does not specify a unique address")
        for each in command.rules:
            check_form(self._table, self._chain or "", each)
        if self._policy is not None:
            check_policy(self._table, self._policy)
        return command

    def _rule(self) -> Rule:
        matches = tuple(reader.finish() for reader in self._matches)
        target = self._jump if self._target is None else self._target.finish()
        return Rule(in_iface=self._interfaces.get("i"), out_iface=self._interfaces.get("o"),
                    proto=self._proto, fragment=self._fragment, matches=matches, target=target)


_HANDLERS: dict[str, Callable[[CommandParser, str, str, bool], None]] = {
    "t": CommandParser._read_table,
    "s": CommandParser._read_address,
    "d": CommandParser._read_address,
    "i": CommandParser._read_interface,
    "o": CommandParser._read_interface,
    "p": CommandParser._read_protocol,
    "m": CommandParser._read_match,
    "j": CommandParser._read_target,
    "g": CommandParser._read_target,
    "c": CommandParser._read_counters,
    "w": CommandParser._read_wait,
    "W": CommandParser._read_wait_interval,
}
