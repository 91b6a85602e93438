"""What NAT can do with each protocol.

    an outside port, or identifier, stands for the inside one .... TCP, UDP, UDP-Lite, DCCP; ICMP queries
    an outside call id stands for the inside one ................. PPTP's GRE, where the control connection was seen
    only the address is translated ............................... SCTP, other GRE, ESP, IPIP, all others
    nothing ...................................................... AH

Where only the address is translated, what comes back can be told by the peer alone (and SCTP's two ports, which stay):
one inside host for each peer, as one outside address has no more to offer.  The second one is refused and told so
(`Reason.PEER_TAKEN`), where a kernel drops its packets in silence.

SCTP's ports could be changed, but each packet's CRC-32c would have to be computed anew, and what was damaged would
look sound (RFC 9260 6.8).  GRE's call id, in PPTP's version of it (RFC 2637), is another one each way; which two belong
together is said only in PPTP's control connection: `nat/pptp.py`.
"""

from __future__ import annotations

from natengine.nat.packet import NewPacket
from natengine.vocab import Proto
from natengine.wire.addr import format_ipv4

MAPPED = frozenset({Proto.TCP, Proto.UDP, Proto.ICMP, Proto.UDPLITE, Proto.DCCP})
WITH_FILTERING = MAPPED - {Proto.ICMP}      # who may send to a mapped port is a question of ports

# what it signs includes the addresses (RFC 4302 3.3.3.1.1): no translated packet would ever be accepted
UNTRANSLATABLE = frozenset({Proto.AH})


def peer_taken(packet: NewPacket) -> str:
    """Return the line for the log that goes with `Reason.PEER_TAKEN`."""
    ip = packet.ip
    try:
        name = Proto(ip.proto).name.lower()
    except ValueError:
        name = f"protocol {ip.proto}"
    return (
        f"{name} from {format_ipv4(ip.src)} to {format_ipv4(ip.dst)} dropped: another host has flows to that peer, "
        "and the protocol has no port that could be changed to tell them apart"
    )
