/*
 * Drops: pages of file or hugetlb memory that lose their content without being written.
 *
 * Private anonymous memory needs none of this: what drops a page there (MADV_DONTNEED) takes its protection along,
 * and that shows. In every other kind of mapping the protection stays behind as a marker. What gives the drop away
 * is that the page *was there* when it was last looked at and is not now; so it is remembered which were, a bit
 * for each granule, and every entry has to be looked at instead of those that were written only.
 *
 * "There" is, in a private mapping of a file, the guest's own copy: dropping it lets the file show through again,
 * also when that was mapped by a read meanwhile. That is exact. Elsewhere it is any page; one that was dropped and
 * then read again before anyone looked is not told from one that stayed.
 *
 * What is in the file and not mapped here is not told either, when it is punched out.
 *
 * Plain data; addresses, not offsets.
 */
#pragma once

#include "async-area.h"
#include "view.h"

typedef struct {
    bool own; /* private mapping of a file, or it may be one */
    SnapView there;
} SnapDrops;

SnapDrops *snap_drops_new(const SnapArea *area);
void snap_drops_free(SnapDrops *drops);

/* Categories to be reported of an entry, so that snap_drops_there() can say. */
uint64_t snap_drops_categories(const SnapDrops *drops);
bool snap_drops_there(const SnapDrops *drops, uint64_t categories);

/*
 * Whether an entry may be a page in swap as well as a marker, which look alike: then it is called dropped each
 * time, and remembered on. Only a private mapping of a file on a machine with swap.
 */
bool snap_drops_unclear(const SnapDrops *drops, uint64_t categories);

/* Remember that [start, end) is there, or is not. */
void snap_drops_set(SnapDrops *drops, uint64_t start, uint64_t end, bool there);

/* The next run of [from, end) that was there. Return: whether there is one. */
bool snap_drops_next(const SnapDrops *drops, uint64_t from, uint64_t end, SnapBytes *ret_run);
