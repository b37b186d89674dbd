/*
 * Collecting the async log; see track-async.h.
 *
 * A collect goes through its part of the area in order, piece by piece, and each piece is one of four kinds: what
 * is owed from before; what is armed and watched for drops, where every entry is looked at; what is armed
 * otherwise, where only what was written comes back; and gaps.
 *
 * The kernel's two ways through a page table decide how (fs/proc/task_mmu.c, shown by docs/platform-requirements).
 * Asked for PAGE_IS_WRITTEN and nothing else it takes a short way. Where there is no page table at all it would
 * build one to put markers in, so that is for what is armed. Asked for more it says of each entry what it is, and
 * with "present or swapped" among the conditions it leaves holes of any size alone: that is for gaps.
 */
#include "track-async.h"

#include "pagemap.h"

enum {
    BOUND_PAGES_MIN = 512, /* looked at by one call, where a limit would make it less: the rest is owed */
};

/* One call of collect. Offsets are bytes of the area. */
typedef struct {
    SnapAsync *async;
    SnapArea *area;
    SnapDrops *drops;
    SnapBytes asked;
    SnapCollect how;
    SnapAsyncReport report;
    void *opaque;
    uint64_t left_bytes; /* may still be reported */
    SnapBytes run;       /* found, not yet handed out: more of it may follow */
} Collect;

static void flush(Collect *c) {
    if (c->run.start < c->run.end) {
        c->report(c->opaque, c->run.start, c->run.end);
    }
}

/* [start, end) is dirty. Runs that touch become one, so that it does not show how they were found. */
static void emit(Collect *c, uint64_t start, uint64_t end) {
    if (start >= end) {
        return;
    }
    if (start != c->run.end || c->run.start == c->run.end) {
        flush(c);
        c->run.start = start;
    }
    c->run.end = end;
    c->left_bytes -= MIN(c->left_bytes, end - start);
}

/* The same of what is protected already: what was not asked for, or goes beyond the limit, is owed. */
static void emit_protected(Collect *c, uint64_t start, uint64_t end) {
    uint64_t base = c->area->region->host_address;
    uint64_t from = CLAMP(c->asked.start, start, end), to = CLAMP(c->asked.end, from, end);
    to = from + MIN(to - from, c->left_bytes);
    if (start < from) {
        snap_owed_add(&c->async->owed, base + start, base + from);
    }
    emit(c, from, to);
    if (to < end) {
        snap_owed_add(&c->async->owed, base + to, base + end);
    }
}

/* Where to go on behind a piece that began at @from and was done up to @done: not beyond what it came to owe. */
static uint64_t next_of(const Collect *c, uint64_t from, uint64_t done) {
    uint64_t base = c->area->region->host_address;
    const SnapBytes *owed = snap_owed_next(&c->async->owed, base + from);
    return owed ? MIN(done, owed->start - base) : done;
}

/* ---- pieces ---------------------------------------------------------------------------------------------- */

/* [from, end) is owed. */
static int collect_owed(Collect *c, uint64_t from, uint64_t end, uint64_t *ret_next) {
    uint64_t base = c->area->region->host_address, cut = from + MIN(end - from, c->left_bytes);
    if (c->how == SNAP_COLLECT_CLEAR) {
        int result = snap_async_protect(c->async, c->area, from, cut); /* it may have been written once more */
        if (result < 0) {
            return result;
        }
        snap_owed_settle(&c->async->owed, base + from, base + cut);
    }
    emit(c, from, cut);
    *ret_next = cut;
    return 0;
}

/* [from, end) is armed. */
static int collect_armed(Collect *c, uint64_t from, uint64_t end, uint64_t *ret_next) {
    uint64_t base = c->area->region->host_address, page = c->area->region->page_bytes;
    SnapScan scan = {.fd = c->async->pagemap,
                     .filter = {.all = PAGE_IS_WRITTEN, .report = PAGE_IS_WRITTEN},
                     .flags = c->how == SNAP_COLLECT_CLEAR ? SNAP_ASYNC_PROTECT : PM_SCAN_CHECK_WPASYNC,
                     .next = base + from,
                     .end = base + snap_async_piece_end(c->area, from, end),
                     .max_pages = c->left_bytes / page};
    int n = snap_pagemap_scan(&scan, c->async->vector, c->async->n_vector);
    for (int i = 0; i < n; i++) {
        emit(c, c->async->vector[i].start - base, c->async->vector[i].end - base);
    }
    *ret_next = scan.next - base;
    return n < 0 ? n : 0;
}

/* [start, end) is dirty, and protected if this collect clears. */
static void take_dirty(Collect *c, uint64_t start, uint64_t end) {
    if (c->how == SNAP_COLLECT_CLEAR) {
        emit_protected(c, start, end);
    } else {
        emit(c, start, start + MIN(end - start, c->left_bytes));
    }
}

