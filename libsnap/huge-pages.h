/*
 * Transparent huge pages of memory of this process: what the kernel may do by itself.
 *
 * khugepaged makes a huge page of a range that is there in part, and fills the holes with zeros. Where a hole
 * means that a page is still to come, it must not; a userfaultfd keeps it away, and before that only
 * MADV_NOHUGEPAGE does.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

/* Whether the kernel may make huge pages of the mapping at @address: it was advised to, or does so everywhere.
 * Reads /proc/self/smaps: takes its time. Thread: any. */
bool snap_huge_pages_may_be_made(uint64_t address);

/* From now on it may, or may not. Return: 0; -errno, -EINVAL where this kernel has no huge pages. */
int snap_huge_pages_allow(uint64_t address, uint64_t length_bytes, bool allow);
