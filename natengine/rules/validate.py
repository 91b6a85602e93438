"""Find every combination that makes no sense when a rule is loaded, not when a packet comes.

1. `check_form` is what iptables itself refuses before it asks the kernel: RuleSyntaxError, in its words.
2. `check_placement` is what the kernel refuses.  iptables reports a bare "Invalid argument" (exit
   status 4) there; the status is kept, the message says what is wrong.
3. Stricter than iptables where it accepts a rule that can only be a slip: an interface name that no
   interface can have, UDP port 65536 (it stores 0) or a backward UDP range, port 0 to masquerade to.

The engine relies on both: nothing below `frontend` tests a rule again.
"""

from __future__ import annotations

from natengine.errors import RuleApplyError, RuleSyntaxError
from natengine.rules.matches import (
    AddressKind,
    Comment,
    IcmpType,
    InterfaceTest,
    MacSource,
    Match,
    Multiport,
    PortRange,
    TcpUdpPorts,
)
from natengine.rules.model import (
    BUILT_IN_CHAINS,
    EXIT_KERNEL_REFUSES,
    Chain,
    ChainName,
    Rule,
    RuleSet,
    Table,
    TableName,
)
from natengine.rules.targets import (
    Dnat,
    Drop,
    Goto,
    Jump,
    Masquerade,
    Netmap,
    Policy,
    Redirect,
    Reject,
    RejectWith,
    Snat,
    Target,
)
from natengine.vocab import Proto

MAX_INTERFACE_LEN = 15          # IFNAMSIZ 16, less the NUL
MAX_COMMENT_BYTES = 256         # XT_MAX_COMMENT_LEN
MAX_PORT = 65535
MAX_CHAIN_DEPTH = 16            # NFT_JUMP_STACK_SIZE; the built-in chain is the first of them

# The targets that do not work everywhere: in which table, from which built-in chains on.
_PLACES: dict[type[Target], tuple[TableName, tuple[ChainName, ...]]] = {
    Masquerade: (TableName.NAT, (ChainName.POSTROUTING,)),
    Snat: (TableName.NAT, (ChainName.POSTROUTING, ChainName.INPUT)),
    Dnat: (TableName.NAT, (ChainName.PREROUTING, ChainName.OUTPUT)),
    Redirect: (TableName.NAT, (ChainName.PREROUTING, ChainName.OUTPUT)),
    Netmap: (TableName.NAT, BUILT_IN_CHAINS[TableName.NAT]),
    Reject: (TableName.FILTER, BUILT_IN_CHAINS[TableName.FILTER]),
}

_HAVE_NEW_PORTS = {Proto.TCP, Proto.UDP, Proto.ICMP, Proto.SCTP, Proto.DCCP}
_HAVE_PORTS = {Proto.TCP, Proto.UDP, Proto.UDPLITE, Proto.SCTP, Proto.DCCP}

_NO_IN_INTERFACE = (ChainName.OUTPUT, ChainName.POSTROUTING)
_NO_OUT_INTERFACE = (ChainName.PREROUTING, ChainName.INPUT)


def check_ruleset(ruleset: RuleSet) -> None:
    """Check every rule and policy of a rule set that did not come through a rule command."""
    for table in ruleset.tables:
        check_table(table)
        for chain in table.chains:
            check_policy(table.name, chain.policy)
            for rule in chain.rules:
                check_rule(table.name, chain.name, rule)


def check_rule(table: TableName, chain: str, rule: Rule) -> None:
    """Check one rule for one chain.

    Raises:
        RuleSyntaxError: The rule contradicts itself, or names what the chain does not have.
        RuleApplyError: The target or a match does not work there.
    """
    check_form(table, chain, rule)
    check_placement(table, chain, rule)


def check_form(table: TableName, chain: str, rule: Rule) -> None:
    """Refuse what iptables refuses on the command line."""
    if rule.in_iface is not None:
        if chain in _NO_IN_INTERFACE:
            raise RuleSyntaxError(f"Can't use -i with {chain}")
        _check_interface(rule.in_iface)
    if rule.out_iface is not None:
        if chain in _NO_OUT_INTERFACE:
            raise RuleSyntaxError(f"Can't use -o with {chain}")
        _check_interface(rule.out_iface)
    if rule.proto is not None and rule.proto.number == 0 and rule.proto.inverted:
        raise RuleSyntaxError("rule would never match protocol")
    for match in rule.matches:
        if isinstance(match, TcpUdpPorts):
            _check_ports(rule, match)
        elif isinstance(match, Multiport):
            _check_multiport(rule)
        elif isinstance(match, Comment):
            _check_comment(match)
    _check_new_endpoint(rule)
    _check_no_drop(table, rule.target)


