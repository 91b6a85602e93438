/* nfq_nat: how fast NFQUEUE itself can go.
 *
 *     nfq_nat [-a] [-b MESSAGES] [-f BYTES] [-p USEC] QUEUE UPLINK=INSIDE/OUTSIDE ...
 *
 * The yardstick of the benchmarks: one thread, one queue, a stateless 1:1 NAT of one inside address
 * on each uplink, ports kept.  Every packet is rewritten, checksums included, but nothing is looked
 * up, counted or timed; what a real NAT costs on top of NFQUEUE is its distance from this program.
 *
 *     POSTROUTING to UPLINK      source INSIDE        -> OUTSIDE
 *     PREROUTING  from UPLINK    destination OUTSIDE  -> INSIDE
 *
 * A packet that has another address there is accepted as it is.
 *
 *   -a   accept every packet as it is, without sending it back: what queueing alone costs
 *   -b   packets taken with one recvmmsg
 *   -f   verdicts are collected until they have this many bytes, then sent with one sendmsg
 *   -p   poll that long for the next packet before going to sleep: nobody then has to wake us
 *
 * Prints "ready", and at SIGTERM or SIGINT one line of counts to standard error.
 *
 * Rule 1: a packet is copied twice, kernel to us and back, and never in between.  The verdict's
 *         headers are written in front of the payload, over attributes that have been read.
 * Rule 2: verdicts go out in the order of the packets.  The kernel looks for a packet from the
 *         oldest on; out of order that is a walk through the whole queue.
 * Rule 3: checksums are RFC 1624 updates with one constant for an address pair, in memory order:
 *         the one's complement sum does not care about byte order (RFC 1071, 2.B).
 * Limits: IPv4; any failure ends the program.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_queue.h>
#include <linux/netlink.h>
#include <net/if.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>
#include "udp_probe.h"                /* monotonic_ns */

enum {
    COPY_RANGE = 65531,             /* the longest payload that fits an attribute of 65535 bytes */
    QUEUE_MAXLEN = 8192,            /* packets that the kernel holds for us, as natengine asks for */
    SOCKET_BUFFER = 64 << 20,
    MAX_BATCH = 512,
    /* A slot holds the largest message.  It is an odd number of cache lines long: with a power of
     * two the beginnings of all slots would fall into the same sets of the first-level cache. */
    SLOT = COPY_RANGE + 1 + 1024 + 64,
    SLOT_LINES = (SLOT + 63) / 64 | 1,
    SLOT_STRIDE = SLOT_LINES * 64,
    MAX_UPLINKS = 8,
    VERDICT_HEADERS = NLMSG_HDRLEN + sizeof(struct nfgenmsg) + NLA_HDRLEN
                      + sizeof(struct nfqnl_msg_verdict_hdr) + NLA_HDRLEN,
};

struct verdict {                    /* what stands in front of the payload on its way back */
    struct nlmsghdr message;
    struct nfgenmsg family;
    struct nlattr verdict_attr;
    struct nfqnl_msg_verdict_hdr verdict;
    struct nlattr payload_attr;
};
_Static_assert(sizeof(struct verdict) == VERDICT_HEADERS, "no holes");

struct uplink {
    uint32_t ifindex;
    uint32_t inside, outside;       /* network order */
    uint16_t to_outside, to_inside; /* what to add to a complemented checksum, memory order */
};

struct packet {                     /* what one NFQNL_MSG_PACKET says */
    uint32_t id;                    /* network order, and handed back like that */
    uint8_t hook;
    uint32_t in, out, skb_info;
    uint8_t *data;
    uint32_t length;
};

static struct uplink uplinks[MAX_UPLINKS];
static int uplink_count;
static uint16_t queue_number;
static int netlink;
static int accept_only;
static volatile sig_atomic_t stopped;
static struct { uint64_t packets, receives, sends, rewritten, full_checksums, gso, errors; } count;

/* ── checksums ────────────────────────────────────────────────────────────────────────────────── */

static inline uint16_t fold(uint64_t sum)
{
    sum = (sum >> 32) + (uint32_t)sum;
    sum = (sum >> 32) + (uint32_t)sum;
    sum = (sum >> 16) + (uint16_t)sum;
    sum = (sum >> 16) + (uint16_t)sum;
    return (uint16_t)sum;
}

static inline uint16_t load16(const uint8_t *at) { uint16_t word; memcpy(&word, at, 2); return word; }
static inline void store16(uint8_t *at, uint16_t word) { memcpy(at, &word, 2); }

/* RFC 1624, equation 3: HC' = ~(~HC + ~m + m'); `change` is ~m + m'. */
static inline void update(uint8_t *at, uint16_t change)
{
    store16(at, (uint16_t)~fold((uint64_t)(uint16_t)~load16(at) + change));
}

