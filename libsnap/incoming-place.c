/*
 * Post-copy: pages come, and go where they are missing.
 *
 * Happy path: the pages of a CHUNK are received into the lane's buffer and checked; those that are missing are put
 * in place by UFFDIO_COPY (zeros: UFFDIO_ZEROPAGE), some at a time under the lock, which wakes who waits for them.
 * Huge pages are collected first. Failure modes: a page that is there is passed over; where the guest has unmapped
 * the memory there is nothing to be done; without memory for it the page stays missing, and the connection fails,
 * which can be resumed.
 */
#include "incoming-missing.h"

#include "uffd.h"

#include <errno.h>

enum { PAGES_AT_A_TIME = 16 }; /* who waits for one page does not wait for the whole chunk of another */

/* ---- bits ------------------------------------------------------------------------------------------------ */

static uint64_t mask_of(uint64_t first, uint64_t n) {
    return (n >= SNAP_CHUNK_PAGES ? UINT64_MAX : (UINT64_C(1) << n) - 1) << first;
}

/* Bits of one word at a time: the pages of [*first_page, end) that are in its chunk. */
static uint64_t next_mask(uint64_t *first_page, uint64_t end_page, uint64_t *ret_chunk) {
    uint64_t first = *first_page % SNAP_CHUNK_PAGES;
    uint64_t n = MIN(end_page - *first_page, SNAP_CHUNK_PAGES - first);
    *ret_chunk = *first_page / SNAP_CHUNK_PAGES;
    *first_page += n;
    return mask_of(first, n);
}

uint64_t snap_missing_count(const uint64_t *words, uint64_t first_page, uint64_t end_page) {
    uint64_t n = 0, chunk = 0;
    while (first_page < end_page) {
        uint64_t mask = next_mask(&first_page, end_page, &chunk);
        n += (uint64_t)__builtin_popcountll(words[chunk] & mask);
    }
    return n;
}

void snap_missing_clear(uint64_t *words, uint64_t first_page, uint64_t end_page) {
    uint64_t chunk = 0;
    while (first_page < end_page) {
        uint64_t mask = next_mask(&first_page, end_page, &chunk);
        words[chunk] &= ~mask;
    }
}

void snap_missing_set(uint64_t *words, uint64_t first_page, uint64_t end_page) {
    uint64_t chunk = 0;
    while (first_page < end_page) {
        uint64_t mask = next_mask(&first_page, end_page, &chunk);
        words[chunk] |= mask;
    }
}

/* ---- what is there --------------------------------------------------------------------------------------- */

bool snap_missing_is_there_locked(const SnapMissing *missing, const SnapIncomingRegion *region, uint64_t page) {
    (void)missing;
    uint64_t granule = snap_missing_granule_pages(region);
    if (region->parts && region->parts[page / granule])
        return false;
    page -= page % granule;
    return snap_missing_count(region->missing, page, page + granule) == 0;
}

void snap_missing_note_locked(SnapMissing *missing, SnapIncomingRegion *region, uint64_t first_page,
                              uint64_t end_page) {
    uint64_t n = snap_missing_is_huge(region) ? end_page - first_page
                                              : snap_missing_count(region->missing, first_page, end_page);
    missing->n_missing -= n;
    missing->n_asked -= snap_missing_count(region->asked, first_page, end_page);
    snap_missing_clear(region->missing, first_page, end_page);
    snap_missing_clear(region->asked, first_page, end_page);
    __atomic_store_n(&missing->incoming->pages_missing, missing->n_missing, __ATOMIC_RELAXED);
    if (n > 0 && missing->n_missing == 0)
        snap_incoming_wake(missing->incoming);
}

/* ---- base pages ------------------------------------------------------------------------------------------ */

static uint64_t address_of(const SnapIncomingRegion *region, uint64_t page) {
    return region->region->host_address + page * region->region->page_bytes;
}

/* Some of pages [page, end), which are missing; @from: theirs, NULL: zeros. Return: how many are there now, or
 * -errno. */
