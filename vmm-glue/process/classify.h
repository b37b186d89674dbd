/*
 * From a mapping to a region, or to none, or to a refusal. The expensive part of listing a guest: files are looked
 * at, page tables read, other processes searched. Done once for each mapping.
 */
#pragma once

#include <glib.h>

#include "libsnap.h"
#include "maps.h"

G_BEGIN_DECLS

/* A mapping and what was made of it. */
typedef struct {
    ProcMap map;          /* its path is owned here */
    char *label;          /* what region names begin with */
    SnapRegion *region;   /* (nullable) nothing of it is saved */
    uint64_t end_in_file; /* nothing can be read from here on; map.end where there is no file */
    gboolean may_turn;    /* private and writable, still as in the file: becomes part of the guest when written */
} Mapping;

/* What is needed to decide. (borrow) all of it. */
typedef struct {
    int pid;
    int pagemap_fd;
    uint64_t page_bytes;
    const ProcMaps *maps; /* the whole process */
    const GArray *flags;  /* (nullable) of ProcVmFlags */
} ClassifyContext;

/**
 * classify: decide on mappings.
 * @wanted: @n_wanted of them, each a mapping of context->maps or a part of one.
 * @ret_mappings: what was made of them is appended, in the same order; free with classify_free().
 */
void classify(const ClassifyContext *context, const ProcMap *wanted, guint n_wanted, GPtrArray *ret_mappings);

/** classify_turned: @mapping has been written: the region that makes. Return: (out). */
SnapRegion *classify_turned(const Mapping *mapping);

/** classify_free: free a Mapping; NULL is allowed. */
void classify_free(Mapping *mapping);

G_END_DECLS
