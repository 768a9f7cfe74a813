// Calls of Linux that Swift's Glibc module leaves out.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/xattr.h>

/// fallocate(2).
int witness_fallocate(int file, int mode, int64_t offset, int64_t count);
/// makedev(3) and its reverse.
dev_t witness_makedev(uint32_t major, uint32_t minor);
uint32_t witness_major(dev_t device);
uint32_t witness_minor(dev_t device);
/// syncfs(2): sync(2) waits for every file system of the machine, a frozen one among them.
int witness_syncfs(int file);
