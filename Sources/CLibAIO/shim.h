// libaio, and what glibc shows only to _GNU_SOURCE, which Swift's Glibc module is not compiled with:
// declarations and constants, no logic.
#ifndef OUTBOARD_CLIBAIO_SHIM_H
#define OUTBOARD_CLIBAIO_SHIM_H

#include <fcntl.h>
#include <libaio.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/stat.h>
#include <stddef.h>
#include <sys/types.h>
#include <sys/uio.h>

extern int fallocate(int fd, int mode, off_t offset, off_t length);
extern ssize_t pwritev2(int fd, const struct iovec *vectors, int count, off_t offset, int flags);
// Under another name, because in Swift the structure has this one.
extern int outboard_statx(
    int directory, const char *path, int flags, unsigned int mask, struct statx *result) __asm__("statx");

enum {
    OUTBOARD_O_DIRECT = __O_DIRECT,
    OUTBOARD_RWF_DSYNC = RWF_DSYNC,
    OUTBOARD_STATX_DIOALIGN = STATX_DIOALIGN,
    OUTBOARD_AT_EMPTY_PATH = 0x1000,
};

static const unsigned long OUTBOARD_BLKSSZGET = BLKSSZGET;
static const unsigned long OUTBOARD_BLKGETSIZE64 = BLKGETSIZE64;
static const unsigned long OUTBOARD_BLKDISCARD = BLKDISCARD;
static const unsigned long OUTBOARD_BLKZEROOUT = BLKZEROOUT;
static const unsigned long OUTBOARD_BLKROGET = BLKROGET;

#endif