def check_placement(table: TableName, chain: str, rule: Rule) -> None:
    """Refuse what the kernel refuses."""
    _check_target_place(table, chain, rule.target)
    if rule.target == Reject(RejectWith.TCP_RESET) and not _protocol_is(rule, Proto.TCP):
        raise _kernel_refuses("REJECT --reject-with tcp-reset requires '-p tcp'")
    for test, option in ((rule.src, "-s"), (rule.dst, "-d")):
        if test is not None and test.inverted and test.prefix.mask == 0:
            raise _kernel_refuses(f"! {option} 0.0.0.0/0 would never match")
    for match in rule.matches:
        _check_match_place(chain, match)
        if isinstance(match, IcmpType) and not _protocol_is(rule, Proto.ICMP):
            raise _kernel_refuses(_requires(Proto.ICMP))
        if isinstance(match, TcpUdpPorts) and not _mentions(rule, match.proto):
            raise _kernel_refuses(_requires(match.proto))


def _check_target_place(table: TableName, chain: str, target: Target | None) -> None:
    """Refuse a target in the wrong table or built-in chain; of a user-defined chain, see `check_table`."""
    place, chains = _PLACES.get(type(target), (table, ())) if target is not None else (table, ())
    if table is not place or (chains and chain in ChainName.__members__.values() and chain not in chains):
        raise _kernel_refuses(f"{type(target).__name__.upper()} works in the {' and '.join(chains)} "
                              f"chain{'s'[:len(chains) - 1]} of table {place} only")


def _check_match_place(chain: str, match: Match) -> None:
    if isinstance(match, MacSource) and chain in _NO_IN_INTERFACE:
        raise _kernel_refuses(f"mac does not work in {chain}: a packet there has no source address of a link")
    if isinstance(match, AddressKind):
        if match.limit_in and chain in _NO_IN_INTERFACE:
            raise _kernel_refuses(f"Can't use --limit-iface-in with {chain}")
        if match.limit_out and chain in _NO_OUT_INTERFACE:
            raise _kernel_refuses(f"Can't use --limit-iface-out with {chain}")


def check_table(table: Table, changed: str | None = None) -> None:
    """Check what hangs on the way from chain to chain: where jumps lead, and what is met there.

    Args:
        changed: The chain whose rule is to blame.
    """
    check_jumps(table, changed)
    for chain in table:
        if chain.policy is not None:
            for rule in table.reachable(chain.name):
                _check_target_place(table.name, chain.name, rule.target)
                for match in rule.matches:
                    _check_match_place(chain.name, match)


def check_jumps(table: Table, changed: str | None = None) -> None:
    """Refuse jumps to chains that are not there, that lead in a circle, or are deeper than the kernel's limit.

    Args:
        changed: The chain whose rule is to blame; None: the one where the walk finds it.
    """
    depths: dict[str, int] = {}         # how many chains a walk may be in, from this one on; 0: being worked out
    by_name = {chain.name: chain for chain in table}

    def depth(chain: Chain) -> int:
        if chain.name in depths:
            return depths[chain.name]
        depths[chain.name] = 0
        deepest = 0
        for rule in chain.rules:
            if not isinstance(rule.target, Jump | Goto):
                continue
            to = by_name.get(rule.target.chain)
            if to is None or to.policy is not None:
                raise _kernel_refuses(
                    f" RULE_APPEND failed (No such file or directory): rule in chain {changed or chain.name}"
                )
            below = depth(to)
            if below == 0 or below >= MAX_CHAIN_DEPTH:
                raise _kernel_refuses(f" RULE_APPEND failed (Too many links): rule in chain {changed or chain.name}")
            deepest = max(deepest, below)
        depths[chain.name] = deepest + 1
        return deepest + 1

    for chain in table:
        depth(chain)