static int64_t put_some_locked(SnapMissing *missing, SnapIncomingRegion *region, uint64_t page, uint64_t end,
                               const uint8_t *from) SNAP_REQUIRES(missing->lock) {
    uint64_t page_bytes = region->region->page_bytes, address = address_of(region, page);
    uint64_t length = (end - page) * page_bytes;
    int64_t done = from ? snap_uffd_copy(missing->uffd, address, from, length)
                        : snap_uffd_zero(missing->uffd, address, length);
    /* Unmapped; or written past us, through another mapping of a file. Private memory is written by nobody else.
     */
    if (done == -ENOENT || (done == -EEXIST && region->region->memory == SNAP_MEMORY_SHMEM)) {
        snap_uffd_wake(missing->uffd, address, page_bytes);
        done = (int64_t)page_bytes;
    }
    if (done < 0)
        return done;
    uint64_t n = (uint64_t)done / page_bytes;
    snap_missing_note_locked(missing, region, page, page + n);
    return (int64_t)n;
}

/* Those of @mask of a chunk that are missing. @pages: those of page @first and on. Return: 0 or -errno. */
static int put_mask_locked(SnapMissing *missing, SnapIncomingRegion *region, uint64_t chunk, uint64_t mask,
                           unsigned first, const uint8_t *pages) SNAP_REQUIRES(missing->lock) {
    unsigned run = 0, count = 0;
    mask &= region->missing[chunk];
    while (snap_chunk_take_run(&mask, &run, &count)) {
        uint64_t page = chunk * SNAP_CHUNK_PAGES + run, end = page + count;
        const uint8_t *from = pages ? pages + (run - first) * region->region->page_bytes : NULL;
        while (page < end) {
            int64_t n = put_some_locked(missing, region, page, end, from);
            if (n < 0)
                return (int)n;
            page += (uint64_t)n;
            from = from ? from + (uint64_t)n * region->region->page_bytes : NULL;
        }
    }
    return 0;
}

/* One run of a chunk. */
static int put_run(SnapIncomingLane *lane, SnapIncomingRegion *region, uint64_t chunk, unsigned first,
                   unsigned count, const uint8_t *pages) {
    SnapMissing *missing = lane->incoming->missing;
    for (unsigned done = 0; done < count;) {
        unsigned n = MIN(count - done, (unsigned)PAGES_AT_A_TIME);
        const uint8_t *from = pages ? pages + done * region->region->page_bytes : NULL;
        snap_lock(&missing->lock);
        int rc = put_mask_locked(missing, region, chunk, mask_of(first + done, n), first + done, from);
        snap_unlock(&missing->lock);
        if (rc == -EAGAIN)
            snap_missing_let_events_go(missing, lane);
        else if (rc < 0)
            return rc;
        else
            done += n;
    }
    return 0;
}

static int put_base_pages(SnapIncomingLane *lane, SnapIncomingRegion *region, const SnapWireChunk *chunk) {
    uint64_t stored = chunk->record.present & ~chunk->record.zero, zero = chunk->record.zero;
    const uint8_t *pages = lane->pages;
    unsigned first = 0, count = 0;
    int rc = 0;
    while (rc == 0 && snap_chunk_take_run(&stored, &first, &count)) {
        rc = put_run(lane, region, chunk->chunk, first, count, pages);
        pages += count * region->region->page_bytes;
    }
    while (rc == 0 && snap_chunk_take_run(&zero, &first, &count))
        rc = put_run(lane, region, chunk->chunk, first, count, NULL);
    return rc;
}

/* ---- huge pages ------------------------------------------------------------------------------------------ */

/* A page into the buffer of its granule. FALSE: there is no memory for that. */
static bool collect_locked(SnapMissing *missing, SnapIncomingRegion *region, uint64_t page, const uint8_t *from)
    SNAP_REQUIRES(missing->lock) {
    uint64_t granule = snap_missing_granule_pages(region), page_bytes = region->region->page_bytes;
    uint8_t **part = &region->parts[page / granule];
    (void)missing;
    if (snap_missing_count(region->missing, page, page + 1) == 0)
        return true;
    if (!*part)
        *part = g_try_malloc(region->region->granule_bytes);
    if (!*part)
        return false;
    uint8_t *to = *part + page % granule * page_bytes;
    if (from)
        memcpy(to, from, page_bytes);
    else
        memset(to, 0, page_bytes);
    snap_missing_clear(region->missing, page, page + 1);
    return true;
}

