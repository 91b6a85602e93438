/* What udp_load sends and udp_count expects: 18 bytes, the payload of a minimal Ethernet frame. */
#ifndef UDP_PROBE_H
#define UDP_PROBE_H
#include <stdint.h>
#include <time.h>

enum { PROBE_MAGIC = 0x6E617431, PROBE_PORT = 9000 };

struct probe {
    uint32_t magic;
    uint32_t flow;                  /* which one, 0 .. flows - 1 */
    uint64_t sequence;              /* of all packets of this sender, from 0 */
    uint16_t check;                 /* of flow and sequence: a mixed-up payload does not have it */
} __attribute__((packed));

_Static_assert(sizeof(struct probe) == 18, "what a frame of 64 bytes has room for");

static inline uint16_t probe_check(uint32_t flow, uint64_t sequence)
{
    return (uint16_t)((flow * 0x9E3779B97F4A7C15u ^ sequence * 0xC2B2AE3D27D4EB4Fu) >> 48);
}

static inline int64_t monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}
#endif