def check_policy(table: TableName, policy: Policy | None) -> None:
    """Refuse a policy that the table may not have."""
    _check_no_drop(table, policy)


def _kernel_refuses(message: str) -> RuleApplyError:
    error = RuleApplyError(message)
    error.exit_status = EXIT_KERNEL_REFUSES
    return error


def _check_no_drop(table: TableName, target: Target | None) -> None:
    if table is TableName.NAT and isinstance(target, Drop):
        raise RuleSyntaxError('The "nat" table is not intended for filtering, '
                              "the use of DROP is therefore inhibited.")


def _check_interface(test: InterfaceTest) -> None:
    name = test.pattern
    if not name:
        raise RuleSyntaxError("Empty interface is likely to be undesired")
    if len(name.encode()) > MAX_INTERFACE_LEN:
        raise RuleSyntaxError(f"interface name `{name}' must be shorter than IFNAMSIZ ({MAX_INTERFACE_LEN})")
    if "/" in name or any(character.isspace() for character in name):
        raise RuleSyntaxError(f"weird character in interface `{name}' "
                              "('/' and ' ' are not allowed by the kernel).")


def _check_comment(match: Comment) -> None:
    if len(match.text.encode()) > MAX_COMMENT_BYTES:
        raise RuleSyntaxError(f"comment: at most {MAX_COMMENT_BYTES} bytes")
    if "\n" in match.text or "\0" in match.text:
        raise RuleSyntaxError("comment: must be one line of text")


def _check_ports(rule: Rule, match: TcpUdpPorts) -> None:
    """Options of `-m tcp` want `-p tcp`.  `! -p tcp` passes too, as in iptables, and never matches."""
    if _has_options(match) and not _mentions(rule, match.proto):
        raise RuleSyntaxError(_requires(match.proto))
    if match.flags is not None and match.proto is not Proto.TCP:
        raise RuleSyntaxError("TCP flags belong to '-p tcp'")
    for test in (match.sport, match.dport):
        if test is None:
            continue
        first, last = test.ports
        if not (0 <= first <= MAX_PORT and 0 <= last <= MAX_PORT):
            raise RuleSyntaxError(f"invalid port/service `{max(first, last)}' specified")
        if first > last:
            raise RuleSyntaxError("invalid portrange (min > max)")


def _check_multiport(rule: Rule) -> None:
    if rule.proto is None or rule.proto.number == 0:
        raise RuleSyntaxError("multiport needs `-p tcp', `-p udp', `-p udplite', `-p sctp' or `-p dccp'")
    if rule.proto.inverted or rule.proto.number not in _HAVE_PORTS:
        raise RuleSyntaxError("multiport only works with TCP, UDP, UDPLITE, SCTP and DCCP")


def _check_new_endpoint(rule: Rule) -> None:
    """Check the addresses and ports that a target translates to."""
    match rule.target:
        case Masquerade(to_ports=ports) | Redirect(to_ports=ports):
            pass
        case Snat(addresses, ports) | Dnat(addresses, ports):
            if addresses is not None and addresses.first > addresses.last:
                raise RuleSyntaxError("Address range is reversed: the lower address comes first")
        case _:
            return
    if ports is not None:
        _check_new_ports(rule, ports)


def _check_new_ports(rule: Rule, ports: PortRange) -> None:
    for port in ports:
        if not 1 <= port <= MAX_PORT:
            raise RuleSyntaxError(f"Port `{port}' not valid")
    if ports.first > ports.last:
        raise RuleSyntaxError(f"Port range `{ports.last}' funky")
    if rule.proto is None or rule.proto.number not in _HAVE_NEW_PORTS:
        raise RuleSyntaxError("Need TCP, UDP, SCTP or DCCP with port specification")


def _has_options(match: TcpUdpPorts) -> bool:
    return (match.sport, match.dport, match.flags) != (None, None, None)


def _requires(proto: Proto) -> str:
    return f"{proto.name} match requires '-p {proto.name.lower()}'"


def _mentions(rule: Rule, proto: Proto) -> bool:
    return rule.proto is not None and rule.proto.number == proto


def _protocol_is(rule: Rule, proto: Proto) -> bool:
    return rule.proto is not None and rule.proto.number == proto and not rule.proto.inverted
