/* Reading guest memory; see memory.h. */
#include "memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int snap_memory_reader_init(SnapMemoryReader *reader, int pid) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/mem", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return -errno;
    }
    *reader = (SnapMemoryReader){.pid = pid, .mem_fd = fd};
    return 0;
}

void snap_memory_reader_clear(SnapMemoryReader *reader) {
    if (reader->mem_fd > 0) {
        close(reader->mem_fd);
    }
    *reader = (SnapMemoryReader){0};
}

/* @past_end: what a read behind the end of the file means; a result, or 0 for zeros. */
static int read_file(int fd, uint64_t offset, uint8_t *data, size_t length, int past_end) {
    while (length > 0) {
        ssize_t n = pread(fd, data, length, (off_t)offset);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return -errno;
        }
        if (n == 0) {
            memset(data, 0, length);
            return past_end;
        }
        data += n;
        offset += (uint64_t)n;
        length -= (size_t)n;
    }
    return 0;
}

static int read_process(const SnapMemoryReader *reader, uint64_t address, uint8_t *data, size_t length) {
    struct iovec local = {.iov_base = data, .iov_len = length};
    struct iovec remote = {.iov_base = (void *)(uintptr_t)address, .iov_len = length};
    ssize_t n = process_vm_readv(reader->pid, &local, 1, &remote, 1, 0);
    if (n == (ssize_t)length) {
        return 0;
    }
    if (n < 0 && errno != EFAULT) {
        return -errno;
    }
    size_t done = n > 0 ? (size_t)n : 0;
    int result = read_file(reader->mem_fd, address + done, data + done, length - done, -EFAULT);
    return result == -EIO ? -EFAULT : result;
}

static bool through_file(const SnapRegion *region) {
    return region->memory == SNAP_MEMORY_SHMEM || region->memory == SNAP_MEMORY_HUGETLB;
}

int snap_memory_read(const SnapMemoryReader *reader, const SnapRegion *region, uint64_t offset, uint64_t address,
                     void *ret_data, size_t length) {
    if (through_file(region)) {
        /* A mapping may be longer than its file. The guest cannot read there, so there is nothing to be wrong
         * about. */
        return read_file(region->fd, region->fd_offset + offset, ret_data, length, 0);
    }
    return read_process(reader, address, ret_data, length);
}

int snap_memory_readv(const SnapMemoryReader *reader, const SnapRegion *region, uint64_t offset, uint64_t address,
                      const struct iovec *parts, int n_parts) {
    size_t length = 0;
    for (int i = 0; i < n_parts; i++) {
        length += parts[i].iov_len;
    }
    struct iovec remote = {.iov_base = (void *)(uintptr_t)address, .iov_len = length};
    ssize_t n = through_file(region) ? preadv(region->fd, parts, n_parts, (off_t)(region->fd_offset + offset))
                                     : process_vm_readv(reader->pid, parts, (unsigned long)n_parts, &remote, 1, 0);
    if (n == (ssize_t)length) {
        return 0;
    }
    /* Rare: find out part by part, with the fallbacks of snap_memory_read(). */
    int result = 0;
    for (int i = 0; i < n_parts && result == 0; i++) {
        result = snap_memory_read(reader, region, offset, address, parts[i].iov_base, parts[i].iov_len);
        offset += parts[i].iov_len;
        address += parts[i].iov_len;
    }
    return result;
}
