/* udp_count: count and check what udp_load has sent, at the host it was sent to.
 *
 *     udp_count [-a FROM_NS] [-t MILLISECONDS] [-f FLOWS] SOURCE_ADDRESS
 *
 * Counts for MILLISECONDS from the CLOCK_MONOTONIC time FROM_NS on.  A packet counts if it has the length,
 * the magic number and the check value of a probe and comes from SOURCE_ADDRESS: translated, and
 * intact.  That its checksum is right is the kernel's business: it does not give us any other.
 * Prints "ready", and at the end
 *
 *     {"received": N, "seconds": S, "flows": DIFFERENT_ONES, "corrupt": N, "untranslated": N, "overflow": N}
 *
 * Rule: nobody waits for us.  The socket's buffer holds some seconds of packets, and it is emptied once
 * in a millisecond: no packet wakes this process, which would be paid for by whoever delivers it.
 * "overflow" is what found no room all the same.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>
#include "udp_probe.h"

#ifndef SO_MEMINFO
#define SO_MEMINFO 55               /* asm-generic/socket.h */
#endif

enum { BATCH = 256, INTERVAL_NS = 1000000, RECEIVE_BUFFER = 1 << 30 };

static uint64_t received, flows_seen, corrupt, untranslated;
static uint64_t flow_count = 64;
static uint8_t *seen;               /* a bit for each flow */
static struct in_addr source;

static void check(const struct probe *p, unsigned length, const struct sockaddr_in *from)
{
    if (length != sizeof *p || p->magic != PROBE_MAGIC || p->flow >= flow_count
        || p->check != probe_check(p->flow, p->sequence)) {
        corrupt++;
    } else if (from->sin_addr.s_addr != source.s_addr) {
        untranslated++;
    } else {
        uint8_t bit = (uint8_t)(1 << (p->flow & 7));
        flows_seen += !(seen[p->flow >> 3] & bit);
        seen[p->flow >> 3] |= bit;
        received++;
    }
}

/* Take what waits, and check it if it counts. */
static void drain(int socket, int counts)
{
    static struct probe probes[BATCH];
    static struct sockaddr_in from[BATCH];
    static struct iovec pieces[BATCH];
    static struct mmsghdr messages[BATCH];
    int n;
    do {
        for (int i = 0; i < BATCH; i++) {
            pieces[i] = (struct iovec){ &probes[i], sizeof probes[i] };
            messages[i].msg_hdr = (struct msghdr){ &from[i], sizeof from[i], &pieces[i], 1, NULL, 0, 0 };
        }
        n = recvmmsg(socket, messages, BATCH, MSG_DONTWAIT, NULL);
        for (int i = 0; counts && i < n; i++)
            check(&probes[i], messages[i].msg_hdr.msg_flags & MSG_TRUNC ? 0 : messages[i].msg_len, &from[i]);
    } while (n == BATCH);
}

static int open_socket(void)
{
    struct sockaddr_in self = { .sin_family = AF_INET, .sin_port = htons(PROBE_PORT) };
    int size = RECEIVE_BUFFER;
    int it = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (it < 0 || bind(it, (struct sockaddr *)&self, sizeof self) < 0)
        err(1, "port %d", PROBE_PORT);
    if (setsockopt(it, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size) < 0)
        err(1, "receive buffer (root?)");
    return it;
}

int main(int argc, char **argv)
{
    int64_t from_ns = monotonic_ns(), run_ns = 1000000000;
    for (int letter; (letter = getopt(argc, argv, "a:t:f:")) != -1;) {
        switch (letter) {
        case 'a': from_ns = atoll(optarg); break;
        case 't': run_ns = atoll(optarg) * 1000000; break;
        case 'f': flow_count = strtoull(optarg, NULL, 10); break;
        default: return 2;
        }
    }
    if (optind + 1 != argc || inet_pton(AF_INET, argv[optind], &source) != 1 || flow_count < 1)
        errx(2, "wrong arguments; see the top of udp_count.c");
    seen = calloc(flow_count / 8 + 1, 1);
    if (!seen)
        err(1, "flows");
    int it = open_socket();
    puts("ready");
    fflush(stdout);
    int64_t next = monotonic_ns(), first = 0, last;
    do {                            /* what the first round after FROM_NS finds was sent before it */
        drain(it, first != 0);
        last = monotonic_ns();
        if (!first && last >= from_ns)
            first = last;
        next += INTERVAL_NS;
        struct timespec at = { next / 1000000000, next % 1000000000 };
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL);
    } while (last < from_ns + run_ns);
    uint32_t memory[SK_MEMINFO_VARS] = { 0 };
    socklen_t size = sizeof memory;
    getsockopt(it, SOL_SOCKET, SO_MEMINFO, memory, &size);
    printf("{\"received\": %lu, \"seconds\": %.6f, \"flows\": %lu, \"corrupt\": %lu, \"untranslated\": %lu, "
           "\"overflow\": %u}\n", received, (double)(last - first) / 1e9, flows_seen, corrupt, untranslated,
           memory[SK_MEMINFO_DROPS]);
    return 0;
}
