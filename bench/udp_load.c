/* udp_load: as many small UDP packets as one core can send.
 *
 *     udp_load [-s SOURCES] [-d DESTINATIONS] [-b FIRST_SOURCE_PORT] [-f FIRST_FLOW]
 *              [-c COUNT] [-r PER_SECOND] [-a START_NS] [-t MILLISECONDS] FIRST_ADDRESS
 *
 * SOURCES x DESTINATIONS flows: from that many source ports, each to that many consecutive addresses.
 * Destinations are visited in strides, so that neighbours in time are no neighbours in any table.
 *
 *   -f   begin with that one in the order of the flows, to send different ones in several runs
 *   -c   stop after COUNT packets             -r   not more than so many a second
 *   -a   begin at this CLOCK_MONOTONIC time   -t   stop so many milliseconds after the beginning
 *
 * Prints {"sent": PACKETS, "seconds": S, "cpu_seconds": S, "waited_seconds": S}; it has waited when another
 * process had its core.  Sockets are not connected: what a packet costs the
 * sender is the same with 64 flows and with a million.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "udp_probe.h"

enum { MAX_SOURCES = 1024, BATCH = 32 };

static struct { uint64_t sources, destinations, source_port, first_flow, count, rate; int64_t start_ns, run_ns; }
    option = { 8, 8, 20000, 0, UINT64_MAX, 0, 0, 1000000000 };
static int sockets[MAX_SOURCES];
static struct probe probes[BATCH];
static struct sockaddr_in to[BATCH];
static struct iovec pieces[BATCH];
static struct mmsghdr messages[BATCH];

static uint64_t gcd(uint64_t a, uint64_t b) { return b ? gcd(b, a % b) : a; }

/* A step that visits every one of n before it comes back: about n divided by the golden ratio. */
static uint64_t stride(uint64_t n)
{
    uint64_t step = (uint64_t)((double)n * 0.618);
    while (step < 1 || gcd(step, n) != 1)
        step++;
    return step;
}

static void open_sockets(void)
{
    int size = 8 << 20;
    for (uint64_t i = 0; i < option.sources; i++) {
        struct sockaddr_in self = { .sin_family = AF_INET, .sin_port = htons((uint16_t)(option.source_port + i)) };
        sockets[i] = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        if (sockets[i] < 0 || bind(sockets[i], (struct sockaddr *)&self, sizeof self) < 0)
            err(1, "source port %lu", option.source_port + i);
        setsockopt(sockets[i], SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size);
    }
}

/* Wait until `packets` more are allowed at the wanted rate. */
static void pace(int64_t begin, uint64_t packets)
{
    int64_t due = begin + (int64_t)((double)packets / (double)option.rate * 1e9);
    struct timespec at = { due / 1000000000, due % 1000000000 };
    if (due > monotonic_ns())
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL);
}

/* How long this process has run, and how long it was ready to run and did not. */
static void scheduled(double *ran, double *waited)
{
    uint64_t ran_ns = 0, waited_ns = 0;
    FILE *file = fopen("/proc/self/schedstat", "r");
    if (!file || fscanf(file, "%lu %lu", &ran_ns, &waited_ns) != 2)
        warnx("no /proc/self/schedstat");
    if (file)
        fclose(file);
    *ran = (double)ran_ns / 1e9, *waited = (double)waited_ns / 1e9;
}

static uint64_t send_all(uint32_t first_address, int64_t begin)
{
    uint64_t sent = 0, step = stride(option.destinations);
    int64_t end = begin + option.run_ns;
    /* one position for each source; all go through the destinations in the same order */
    for (uint64_t turn = option.first_flow / BATCH; sent < option.count && monotonic_ns() < end; turn++) {
        uint64_t source = turn % option.sources, position = turn / option.sources * BATCH;
        unsigned n = option.count - sent < BATCH ? (unsigned)(option.count - sent) : BATCH;
        for (unsigned i = 0; i < n; i++) {
            uint64_t destination = (position + i) % option.destinations * step % option.destinations;
            uint32_t flow = (uint32_t)(destination * option.sources + source);
            to[i].sin_addr.s_addr = htonl(first_address + (uint32_t)destination);
            probes[i] = (struct probe){ PROBE_MAGIC, flow, sent + i, probe_check(flow, sent + i) };
        }
        if (option.rate)
            pace(begin, sent);
        int done = sendmmsg(sockets[source], messages, n, 0);
        if (done < 0 && errno != ENOBUFS && errno != EAGAIN && errno != EINTR)
            err(1, "sendmmsg");
        sent += done > 0 ? (uint64_t)done : 0;
    }
    return sent;
}

int main(int argc, char **argv)
{
    struct in_addr first;
    for (int letter; (letter = getopt(argc, argv, "s:d:b:f:c:r:a:t:")) != -1;) {
        uint64_t value = optarg ? strtoull(optarg, NULL, 10) : 0;
        switch (letter) {
        case 's': option.sources = value; break;
        case 'd': option.destinations = value; break;
        case 'b': option.source_port = value; break;
        case 'f': option.first_flow = value; break;
        case 'c': option.count = value; break;
        case 'r': option.rate = value; break;
        case 'a': option.start_ns = (int64_t)value; break;
        case 't': option.run_ns = (int64_t)value * 1000000; break;
        default: return 2;
        }
    }
    if (optind + 1 != argc || inet_pton(AF_INET, argv[optind], &first) != 1 || option.sources < 1
        || option.sources > MAX_SOURCES || option.destinations < 1)
        errx(2, "wrong arguments; see the top of udp_load.c");
    for (int i = 0; i < BATCH; i++) {
        to[i] = (struct sockaddr_in){ .sin_family = AF_INET, .sin_port = htons(PROBE_PORT) };
        pieces[i] = (struct iovec){ &probes[i], sizeof probes[i] };
        messages[i].msg_hdr = (struct msghdr){ &to[i], sizeof to[i], &pieces[i], 1, NULL, 0, 0 };
    }
    open_sockets();
    struct timespec at = { option.start_ns / 1000000000, option.start_ns % 1000000000 };
    if (option.start_ns)
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL);
    double ran_before, waited_before, ran, waited;
    scheduled(&ran_before, &waited_before);
    int64_t begin = monotonic_ns();
    uint64_t sent = send_all(ntohl(first.s_addr), begin);
    double seconds = (double)(monotonic_ns() - begin) / 1e9;
    scheduled(&ran, &waited);
    printf("{\"sent\": %lu, \"seconds\": %.6f, \"cpu_seconds\": %.6f, \"waited_seconds\": %.6f}\n",
           sent, seconds, ran - ran_before, waited - waited_before);
    return 0;
}
