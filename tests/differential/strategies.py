"""What hypothesis may send to a fast path.

The universe is small on purpose, so that flows meet, clash and share list neighbours; and it
contains what nobody sends: wrong checksums, lying lengths, truncation, bytes at random.
"""

from __future__ import annotations

from hypothesis import strategies as st

from natengine.flow.records import FlowSpec
from natengine.vocab import Hook, Proto

SECOND_NS = 1_000_000_000

INSIDE_IPS = (0x0A01000B, 0x0A01000C, 0xFFFFFFFF)
OUTSIDE_IPS = (0xCB007101, 0x0A01000B, 0)          # the second: a flow that may be left unchanged
PEER_IPS = (0xCB007102, 0xC0000201)
PROTOS = (
    Proto.TCP, Proto.TCP, Proto.UDP, Proto.UDP, Proto.ICMP, Proto.UDPLITE, Proto.DCCP, Proto.SCTP, Proto.GRE, Proto.GRE,
    253,
)
PORTS = (0, 53, 40000, 0xFFFF)
GRE_PORTS = (*PORTS, 0, 0x880B)                    # a packet whose call is not known is all others' GRE

hooks = st.sampled_from((Hook.PREROUTING, Hook.POSTROUTING))
any_hooks = st.sampled_from((0, 0, 0, 4, 4, 4, 1, 2, 3, -1, 5))
allows = st.sampled_from((7, 7, 7, 1, 2, 4, 3, 0, 8, 14, 12))
ports = st.sampled_from(PORTS) | st.integers(0, 0xFFFF)
flow_ids = st.integers(-1, 7)
budgets = st.sampled_from((0, 1, 2, 3, 100, -1, 2**63 - 1))

# 0 and 2**62 for who tests `if now_ns`, and for who adds in 64 signed bits
start_times = st.sampled_from((0, 1, 3 * SECOND_NS, 2**62))
time_steps = st.sampled_from((
    0, 1, SECOND_NS - 1, SECOND_NS, SECOND_NS + 1, 59 * SECOND_NS, 240 * SECOND_NS, 301 * SECOND_NS,
    8191 * SECOND_NS, 8192 * SECOND_NS, 8193 * SECOND_NS, 100_000 * SECOND_NS, -1, -5 * SECOND_NS,
)) | st.integers(0, 20 * SECOND_NS)
timeouts = st.sampled_from((
    0, 1, SECOND_NS, 5 * SECOND_NS, 240 * SECOND_NS, 7440 * SECOND_NS, 50_000 * SECOND_NS,
))


@st.composite
def specs(draw: st.DrawFn, any_port: bool = False, protos: tuple[int, ...] = PROTOS) -> FlowSpec:
    """A flow to install, anywhere in the small universe or with any ports."""
    proto = draw(st.sampled_from(protos))
    port = ports if any_port else st.sampled_from(GRE_PORTS if proto == Proto.GRE else PORTS)
    if proto == Proto.GRE and draw(st.booleans()):
        port = st.just(0)                           # plain GRE
    return FlowSpec(
        proto=proto,
        inside_ip=draw(st.sampled_from(INSIDE_IPS)),
        inside_port=draw(port),
        outside_ip=draw(st.sampled_from(OUTSIDE_IPS)),
        outside_port=draw(port),
        peer_ip=draw(st.sampled_from(PEER_IPS)),
        peer_port=draw(st.sampled_from((0, 8, 13, 18))) if proto == Proto.ICMP else draw(port),
        from_inside=draw(st.booleans()),
        inside_ifindex=draw(st.sampled_from((0, 3))),
        uplink_ifindex=draw(st.sampled_from((4, 2**31 - 1))),
        allow=draw(allows),
    )


options = st.sampled_from((b"", b"", b"", b"\1\1\1\1", b"\1" * 12, b"\1" * 39 + b"\0"))
tcp_options = st.sampled_from((
    b"", b"", b"\1\1\1\1", b"\2\4\5\xb4", b"\1\2\4\5\xb4\1\1\1", b"\2\4\0\0", b"\1" * 40, b"\3\3\7\0", b"\1\3\3\xff",
))
strange_tcp_options = tcp_options | st.binary(min_size=4, max_size=4) | st.just(b"\2\0\3\3\7\0\0\0")
payloads = st.binary(max_size=9) | st.sampled_from((b"\0" * 8, b"\xff" * 7))
tcp_flags = st.sampled_from((2, 18, 16, 17, 4, 20, 1, 0)) | st.integers(0, 255)


@st.composite
def damage(draw: st.DrawFn, packet: bytearray) -> bytearray:
    """A packet as it is, or with something wrong about it."""
    kind = draw(st.sampled_from((
        "none", "none", "none", "padding", "truncated", "byte", "bytes", "checksum", "fragment", "proto",
        "ihl", "total", "inner length",
    )))
    packet = bytearray(packet)
    if kind == "padding":
        packet += draw(st.binary(min_size=1, max_size=20))
    elif kind == "truncated":
        del packet[draw(st.integers(0, len(packet) - 1)):]
    elif kind == "byte":
        packet[draw(st.integers(0, len(packet) - 1))] ^= 1 << draw(st.integers(0, 7))
    elif kind == "bytes":
        for _ in range(draw(st.integers(1, 4))):
            packet[draw(st.integers(0, len(packet) - 1))] = draw(st.integers(0, 255))
    elif kind == "checksum":
        packet[10:12] = draw(st.sampled_from((b"\0\0", b"\xff\xff", b"\x12\x34")))
    elif kind == "fragment":
        packet[6:8] = draw(st.integers(0, 0xFFFF)).to_bytes(2, "big")
    elif kind == "proto":
        packet[9] = draw(st.sampled_from((0, 1, 6, 17, 33, 47, 132, 136, 255)))
    elif kind == "ihl":
        packet[0] = draw(st.integers(0, 255))
    elif kind == "total":
        packet[2:4] = draw(st.integers(0, len(packet) + 4)).to_bytes(2, "big")
    elif kind == "inner length":
        at = (packet[0] & 15) * 4 + draw(st.sampled_from((2, 4, 5, 6, 12, 16)))
        if at < len(packet):
            packet[at] = draw(st.integers(0, 255))
    return packet


# bytes at random get past the first checks rarely, so most of these begin like a packet
random_bytes = st.binary(max_size=80).map(bytearray) | st.builds(
    lambda ihl, total, proto, rest: bytearray([0x40 | ihl, 0, 0, total, 0, 0, 0, 0, 64, proto]) + rest,
    st.integers(0, 15), st.integers(0, 90), st.sampled_from((1, 6, 17, 33, 50, 132, 136)), st.binary(max_size=80),
) | st.builds(
    lambda total, flags, rest: bytearray([0x45, 0, 0, total, 0, 0, 0, 0, 64, 47]) + bytes(10) + flags + rest,
    st.integers(20, 48), st.sampled_from((b"\x20\1\x88\x0b", b"\x30\x81\x88\x0b", b"\xb0\1\x88\x0b", b"\x20\1\x88")),
    st.binary(max_size=20),
)