/* The one's complement sum of some bytes, added to `sum`. */
static uint64_t sum_bytes(const uint8_t *at, uint32_t length, uint64_t sum)
{
    uint32_t word;
    for (; length >= 4; at += 4, length -= 4) {
        memcpy(&word, at, 4);
        sum += word;                /* 2^32 of them fit: no carry is lost in 64 KB */
    }
    word = 0;
    memcpy(&word, at, length);
    return sum + word;
}

/* The whole TCP or UDP checksum, pseudo header included, into the field at `field`. */
static void complete_checksum(uint8_t *ip, uint8_t *l4, uint32_t length, uint8_t *field)
{
    store16(field, 0);
    uint64_t sum = sum_bytes(ip + 12, 8, (uint64_t)htons(ip[9]) + htons((uint16_t)length));
    uint16_t checksum = (uint16_t)~fold(sum_bytes(l4, length, sum));
    store16(field, checksum ? checksum : 0xFFFF);   /* RFC 768; for TCP it is the same number */
    count.full_checksums++;
}

/* ── the rewrite ──────────────────────────────────────────────────────────────────────────────── */

/* Correct the transport checksum after the addresses have changed.
 *
 * CSUMNOTREADY: the field has the sum of the pseudo header only, not complemented.  A GSO packet's is
 * completed by the kernel when it cuts the packet up; for any other the kernel forgets with our
 * verdict that something is missing, so it is for us to complete it. */
static void rewrite_transport(const struct packet *p, uint32_t header, uint32_t total, uint16_t change)
{
    uint8_t *ip = p->data, *l4 = ip + header;
    uint32_t at = ip[9] == IPPROTO_TCP ? 16 : 6;
    if (ip[9] != IPPROTO_TCP && ip[9] != IPPROTO_UDP)
        return;                     /* an ICMP checksum does not cover addresses */
    if ((load16(ip + 6) & htons(0x1FFF)) || header + at + 2 > total)
        return;                     /* not the first fragment; or too short */
    if (!(p->skb_info & NFQA_SKB_CSUMNOTREADY)) {
        if (ip[9] == IPPROTO_UDP && !load16(l4 + 6))
            return;                 /* the sender has not used any (RFC 768) */
        update(l4 + at, change);
        if (ip[9] == IPPROTO_UDP && !load16(l4 + 6))
            store16(l4 + 6, 0xFFFF);
    } else if (p->skb_info & NFQA_SKB_GSO) {
        store16(l4 + at, fold((uint64_t)load16(l4 + at) + change));
        count.gso++;
    } else {
        complete_checksum(ip, l4, total - header, l4 + at);
    }
}

static void rewrite(const struct packet *p)
{
    uint8_t *ip = p->data;
    uint32_t header = p->length >= 20 ? (ip[0] & 15) * 4u : 0;
    uint32_t total = p->length >= 20 ? ntohs(load16(ip + 2)) : 0;
    int outbound = p->hook == NF_INET_POST_ROUTING;
    if (header < 20 || ip[0] >> 4 != 4 || header > p->length)
        return;
    if (p->skb_info & NFQA_SKB_GSO || total > p->length)
        total = p->length;
    for (int i = 0; i < uplink_count; i++) {
        const struct uplink *u = &uplinks[i];
        uint32_t address;
        if (u->ifindex != (outbound ? p->out : p->in))
            continue;
        memcpy(&address, ip + (outbound ? 12 : 16), 4);
        if (address != (outbound ? u->inside : u->outside))
            return;
        memcpy(ip + (outbound ? 12 : 16), outbound ? &u->outside : &u->inside, 4);
        uint16_t change = outbound ? u->to_outside : u->to_inside;
        update(ip + 10, change);
        rewrite_transport(p, header, total, change);
        count.rewritten++;
        return;
    }
}

/* ── messages ─────────────────────────────────────────────────────────────────────────────────── */

static uint32_t attr32(const struct nlattr *a) { uint32_t v; memcpy(&v, a + 1, 4); return ntohl(v); }

/* Read one message; 0 if it is no packet. */
static int parse(uint8_t *buffer, uint32_t received, struct packet *p)
{
    struct nlmsghdr *message = (struct nlmsghdr *)buffer;
    if (received < NLMSG_HDRLEN || message->nlmsg_len > received
        || message->nlmsg_type != (NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_PACKET)) {
        count.errors++;             /* an NLMSG_ERROR: the kernel did not like a verdict */
        return 0;
    }
    *p = (struct packet){0};
    uint8_t *end = buffer + message->nlmsg_len;
    uint8_t *at = buffer + NLMSG_HDRLEN + sizeof(struct nfgenmsg);
    while (at + NLA_HDRLEN <= end) {
        struct nlattr *a = (struct nlattr *)at;
        struct nfqnl_msg_packet_hdr *header = (void *)(a + 1);
        switch (a->nla_type & NLA_TYPE_MASK) {
        case NFQA_PACKET_HDR: p->id = header->packet_id, p->hook = header->hook; break;
        case NFQA_IFINDEX_INDEV: p->in = attr32(a); break;
        case NFQA_IFINDEX_OUTDEV: p->out = attr32(a); break;
        case NFQA_SKB_INFO: p->skb_info = attr32(a); break;
        case NFQA_PAYLOAD: p->data = (void *)(a + 1), p->length = a->nla_len - NLA_HDRLEN; break;
        }
        at += NLA_ALIGN(a->nla_len);
    }
    return p->data != NULL;
}

