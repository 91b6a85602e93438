"""`natengine conntrack`: the connection table in the words of conntrack(8).

    -L  list     -C  count     -D  delete what matches     -F  flush

The filters are conntrack's: -p, -s, -d, -r, -q, --sport, --dport, --state, -m; without one, everything.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from natengine.errors import ConfigError
from natengine.flow.records import FlowInfo
from natengine.flow.tcp_state import TcpState
from natengine.frontend.names import parse_number
from natengine.rules.matches import ALL_BITS
from natengine.vocab import Proto
from natengine.wire.addr import Prefix, format_ipv4, parse_prefix
from natengine.wire.ipv4 import ICMP_COUNTERPART, WITH_PORTS

PROGRAM = "natengine conntrack"
# the protocols that conntrack(8) has a name for
NAMES: dict[int, str] = {
    proto: proto.name.lower()
    for proto in (Proto.ICMP, Proto.TCP, Proto.UDP, Proto.DCCP, Proto.GRE, Proto.SCTP, Proto.UDPLITE)
}
TCP_STATES = tuple(state.name for state in TcpState if state is not TcpState.NONE)


class Answer(NamedTuple):
    """What a command prints and ends with."""

    stdout: str
    stderr: str
    exit_status: int


def only_looks(words: list[str]) -> bool:
    """Whether a command deletes nothing; one that cannot be read is for `run` to refuse."""
    try:
        options = _parser().parse_args(words)
    except (ConfigError, _HelpWanted):
        return True
    return not (options.delete or options.flush)


class _Tuple(NamedTuple):
    """One direction of a flow, as conntrack shows it."""

    src: int
    dst: int
    src_port: int
    dst_port: int


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{PROGRAM}: {message}\nTry `{PROGRAM} -h' for more information.")

    def print_help(self, file: object = None) -> NoReturn:
        raise _HelpWanted(self.format_help())


class _HelpWanted(Exception):
    pass


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROGRAM, description="Look at the connection table, and take flows out of it.",
        epilog="filters look at the original direction unless they say otherwise", allow_abbrev=False,
    )
    command = parser.add_mutually_exclusive_group(required=True)
    command.add_argument("-L", "--dump", action="store_true", help="list the flows")
    command.add_argument("-C", "--count", action="store_true", help="say how many there are")
    command.add_argument("-D", "--delete", action="store_true", help="delete the flows that match the filters")
    command.add_argument("-F", "--flush", action="store_true", help="delete all flows")
    parser.add_argument("table", nargs="?", choices=["conntrack"], help=argparse.SUPPRESS)
    parser.add_argument("-p", "--protonum", "--proto", dest="proto", metavar="PROTO", help="a name or a number")
    for short, long, what in (
        ("-s", "--orig-src", "source"), ("-d", "--orig-dst", "destination"),
        ("-r", "--reply-src", "source of replies"), ("-q", "--reply-dst", "destination of replies"),
    ):
        extra = ["--src"] if short == "-s" else ["--dst"] if short == "-d" else []
        parser.add_argument(short, long, *extra, dest=long[2:].replace("-", "_"), metavar="ADDRESS[/MASK]", help=what)
    parser.add_argument("--sport", "--orig-port-src", dest="sport", type=int, metavar="PORT", help="source port")
    parser.add_argument("--dport", "--orig-port-dst", dest="dport", type=int, metavar="PORT", help="destination port")
    parser.add_argument("--state", type=str.upper, choices=TCP_STATES, metavar="STATE", help="TCP state")
    parser.add_argument("-m", "--mark", metavar="MARK[/MASK]", help="the flow's mark")
    parser.add_argument("-f", "--family", choices=["ipv4"], help="ipv4; there is no other")
    parser.add_argument("-o", "--output", choices=["extended"], help="extended: the layer-3 protocol in front")
    return parser


def directions(flow: FlowInfo) -> tuple[_Tuple, _Tuple]:
    """Return the original and the reply tuple of a flow."""
    spec = flow.spec
    out = _Tuple(spec.inside_ip, spec.peer_ip, spec.inside_port, spec.peer_port)
    back = _Tuple(spec.peer_ip, spec.outside_ip, spec.peer_port, spec.outside_port)
    return (out, back) if spec.from_inside else (back, out)


def format_flow(flow: FlowInfo, now_ns: int, *, extended: bool = False) -> str:
    """Return a flow as a line of `conntrack -L` on a kernel that counts (nf_conntrack_acct=1)."""
    spec = flow.spec
    original, reply = directions(flow)
    left = max(0, (flow.deadline_ns - now_ns) // 1_000_000_000)
    words = ["ipv4     2"] if extended else []
    words.append(f"{NAMES.get(spec.proto, 'unknown'):<8} {spec.proto} {left}")
    if spec.proto == Proto.TCP:
        words.append(TcpState(flow.tcp_state).name)
    words.append(_format_tuple(flow, original))
    words.append(f"packets={flow.original_packets} bytes={flow.original_bytes}")
    if not flow.seen_reply:
        words.append("[UNREPLIED]")
    words.append(_format_tuple(flow, reply))
    words.append(f"packets={flow.reply_packets} bytes={flow.reply_bytes}")
    if flow.assured:
        words.append("[ASSURED]")
    return " ".join([*words, f"mark={flow.mark}", "use=1"])


def _format_tuple(flow: FlowInfo, way: _Tuple) -> str:
    """Return a tuple as libnetfilter_conntrack does: what follows the addresses depends on the protocol."""
    spec = flow.spec
    addresses = f"src={format_ipv4(way.src)} dst={format_ipv4(way.dst)}"
    if spec.proto in WITH_PORTS:
        return f"{addresses} sport={way.src_port} dport={way.dst_port}"
    if spec.proto == Proto.GRE:
        return f"{addresses} srckey={way.src_port:#x} dstkey={way.dst_port:#x}"     # call ids, of PPTP
    if spec.proto != Proto.ICMP:
        return addresses
    leaves = way.src == spec.inside_ip
    icmp_type = spec.peer_port if leaves else ICMP_COUNTERPART[spec.peer_port]
    return f"{addresses} type={icmp_type} code=0 id={spec.inside_port if leaves else spec.outside_port}"


def _filter(options: argparse.Namespace) -> Callable[[FlowInfo], bool]:
    """Return the test that the options describe.

    Raises:
        ConfigError: A protocol or an address that cannot be read.
    """
    prefixes: list[tuple[str, Prefix]] = [
        (name, parse_prefix(text))
        for name in ("orig_src", "orig_dst", "reply_src", "reply_dst")
        if (text := getattr(options, name)) is not None
    ]
    proto = None if options.proto is None else _protocol(options.proto)
    mark, mask = (0, 0) if options.mark is None else _mark(options.mark)

    def matches(flow: FlowInfo) -> bool:
        original, reply = directions(flow)
        address = {
            "orig_src": original.src, "orig_dst": original.dst, "reply_src": reply.src, "reply_dst": reply.dst,
        }
        return (
            (proto is None or flow.spec.proto == proto)
            and flow.mark & mask == mark
            and all(prefix.contains(address[name]) for name, prefix in prefixes)
            and (options.sport is None or original.src_port == options.sport)
            and (options.dport is None or original.dst_port == options.dport)
            and (options.state is None or TcpState(flow.tcp_state).name == options.state)
        )

    return matches


def _mark(text: str) -> tuple[int, int]:
    """Return the mark and the mask of `MARK[/MASK]`; a mark is decimal, or hexadecimal with 0x, or octal with 0."""
    mark_text, slash, mask_text = text.partition("/")
    mark, mask = parse_number(mark_text, ALL_BITS), parse_number(mask_text, ALL_BITS) if slash else ALL_BITS
    if mark is None or mask is None:
        raise ConfigError(f"{PROGRAM}: invalid mark `{text}': say MARK or MARK/MASK, as 0x10/0xf0")
    return mark, mask


def _protocol(text: str) -> int:
    if text.isdigit():
        return int(text)
    try:
        return Proto[text.upper()]
    except KeyError:
        raise ConfigError(
            f"{PROGRAM}: unknown protocol `{text}': say {', '.join(NAMES.values())} or a number"
        ) from None


def run(
    argv: list[str], flows: Callable[[], list[FlowInfo]], delete: Callable[[list[int]], int], now_ns: int
) -> Answer:
    """Carry out one command.

    Args:
        argv: What follows `natengine conntrack`.
        flows: Returns the table.
        delete: Ends flows by id and returns how many there were.
        now_ns: The time, for the seconds that a flow has left.

    Raises:
        ConfigError: The command line is wrong; nothing was done.
    """
    try:
        options = _parser().parse_args(argv)
    except _HelpWanted as wanted:
        return Answer(str(wanted), "", 0)
    matches = _filter(options)
    table = flows()
    if options.count:
        return Answer(f"{len(table)}\n", "", 0)
    if options.flush:
        delete([flow.flow_id for flow in table])
        return Answer("", f"{PROGRAM}: connection tracking table has been emptied.\n", 0)
    shown = [flow for flow in table if matches(flow)]
    lines = "".join(format_flow(flow, now_ns, extended=options.output == "extended") + "\n" for flow in shown)
    if options.delete:
        gone = delete([flow.flow_id for flow in shown])
        return Answer(lines, f"{PROGRAM}: {gone} flow entries have been deleted.\n", 0 if gone else 1)
    return Answer(lines, f"{PROGRAM}: {len(shown)} flow entries have been shown.\n", 0)