static int collect(SnapMissing *missing, SnapIncomingRegion *region, const SnapWireChunk *chunk,
                   const uint8_t *pages) {
    bool room = true;
    snap_lock(&missing->lock);
    for (uint64_t left = chunk->record.present; left != 0 && room; left &= left - 1) {
        unsigned bit = (unsigned)__builtin_ctzll(left);
        bool zero = (chunk->record.zero >> bit & 1) != 0;
        room = collect_locked(missing, region, chunk->chunk * SNAP_CHUNK_PAGES + bit, zero ? NULL : pages);
        pages += zero ? 0 : region->region->page_bytes;
    }
    snap_unlock(&missing->lock);
    return room ? 0 : -ENOMEM;
}

/* A granule, if all of it has been collected. Where there is no room for it, it is missing again. */
static int put_granule_locked(SnapMissing *missing, SnapIncomingRegion *region, uint64_t number)
    SNAP_REQUIRES(missing->lock) {
    uint64_t granule = snap_missing_granule_pages(region), first = number * granule;
    uint64_t length = region->region->granule_bytes;
    uint8_t **part = &region->parts[number];
    if (!*part || snap_missing_count(region->missing, first, first + granule) > 0)
        return 0;
    int64_t done = snap_uffd_copy(missing->uffd, address_of(region, first), *part, length);
    if (done == -EAGAIN)
        return -EAGAIN;
    g_clear_pointer(part, g_free);
    if (done < 0 && done != -EEXIST && done != -ENOENT) { /* another mapping may have put it there */
        snap_missing_set(region->missing, first, first + granule);
        return (int)done;
    }
    if (done < 0)
        snap_uffd_wake(missing->uffd, address_of(region, first), length);
    snap_missing_note_locked(missing, region, first, first + granule);
    return 0;
}

static int put_huge_pages(SnapIncomingLane *lane, SnapIncomingRegion *region, const SnapWireChunk *chunk) {
    SnapMissing *missing = lane->incoming->missing;
    uint64_t granule = snap_missing_granule_pages(region);
    uint64_t n_pages = region->region->length_bytes / region->region->page_bytes;
    uint64_t page = chunk->chunk * SNAP_CHUNK_PAGES, end = MIN(page + SNAP_CHUNK_PAGES, n_pages);
    int rc = collect(missing, region, chunk, lane->pages);
    while (rc == 0 && page < end) {
        snap_lock(&missing->lock);
        rc = put_granule_locked(missing, region, page / granule);
        snap_unlock(&missing->lock);
        if (rc == -EAGAIN) {
            snap_missing_let_events_go(missing, lane);
            rc = 0;
        } else {
            page = (page / granule + 1) * granule;
        }
    }
    return rc;
}

/* ---- the chunk ------------------------------------------------------------------------------------------- */

static bool is_armed(SnapMissing *missing) {
    snap_lock(&missing->lock);
    bool armed = missing->armed;
    snap_unlock(&missing->lock);
    return armed;
}

gboolean snap_missing_take(SnapIncomingLane *lane, SnapIncomingRegion *region, const SnapWireChunk *chunk,
                           GError **error) {
    SnapMissing *missing = lane->incoming->missing;
    if (!missing || !is_armed(missing))
        return snap_incoming_wrong(lane, SNAP_WIRE_CHUNK, "nothing is missing", error);
    if (!snap_incoming_read_pages(lane, region, chunk, lane->pages, error))
        return FALSE;
    if (!region->missing)
        return TRUE;
    int rc =
        snap_missing_is_huge(region) ? put_huge_pages(lane, region, chunk) : put_base_pages(lane, region, chunk);
    if (rc == 0)
        return TRUE;
    snap_set_errno(error, -rc, "region \"%s\", chunk %" G_GUINT64_FORMAT ": a missing page cannot be put in place",
                   region->region->name, chunk->chunk);
    return FALSE;
}