/* Write an ACCEPT in front of the payload and say where it begins and ends. */
static struct iovec make_verdict(const struct packet *p)
{
    struct verdict *v = (struct verdict *)(p->data - sizeof *v);
    uint32_t length = accept_only ? sizeof *v - NLA_HDRLEN : sizeof *v + p->length;
    v->message = (struct nlmsghdr){ length, NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_VERDICT, NLM_F_REQUEST, 0, 0 };
    v->family = (struct nfgenmsg){ AF_UNSPEC, NFNETLINK_V0, htons(queue_number) };
    v->verdict_attr = (struct nlattr){ NLA_HDRLEN + sizeof v->verdict, NFQA_VERDICT_HDR };
    v->verdict = (struct nfqnl_msg_verdict_hdr){ htonl(NF_ACCEPT), p->id };
    v->payload_attr = (struct nlattr){ (uint16_t)(NLA_HDRLEN + p->length), NFQA_PAYLOAD };
    return (struct iovec){ v, NLMSG_ALIGN(length) };   /* up to 3 bytes of padding behind it */
}

static void send_verdicts(struct iovec *verdicts, int n)
{
    struct sockaddr_nl kernel = { .nl_family = AF_NETLINK };
    struct msghdr message = { &kernel, sizeof kernel, verdicts, (size_t)n, NULL, 0, 0 };
    if (n == 0)
        return;
    if (sendmsg(netlink, &message, 0) < 0)
        err(1, "sendmsg of %d verdicts", n);
    count.sends++;
}

/* Take what waits; if nothing does, look again and again for some time, and only then sleep. */
static int receive(struct mmsghdr *received, unsigned batch, int64_t poll_ns)
{
    int n = -1;
    if (poll_ns) {
        int64_t until = monotonic_ns() + poll_ns;
        do {
            n = recvmmsg(netlink, received, batch, MSG_DONTWAIT, NULL);
        } while (n < 0 && errno == EAGAIN && !stopped && monotonic_ns() < until);
    }
    if (n < 0)
        n = recvmmsg(netlink, received, batch, MSG_WAITFORONE, NULL);
    if (n < 0 && errno != EINTR && errno != ENOBUFS)
        err(1, "recvmmsg");
    return n;
}

