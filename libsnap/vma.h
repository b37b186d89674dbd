/*
 * Vma: one mapping of a process, by an address in it. PROCMAP_QUERY where the kernel has it (Linux 6.11), the text
 * of /proc/PID/smaps elsewhere, which takes the longer the more is mapped.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

typedef struct {
    uint64_t start;
    uint64_t end;
    uint64_t page_bytes; /* what the kernel maps at once: a base page, or the huge page of hugetlb */
    bool shared;
    bool anonymous; /* private, of no file */
} SnapVma;

/* Return: 0; -ENOENT, nothing is mapped there; -ESRCH, the process is gone; another -errno. */
int snap_vma_find(int pid, uint64_t address, SnapVma *ret_vma);
