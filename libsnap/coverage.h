/*
 * Coverage: whether every byte of a range of a guest's address space is mapped.
 *
 * PAGEMAP_SCAN passes over what is not mapped without a word, so nobody may conclude from its silence that a range
 * is clean before this was asked too. PROCMAP_QUERY where the kernel has it (Linux 6.11), the text of
 * /proc/PID/maps elsewhere. The descriptor stays with the address space that the process had when it was opened.
 * Functions return 0 or -errno and allocate nothing.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

typedef struct {
    int maps;     /* /proc/PID/maps */
    bool as_text; /* the kernel has no PROCMAP_QUERY */
} SnapCoverage;

/* Return: 0 or -errno. Clear it with snap_coverage_clear(). */
int snap_coverage_init(SnapCoverage *coverage, int pid);
void snap_coverage_clear(SnapCoverage *coverage);

/*
 * Return: 0 when all of [start, end) is mapped; -ENOENT when a part is not; -ESRCH when the address space is gone;
 * another -errno.
 */
int snap_coverage_check(SnapCoverage *coverage, uint64_t start, uint64_t end);