/* Take packets and hand them back until a signal. */
static void serve(unsigned batch, size_t flush_bytes, int64_t poll_ns)
{
    static struct mmsghdr received[MAX_BATCH];
    static struct iovec slots[MAX_BATCH], verdicts[MAX_BATCH];
    uint8_t *buffers = mmap(NULL, (size_t)batch * SLOT_STRIDE, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (buffers == MAP_FAILED)
        err(1, "mmap");
    for (unsigned i = 0; i < batch; i++) {
        slots[i] = (struct iovec){ buffers + (size_t)i * SLOT_STRIDE, SLOT };
        received[i].msg_hdr = (struct msghdr){ .msg_iov = &slots[i], .msg_iovlen = 1 };
    }
    while (!stopped) {
        int n = receive(received, batch, poll_ns);
        count.receives++;
        size_t bytes = 0;
        int waiting = 0;
        for (int i = 0; i < n; i++) {
            struct packet p;
            if (!parse(slots[i].iov_base, received[i].msg_len, &p))
                continue;
            count.packets++;
            if (!accept_only)
                rewrite(&p);
            verdicts[waiting] = make_verdict(&p);
            bytes += verdicts[waiting++].iov_len;
            if (bytes >= flush_bytes) {
                send_verdicts(verdicts, waiting);
                waiting = 0, bytes = 0;
            }
        }
        send_verdicts(verdicts, waiting);
    }
}

/* ── setting up ───────────────────────────────────────────────────────────────────────────────── */

/* Send one configuration message with these attributes and wait for the kernel's answer. */
static void configure(const void *attributes, uint32_t length, const char *what)
{
    struct {
        struct nlmsghdr message;
        struct nfgenmsg family;
        uint8_t attributes[32];
    } request = {
        { NLMSG_LENGTH(sizeof(struct nfgenmsg)) + length, NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_CONFIG,
          NLM_F_REQUEST | NLM_F_ACK, 0, 0 },
        { AF_UNSPEC, NFNETLINK_V0, htons(queue_number) }, { 0 },
    };
    struct { struct nlmsghdr message; struct nlmsgerr status; uint8_t rest[256]; } answer;
    memcpy(request.attributes, attributes, length);
    if (send(netlink, &request, request.message.nlmsg_len, 0) < 0
        || recv(netlink, &answer, sizeof answer, 0) < (ssize_t)NLMSG_LENGTH(sizeof answer.status.error))
        err(1, "%s", what);
    errno = -answer.status.error;
    if (errno)
        err(1, "%s", what);
}

static void open_queue(void)
{
    struct sockaddr_nl self = { .nl_family = AF_NETLINK };
    int size = SOCKET_BUFFER, on = 1;
    netlink = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_NETFILTER);
    if (netlink < 0 || bind(netlink, (struct sockaddr *)&self, sizeof self) < 0)
        err(1, "netlink socket (is nfnetlink in this kernel?)");
    if (setsockopt(netlink, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size) < 0
        || setsockopt(netlink, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size) < 0)
        err(1, "socket buffers (root?)");
    /* A full buffer then drops one packet and counts it, instead of failing the next receive. */
    setsockopt(netlink, SOL_NETLINK, NETLINK_NO_ENOBUFS, &on, sizeof on);

    struct { struct nlattr a; struct nfqnl_msg_config_cmd bind; } take = {
        { sizeof take, NFQA_CFG_CMD }, { NFQNL_CFG_CMD_BIND, 0, htons(AF_INET) } };
    configure(&take, sizeof take, "binding the queue (taken, or no nfnetlink_queue?)");
    struct { struct nlattr a; uint32_t value; } options[] = {
        { { sizeof *options, NFQA_CFG_QUEUE_MAXLEN }, htonl(QUEUE_MAXLEN) },
        { { sizeof *options, NFQA_CFG_FLAGS }, htonl(NFQA_CFG_F_GSO) },
        { { sizeof *options, NFQA_CFG_MASK }, htonl(NFQA_CFG_F_GSO) } };
    configure(options, sizeof options, "queue length and GSO");
    struct { struct nlattr a; struct nfqnl_msg_config_params params; } copy = {
        { NLA_HDRLEN + sizeof copy.params, NFQA_CFG_PARAMS }, { htonl(COPY_RANGE), NFQNL_COPY_PACKET } };
    configure(&copy, sizeof copy, "copy range");
}

static void add_uplink(const char *text)
{
    char name[IF_NAMESIZE], inside[16], outside[16];
    struct uplink *u = &uplinks[uplink_count];
    if (uplink_count == MAX_UPLINKS || sscanf(text, "%15[^=]=%15[^/]/%15s", name, inside, outside) != 3
        || inet_pton(AF_INET, inside, &u->inside) != 1 || inet_pton(AF_INET, outside, &u->outside) != 1)
        errx(2, "%s: not UPLINK=INSIDE/OUTSIDE, or one too many", text);
    u->ifindex = if_nametoindex(name);
    if (!u->ifindex)
        err(1, "%s", name);
    u->to_outside = fold((uint64_t)(uint32_t)~u->inside + u->outside);
    u->to_inside = fold((uint64_t)(uint32_t)~u->outside + u->inside);
    uplink_count++;
}

static void stop(int number) { (void)number; stopped = 1; }

int main(int argc, char **argv)
{
    unsigned batch = 64;
    size_t flush_bytes = 16384;
    int64_t poll_ns = 0;
    for (int option; (option = getopt(argc, argv, "ab:f:p:")) != -1;) {
        switch (option) {
        case 'a': accept_only = 1; break;
        case 'b': batch = (unsigned)atoi(optarg); break;
        case 'f': flush_bytes = (size_t)atol(optarg); break;
        case 'p': poll_ns = atol(optarg) * 1000; break;
        default: return 2;
        }
    }
    if (optind == argc || batch < 1 || batch > MAX_BATCH)
        errx(2, "usage: nfq_nat [-a] [-b 1..%d] [-f BYTES] [-p USEC] QUEUE UPLINK=INSIDE/OUTSIDE ...", MAX_BATCH);
    queue_number = (uint16_t)atoi(argv[optind++]);
    while (optind < argc)
        add_uplink(argv[optind++]);
    struct sigaction action = { .sa_handler = stop };   /* no SA_RESTART: recvmmsg shall return */
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    open_queue();
    puts("ready");
    fflush(stdout);
    serve(batch, flush_bytes, poll_ns);
    fprintf(stderr, "packets %lu rewritten %lu full_checksums %lu gso %lu receives %lu sends %lu errors %lu\n",
            count.packets, count.rewritten, count.full_checksums, count.gso, count.receives, count.sends,
            count.errors);
    return 0;
}
