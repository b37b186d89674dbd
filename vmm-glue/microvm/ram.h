/*
 * The memory of a microvm: one run from guest address 0 on.
 *
 * It is a mapping of its own between two inaccessible ones, aligned to a huge page, so that what is
 * write-protected is never joined with something of the program, and the kernel may use huge pages where it is
 * told to.
 */
#pragma once

#include "libsnap.h"

#define RAM_MIN_BYTES (UINT64_C(32) << 20)
#define RAM_MAX_BYTES (UINT64_C(3) << 30) /* devices are above */

typedef enum {
    RAM_ANON,       /* private anonymous */
    RAM_ANON_HUGE,  /* the same, huge pages wanted */
    RAM_MEMFD,      /* a shared memfd */
    RAM_MEMFD_HUGE, /* the same, huge pages wanted, where the kernel gives them to shared memory */
    RAM_HUGETLB,    /* a shared memfd of reserved huge pages */
    RAM_MAX
} RamKind;

typedef struct {
    uint8_t *bytes;
    uint64_t length_bytes;
    RamKind kind;
    int fd;      /* -1: none */
    void *whole; /* with what is around it */
    size_t whole_bytes;
} Ram;

/**
 * ram_init: zeros. @length_bytes: a multiple of 2 MiB, RAM_MIN_BYTES to RAM_MAX_BYTES.
 * Errors: USAGE, it is not; NO_SPACE, there is not so much, or too few huge pages are reserved; IO.
 */
gboolean ram_init(Ram *ram, RamKind kind, uint64_t length_bytes, GError **error);
/* Of one that was zeroed only: nothing. */
void ram_clear(Ram *ram);

/* Return: (out) the region "ram" that it is. */
SnapRegion *ram_region(const Ram *ram);
