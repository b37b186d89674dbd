/*
 * Memory: read a guest's pages without touching the guest.
 *
 * Shared memory is read through its file with pread(): a hole reads as zeros and stays a hole, and nothing is
 * mapped here, so our resident set does not grow with the guest. Everything else is read by process_vm_readv(),
 * and what that refuses (PROT_NONE reserves that hold data) through /proc/PID/mem. None of these is stopped by
 * write-protection. Functions return 0 or -errno, allocate nothing, and may be used in any thread.
 */
#pragma once

#include <sys/uio.h>

#include "libsnap.h"

typedef struct {
    int pid;
    int mem_fd; /* /proc/PID/mem */
} SnapMemoryReader;

/* Return: 0 or -errno. Clear it with snap_memory_reader_clear(). */
int snap_memory_reader_init(SnapMemoryReader *reader, int pid);
void snap_memory_reader_clear(SnapMemoryReader *reader);

/*
 * Copy @length bytes of @region from @offset to @ret_data. @address: where that part is mapped in the guest now.
 * -EFAULT: nothing is mapped there; -ESRCH: the guest is gone. In an error, @ret_data is undefined.
 */
int snap_memory_read(const SnapMemoryReader *reader, const SnapRegion *region, uint64_t offset, uint64_t address,
                     void *ret_data, size_t length);

/* The same into @n_parts buffers, at most IOV_MAX. */
int snap_memory_readv(const SnapMemoryReader *reader, const SnapRegion *region, uint64_t offset, uint64_t address,
                      const struct iovec *parts, int n_parts);
