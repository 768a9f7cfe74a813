#define _GNU_SOURCE
#include "CWitnessCalls.h"
#include <fcntl.h>
#include <sys/sysmacros.h>
#include <unistd.h>

int witness_fallocate(int file, int mode, int64_t offset, int64_t count) {
    return fallocate(file, mode, offset, count);
}

dev_t witness_makedev(uint32_t major, uint32_t minor) { return gnu_dev_makedev(major, minor); }
uint32_t witness_major(dev_t device) { return gnu_dev_major(device); }
uint32_t witness_minor(dev_t device) { return gnu_dev_minor(device); }

int witness_syncfs(int file) { return syncfs(file); }