/*
 * A run of entries of one kind, watched for drops. What of it counts as written the scan has protected, but for
 * hugetlb, and for empty entries where the kernel does not count them.
 */
static int take_watched(Collect *c, SnapBytes run, uint64_t is) {
    bool clear = c->how == SNAP_COLLECT_CLEAR, there = snap_drops_there(c->drops, is);
    bool empty = !(is & (PAGE_IS_PRESENT | PAGE_IS_SWAPPED)), written = is & PAGE_IS_WRITTEN;
    uint64_t base = c->area->region->host_address;
    if (clear && (written || empty) && (!written || snap_async_is_hugetlb(c->area))) {
        int result = snap_async_protect(c->async, c->area, run.start, run.end);
        if (result < 0) {
            return result;
        }
    }
    if (written || empty) {
        take_dirty(c, run.start, run.end);
    } else if (!there) {
        for (SnapBytes gone = {.end = base + run.start};
             snap_drops_next(c->drops, gone.end, base + run.end, &gone);) {
            take_dirty(c, gone.start - base, gone.end - base);
        }
    }
    if (clear && !snap_drops_unclear(c->drops, is)) {
        snap_drops_set(c->drops, base + run.start, base + run.end, there);
    }
    return 0;
}

/*
 * [from, end) is armed and watched. Of hugetlb we look first, and protect then what we report: a write in between
 * is in a page that is reported anyway.
 */
static int collect_watched(Collect *c, uint64_t from, uint64_t end, uint64_t *ret_next) {
    uint64_t base = c->area->region->host_address, page = c->area->region->page_bytes;
    bool protect = c->how == SNAP_COLLECT_CLEAR && !snap_async_is_hugetlb(c->area);
    SnapScan scan = {.fd = c->async->pagemap,
                     .filter = {.report = snap_drops_categories(c->drops) | PAGE_IS_WRITTEN},
                     .flags = protect ? SNAP_ASYNC_PROTECT : PM_SCAN_CHECK_WPASYNC,
                     .next = base + from,
                     .end = base + snap_async_piece_end(c->area, from, end),
                     .max_pages = snap_async_is_hugetlb(c->area) ? 0 : MAX(c->left_bytes / page, BOUND_PAGES_MIN)};
    int n = snap_pagemap_scan(&scan, c->async->vector, c->async->n_vector);
    for (int i = 0; i < n; i++) {
        const struct page_region *run = &c->async->vector[i];
        int result = take_watched(c, (SnapBytes){run->start - base, run->end - base}, run->categories);
        if (result < 0) {
            return result;
        }
    }
    uint64_t done = c->left_bytes || c->how == SNAP_COLLECT_CLEAR ? scan.next - base : c->run.end;
    *ret_next = next_of(c, from, done);
    return n < 0 ? n : 0;
}

/* ---- gaps ------------------------------------------------------------------------------------------------ */

/* What is new in units that were just armed. Of memory with a file it comes from two sources: it is owed first. */
static void take_new(Collect *c, uint64_t start, uint64_t end) {
    uint64_t base = c->area->region->host_address;
    if (c->area->region->memory == SNAP_MEMORY_ANON) {
        emit_protected(c, start, end);
    } else {
        snap_owed_add(&c->async->owed, base + start, base + end);
    }
}

/*
 * A run of entries of one kind in units [from, end), now protected. The kernel tells each entry's kind in the step
 * that protects it. Only where it finds no page table it looks first and marks later (pagemap_scan_pte_hole(),
 * uffd_wp_range()), and what was filled in between would be protected without a word; that is where nothing but a
 * hole comes back for all that we have of a block, and then it is called dirty. (Of shared memory the file will
 * tell.)
 */
static void take_joined(Collect *c, SnapBytes joined, SnapBytes run, uint64_t is) {
    uint64_t base = c->area->region->host_address;
    SnapScanFilter filled = snap_async_filled_filter(c->area);
    if ((is & filled.any) && !(is & filled.none)) {
        take_new(c, run.start, run.end);
        if (c->drops) {
            snap_drops_set(c->drops, base + run.start, base + run.end, true);
        }
    }
    if (!(is & filled.report) && c->area->region->memory != SNAP_MEMORY_SHMEM) {
        uint64_t start = run.start == joined.start ? run.start : snap_async_block_end(c->area, run.start);
        uint64_t end = run.end == joined.end ? run.end : snap_async_block_start(c->area, run.end);
        if (start < end) {
            take_new(c, start, end);
        }
    }
}

