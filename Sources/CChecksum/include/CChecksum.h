#ifndef OUTBOARD_CCHECKSUM_H
#define OUTBOARD_CCHECKSUM_H

#include <stddef.h>
#include <stdint.h>

/* CRC-32C (Castagnoli, RFC 3720 appendix B.4) continued from `crc`; start with 0. Swift cannot name the
   processor's instruction for it; this file is only that. */
uint32_t outboard_crc32c(uint32_t crc, const void *bytes, size_t count);

/* The same by table, for processors without the instruction, and to test one against the other. */
uint32_t outboard_crc32c_portable(uint32_t crc, const void *bytes, size_t count);

#endif
