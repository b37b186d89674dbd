/*
 * What the tests of the async log share: memory of every kind, registered and armed, and what was reported of it
 * as one byte a page.
 */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../../libsnap/track-async.h"

/* What backs a kind, and how. */
typedef enum { RIG_NO_FILE, RIG_MEMFD, RIG_TMPFS, RIG_DISK, RIG_HUGETLB } RigFile;

typedef struct {
    const char *name;
    SnapMemory memory;
    RigFile file;
    int flags;    /* of mmap */
    bool huge;    /* transparent huge pages wanted, or else not */
    bool watched; /* snap_async_watch_drops() */
} RigKind;

extern const RigKind rig_kinds[];
extern const unsigned n_rig_kinds;

typedef struct {
    const RigKind *kind;
    int fd;
    uint8_t *memory;
    size_t length;
    size_t page;
    size_t granule; /* what is written, and reported, at once */
    SnapAsync async;
    SnapArea *area;
    uint8_t *seen;  /* a byte a page: how often it was reported */
    uint64_t pages; /* reported since the last rig_forget() */
    uint64_t last;  /* end of the run before */
    bool disorder;  /* a run came before, or touched, the one before */
} Rig;

/*
 * Map at least @length, whole huge pages of THP or hugetlb. Return: NULL, or why this kind cannot be had here. The
 * log is not set up.
 */
const char *rig_map(Rig *rig, const RigKind *kind, size_t length);
void rig_unmap(Rig *rig);

/* The area alone; with it a log of this process that is registered and armed. THP is filled before, others are
 * not. */
void rig_make_area(Rig *rig);
void rig_start(Rig *rig);
void rig_clear(Rig *rig);

/* Write one byte into page @i, or into every page of [first, end). */
void rig_write(const Rig *rig, size_t i);
void rig_read(const Rig *rig, size_t i);
void rig_fill(const Rig *rig, size_t first, size_t end);

/* xorshift64: the same numbers on every machine. @state: not 0. */
uint64_t rig_random(uint64_t *state);

/* The first page of the granule of page @i, and how many it has. */
size_t rig_first(const Rig *rig, size_t i);
size_t rig_pages(const Rig *rig);

/* The whole area at once. Return: the result of snap_async_collect(). */
int rig_collect(Rig *rig, SnapCollect how);
/* A part, no more than @max_pages. */
int rig_collect_some(Rig *rig, uint64_t from, uint64_t end, SnapCollect how, uint64_t max_pages,
                     uint64_t *ret_next);
/* As the report function of snap_async_collect(). */
void rig_report(void *opaque, uint64_t start, uint64_t end);
void rig_forget(Rig *rig);

/* Exit status 77 and why, where the kernel or this user can have no async log; else 0. */
int rig_skip(void);

/* kB of page tables of this process. */
long rig_page_tables_kb(void);

/* Run @body for every kind that can be had, with the log set up for @length; print the others and why. */
void rig_each_kind(size_t length, void (*body)(Rig *rig));