/* Something was found in units [from, end) of a gap: protect all of it, report what is filled, mark the holes. */
static int join_units(Collect *c, uint64_t from, uint64_t end) {
    uint64_t base = c->area->region->host_address;
    SnapScan scan = {.fd = c->async->pagemap,
                     .filter = {.all = PAGE_IS_WRITTEN, .report = snap_async_filled_filter(c->area).report},
                     .flags = SNAP_ASYNC_PROTECT,
                     .next = base + from,
                     .end = base + end};
    snap_async_add_armed(c->area, from, end);
    while (scan.next < scan.end) {
        int n = snap_pagemap_scan(&scan, c->async->vector, c->async->n_vector);
        if (n < 0) {
            return n;
        }
        for (int i = 0; i < n; i++) {
            const struct page_region *run = &c->async->vector[i];
            take_joined(c, (SnapBytes){from, end}, (SnapBytes){run->start - base, run->end - base},
                        run->categories);
        }
    }
    SnapBytes run;
    int found = 0;
    while (c->area->region->memory != SNAP_MEMORY_ANON &&
           (found = snap_async_next_data(c->area, from, end, &run)) == 1) {
        take_new(c, run.start, run.end);
        from = run.end;
    }
    return found;
}

/* [from, end) is a gap. */
static int collect_gap(Collect *c, uint64_t from, uint64_t end, uint64_t *ret_next) {
    SnapBytes run;
    uint64_t searched;
    int found = snap_async_next_filled(c->area, c->async->pagemap, from, end, &run, &searched);
    if (found <= 0) {
        *ret_next = end;
        return found;
    }
    if (c->how == SNAP_COLLECT_PEEK) {
        uint64_t cut = run.start + MIN(run.end - run.start, c->left_bytes);
        emit(c, run.start, cut);
        *ret_next = cut < run.end ? cut : searched;
        return 0;
    }
    /* Always whole units, whatever part of them was asked for: that is what being armed means. */
    uint64_t at = snap_async_unit_start(c->area, run.start), stop = snap_async_unit_end(c->area, run.end);
    while (at < stop && c->left_bytes) {
        uint64_t next = snap_async_piece_end(c->area, at, stop);
        int result = join_units(c, at, next);
        if (result < 0) {
            return result;
        }
        at = next;
    }
    uint64_t done = at < stop ? at : MAX(at, searched);
    *ret_next = CLAMP(next_of(c, from, done), from, end);
    return 0;
}

/* [from, end) of an area that cannot have gaps, and never was armed. */
static int collect_unarmed(Collect *c, uint64_t from, uint64_t end, uint64_t *ret_next) {
    uint64_t base = c->area->region->host_address, length = c->area->region->length_bytes;
    if (c->how == SNAP_COLLECT_PEEK) {
        *ret_next = from + MIN(end - from, c->left_bytes);
        emit(c, from, *ret_next);
        return 0;
    }
    snap_owed_add(&c->async->owed, base, base + length);
    *ret_next = from;
    return snap_async_arm_units(c->async, c->area);
}

/* ---- all of it ------------------------------------------------------------------------------------------- */

/* One piece of [at, end), of one kind. */
static int collect_piece(Collect *c, uint64_t at, uint64_t end, uint64_t *ret_next) {
    uint64_t base = c->area->region->host_address, stop;
    const SnapBytes *owed = snap_owed_next(&c->async->owed, base + at);
    if (owed && owed->start <= base + at) {
        return collect_owed(c, at, MIN(end, owed->end - base), ret_next);
    }
    if (owed && owed->start < base + end) {
        end = owed->start - base;
    }
    if (snap_async_is_hugetlb(c->area)) {
        return collect_watched(c, at, end, ret_next);
    }
    if (!snap_async_is_armed(c->area, at, end, &stop)) {
        return snap_async_has_gaps(c->area) ? collect_gap(c, at, stop, ret_next)
                                            : collect_unarmed(c, at, stop, ret_next);
    }
    return c->drops ? collect_watched(c, at, stop, ret_next) : collect_armed(c, at, stop, ret_next);
}

int snap_async_collect(SnapAsync *async, SnapArea *area, uint64_t from, uint64_t end, SnapCollect how,
                       uint64_t max_pages, SnapAsyncReport report, void *opaque, uint64_t *ret_next) {
    uint64_t base = area->region->host_address, granule = area->region->granule_bytes, at = from;
    if (snap_async_is_hugetlb(area)) {
        snap_async_watch_drops(async, area);
    }
    uint64_t limit = MAX(max_pages * area->region->page_bytes / granule, 1) * granule;
    Collect c = {.async = async,
                 .area = area,
                 .drops = snap_async_drops(async, area),
                 .asked = {from, end},
                 .how = how,
                 .report = report,
                 .opaque = opaque,
                 .left_bytes = max_pages ? limit : UINT64_MAX,
                 .run = {from, from}};
    while (at < end && c.left_bytes) {
        int result = collect_piece(&c, at, end, &at);
        if (result < 0) {
            return result;
        }
    }
    flush(&c);
    int result = snap_async_check(async, base + from, base + at);
    if (result == 0) {
        *ret_next = at;
    }
    return result;
}
