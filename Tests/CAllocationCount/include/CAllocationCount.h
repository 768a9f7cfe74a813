#pragma once

// Whether this build counts: sanitizers bring a malloc of their own, which must stay.
int outboard_counts_allocations(void);
// Calls of malloc, calloc, realloc, posix_memalign, aligned_alloc and memalign: of this thread, of all threads.
unsigned long outboard_thread_allocations(void);
unsigned long outboard_allocations(void);
