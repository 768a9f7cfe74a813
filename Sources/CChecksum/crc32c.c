#include "CChecksum.h"

#include <string.h>

static const uint32_t *table(void) {
    static uint32_t entries[256];
    static int ready;
    if (!__atomic_load_n(&ready, __ATOMIC_ACQUIRE)) {
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t value = i;
            for (int bit = 0; bit < 8; bit++) value = (value >> 1) ^ ((value & 1) ? 0x82F63B78u : 0);
            __atomic_store_n(&entries[i], value, __ATOMIC_RELAXED); /* several threads store the same */
        }
        __atomic_store_n(&ready, 1, __ATOMIC_RELEASE);
    }
    return entries;
}

uint32_t outboard_crc32c_portable(uint32_t crc, const void *bytes, size_t count) {
    const uint32_t *entries = table();
    const unsigned char *p = bytes;
    crc = ~crc;
    while (count--) crc = (crc >> 8) ^ entries[(crc ^ *p++) & 0xFF];
    return ~crc;
}

#if defined(__x86_64__)
#include <nmmintrin.h>

/* Bytes in each of three streams that are summed at once: the instruction has a latency of three and a
   throughput of one. */
enum { LANE = 1024 };

/* Polynomials over GF(2), bit-reflected: the product of `a` and `b` modulo Castagnoli's. */
static uint32_t multiply(uint32_t a, uint32_t b) {
    uint32_t product = 0;
    for (uint32_t mask = 1u << 31; mask; mask >>= 1) {
        if (a & mask) product ^= b;
        b = (b >> 1) ^ ((b & 1) ? 0x82F63B78u : 0);
    }
    return product;
}

/* shift[i][v] is v, standing at byte i of a sum, moved over one lane of zeros. */
static uint32_t shift[4][256];

__attribute__((constructor)) static void prepare_shift(void) {
    uint32_t power = 1u << 31; /* x^0 */
    for (int bit = 0; bit < LANE * 8; bit++) power = (power >> 1) ^ ((power & 1) ? 0x82F63B78u : 0);
    for (uint32_t i = 0; i < 4; i++)
        for (uint32_t value = 0; value < 256; value++) shift[i][value] = multiply(value << (8 * i), power);
}

static inline uint32_t over_lane(uint32_t crc) {
    return shift[0][crc & 0xFF] ^ shift[1][(crc >> 8) & 0xFF] ^ shift[2][(crc >> 16) & 0xFF] ^ shift[3][crc >> 24];
}

static inline uint64_t load(const unsigned char *p) {
    uint64_t word;
    memcpy(&word, p, 8);
    return word;
}

__attribute__((target("sse4.2"))) static uint32_t by_instruction(uint32_t crc, const void *bytes, size_t count) {
    const unsigned char *p = bytes;
    uint64_t a = ~crc;
    while (count >= 3 * LANE) {
        uint64_t b = 0, c = 0;
        for (size_t i = 0; i < LANE; i += 8) {
            a = _mm_crc32_u64(a, load(p + i));
            b = _mm_crc32_u64(b, load(p + LANE + i));
            c = _mm_crc32_u64(c, load(p + 2 * LANE + i));
        }
        a = over_lane(over_lane((uint32_t)a) ^ (uint32_t)b) ^ (uint32_t)c;
        p += 3 * LANE;
        count -= 3 * LANE;
    }
    for (; count >= 8; p += 8, count -= 8) a = _mm_crc32_u64(a, load(p));
    for (; count; p++, count--) a = _mm_crc32_u8((uint32_t)a, *p);
    return ~(uint32_t)a;
}

uint32_t outboard_crc32c(uint32_t crc, const void *bytes, size_t count) {
    return __builtin_cpu_supports("sse4.2") ? by_instruction(crc, bytes, count)
                                            : outboard_crc32c_portable(crc, bytes, count);
}
#else
uint32_t outboard_crc32c(uint32_t crc, const void *bytes, size_t count) {
    return outboard_crc32c_portable(crc, bytes, count);
}
#endif
