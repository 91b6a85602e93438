# cython: language_level=3
"""The message in which the kernel hands over a packet, read where it lies; and how much room a verdict takes."""

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy, memset

from natengine._wire cimport HOOK_INPUT, HOOK_OUTPUT, HOOK_POSTROUTING, HOOK_PREROUTING, IS_TCP, Headers
from natengine.adapters._nfqueue cimport (
    NFQA_HWADDR, NFQA_IFINDEX_INDEV, NFQA_IFINDEX_OUTDEV, NFQA_MARK, NFQA_PACKET_HDR, NFQA_PAYLOAD,
    NFQA_SKB_CSUMNOTREADY, NFQA_SKB_GSO, NFQA_SKB_INFO, nfgenmsg, nfqnl_msg_packet_hw, nlattr, nlmsghdr, ntohl, ntohs,
)

cdef enum:
    VERDICT_SIZE = 32                   # nlmsghdr 16, nfgenmsg 4, attribute header 4, verdict 8
    PAYLOAD_HEADER = 4
    ETH_ALEN = 6


cdef struct Packet:                     # one message, parsed
    Headers headers                     # of the packet in it, once the table has looked at them
    int path                            # 0: the table has yet to be asked
    uint32_t packet_id                  # network order, as it goes back
    int hook
    uint32_t in_ifindex
    uint32_t out_ifindex
    uint32_t mark
    uint32_t skb_info
    nfqnl_msg_packet_hw *link           # NULL: it came over none that has addresses
    uint8_t *payload
    uint32_t length


cdef inline uint32_t be32(const uint8_t *at) noexcept nogil:
    cdef uint32_t word
    memcpy(&word, at, 4)
    return ntohl(word)


cdef inline int side_of(uint8_t hook) noexcept nogil:
    """`base.SIDE_OF_HOOK`."""
    return HOOK_PREROUTING if hook == HOOK_OUTPUT else HOOK_POSTROUTING if hook == HOOK_INPUT else hook


cdef inline bint parse(uint8_t *data, uint32_t length, Packet *packet) noexcept nogil:
    """Read the attributes of a packet message; 0 if it has no id or no payload.

    The kernel writes well-formed messages; lengths are checked all the same, for everything is
    later read and written through them.
    """
    cdef uint32_t at = sizeof(nlmsghdr) + sizeof(nfgenmsg), size
    cdef nlattr *attribute
    cdef uint8_t *value
    cdef bint has_id = False
    memset(packet, 0, sizeof(Packet))
    if length > (<nlmsghdr *>data).nlmsg_len:
        length = (<nlmsghdr *>data).nlmsg_len
    while at + sizeof(nlattr) <= length:
        attribute = <nlattr *>(data + at)
        size = attribute.nla_len
        value = data + at + sizeof(nlattr)
        if size < sizeof(nlattr):
            break
        if size > length - at:                      # the datagram was cut (MSG_TRUNC): the packet is not
            if attribute.nla_type == NFQA_PAYLOAD:  # whole, and no header will be found in 0 bytes of it
                packet.payload = value
            break
        size -= sizeof(nlattr)
        if attribute.nla_type == NFQA_PACKET_HDR and size >= 7:
            memcpy(&packet.packet_id, value, 4)
            packet.hook = side_of(value[6])
            has_id = True
        elif attribute.nla_type == NFQA_PAYLOAD:
            packet.payload, packet.length = value, size
        elif size == 4:
            if attribute.nla_type == NFQA_IFINDEX_INDEV:
                packet.in_ifindex = be32(value)
            elif attribute.nla_type == NFQA_IFINDEX_OUTDEV:
                packet.out_ifindex = be32(value)
            elif attribute.nla_type == NFQA_MARK:
                packet.mark = be32(value)
            elif attribute.nla_type == NFQA_SKB_INFO:
                packet.skb_info = be32(value)
        elif attribute.nla_type == NFQA_HWADDR and size >= sizeof(nfqnl_msg_packet_hw):
            packet.link = <nfqnl_msg_packet_hw *>value
        at += (attribute.nla_len + 3) & ~<uint32_t>3
    return has_id and packet.payload != NULL and packet.payload - data >= VERDICT_SIZE + PAYLOAD_HEADER


cdef inline bytes link_source(const Packet *packet):
    """`PacketMeta.link_src`."""
    if packet.link == NULL or ntohs(packet.link.hw_addrlen) != ETH_ALEN:
        return b""
    return packet.link.hw_addr[:ETH_ALEN]


cdef inline bint must_be_cut(const Packet *packet) noexcept nogil:
    """Whether nobody would get the checksums right if the packet were changed in one piece."""
    return packet.skb_info & NFQA_SKB_GSO and packet.length >= 20 and packet.payload[9] != IS_TCP


cdef inline bint lacks_checksum(const Packet *packet) noexcept nogil:
    """Whether nobody but us will compute the packet's L4 checksum."""
    if packet.skb_info & NFQA_SKB_GSO:
        return stays_here(packet)
    return packet.skb_info & NFQA_SKB_CSUMNOTREADY != 0


cdef inline bint stays_here(const Packet *packet) noexcept nogil:
    """Whether the packet is for the head's own stack, which takes a large one as it is."""
    return packet.headers.to_head or (packet.hook == HOOK_POSTROUTING and packet.out_ifindex == 0)
