/*
 * Post-copy: what can be missing, from the masks to the last page; who waits for it is incoming-faults.c's matter.
 *
 * Happy path: a thread "snap-missing" waits on the urgent channel, which has nothing to say before the
 * switch-over. Then the masks say what is missing; that memory is dropped and registered. When nothing is missing
 * any more, all is un-registered, and the memory is the guest's alone.
 *
 * Failure modes: memory that cannot be registered is refused when the migration begins, by name. While the state
 * is loaded, who touches missing memory is the thread that could end the migration. A channel that fails then
 * gives it zeros instead of leaving it waiting: nothing has been started, and nothing will be.
 *
 * Invariant: the descriptor is not closed while the guest runs and anything is missing: that would show zeros.
 */
#include "incoming-missing.h"

#include "huge-pages.h"
#include "uffd.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

/* ---- what can be ----------------------------------------------------------------------------------------- */

static const char *cannot_miss(const SnapRegion *region) {
    switch (region->memory) {
    case SNAP_MEMORY_SHMEM_PRIVATE:
    case SNAP_MEMORY_HUGETLB_PRIVATE:
        return "in a private mapping of a file, no page of it is ever missing";
    default:
        return NULL;
    }
}

/* Copied regions are sent whole, and need nothing here. */
static bool can_register(const SnapRegion *region) {
    return region->memory == SNAP_MEMORY_ANON || region->memory == SNAP_MEMORY_SHMEM ||
           region->memory == SNAP_MEMORY_HUGETLB;
}

static gboolean fail_region(const SnapRegion *region, int rc, GError **error) {
    if (rc == -EBUSY)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_REFUSED,
                    "region \"%s\": no post-copy: another userfaultfd has it", region->name);
    else
        snap_set_errno(error, -rc, "region \"%s\": no post-copy", region->name);
    return FALSE;
}

/* By trying: better now than when the guest stands. */
static gboolean try_region(SnapMissing *missing, SnapIncomingRegion *entry, GError **error) {
    const SnapRegion *region = entry->region;
    const char *why = cannot_miss(region);
    if (why) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_REFUSED, "region \"%s\": no post-copy: %s", region->name, why);
        return FALSE;
    }
    if (!can_register(region))
        return TRUE;
    entry->huge_pages = !snap_missing_is_huge(entry) && snap_huge_pages_may_be_made(region->host_address);
    int rc = snap_uffd_register_missing(missing->uffd, region->host_address, region->length_bytes);
    if (rc == 0)
        rc = snap_uffd_unregister(missing->uffd, region->host_address, region->length_bytes);
    return rc == 0 || fail_region(region, rc, error);
}

static uint64_t features_for(const GPtrArray *regions) {
    uint64_t features = UFFD_FEATURE_EVENT_REMOVE;
    for (guint i = 0; i < regions->len; i++) {
        const SnapIncomingRegion *region = g_ptr_array_index(regions, i);
        if (region->region->memory == SNAP_MEMORY_SHMEM)
            features |= UFFD_FEATURE_MISSING_SHMEM;
        if (region->region->memory == SNAP_MEMORY_HUGETLB)
            features |= UFFD_FEATURE_MISSING_HUGETLBFS;
    }
    return features;
}

static gboolean open_uffd(SnapMissing *missing, GError **error) {
    const GPtrArray *regions = missing->incoming->regions;
    missing->uffd = snap_guest_open_uffd(missing->incoming->guest, error);
    if (missing->uffd < 0)
        return FALSE;
    if (snap_uffd_api(missing->uffd, features_for(regions)) < 0) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED,
                    "no post-copy: this kernel does not tell of missing pages");
        return FALSE;
    }
    for (guint i = 0; i < regions->len; i++) {
        if (!try_region(missing, g_ptr_array_index(regions, i), error))
            return FALSE;
    }
    return TRUE;
}

SnapMissing *snap_missing_new(SnapIncoming *incoming, GError **error) {
    SnapMissing *missing = g_new0(SnapMissing, 1);
    snap_lock_init(&missing->lock);
    snap_cond_init(&missing->changed);
    missing->incoming = incoming;
    missing->uffd = -1;
    missing->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (missing->wake_fd < 0)
        snap_set_errno(error, errno, "an eventfd");
    if (missing->wake_fd >= 0 && open_uffd(missing, error))
        return missing;
    snap_missing_free(missing);
    return NULL;
}

/* ---- the masks ------------------------------------------------------------------------------------------- */

static void make_room(SnapIncomingRegion *region) {
    if (region->missing)
        return;
    region->missing = g_new0(uint64_t, region->n_chunks);
    region->asked = g_new0(uint64_t, region->n_chunks);
    if (snap_missing_is_huge(region))
        region->parts = g_new0(uint8_t *, region->region->length_bytes / region->region->granule_bytes);
}

const char *snap_missing_add(SnapMissing *missing, const SnapWireMissing *record, const uint64_t *masks) {
    if (record->region >= missing->incoming->regions->len)
        return "there is no such region";
    SnapIncomingRegion *region = g_ptr_array_index(missing->incoming->regions, record->region);
    const SnapRegion *own = region->region;
    if (record->first_chunk >= region->n_chunks || record->n_masks > region->n_chunks - record->first_chunk)
        return "there are no such chunks";
    if (!can_register(own))
        return "what is missing there could not be fetched";
    for (uint32_t i = 0; i < record->n_masks; i++) {
        if (masks[i] & ~snap_chunk_pages(own->length_bytes, own->page_bytes, record->first_chunk + i))
            return "pages beyond the end of the region are missing";
    }
    make_room(region);
    for (uint32_t i = 0; i < record->n_masks; i++)
        region->missing[record->first_chunk + i] |= masks[i];
    return NULL;
}

/* ---- arming ---------------------------------------------------------------------------------------------- */

/* The first page at or behind @page that is missing, or is not; @n_pages: none. */
static uint64_t next_page(const uint64_t *words, uint64_t page, uint64_t n_pages, bool missing) {
    while (page < n_pages) {
        uint64_t word = words[page / SNAP_CHUNK_PAGES];
        word = (missing ? word : ~word) & UINT64_MAX << page % SNAP_CHUNK_PAGES;
        page -= page % SNAP_CHUNK_PAGES;
        if (word)
            return MIN(page + (uint64_t)__builtin_ctzll(word), n_pages);
        page += SNAP_CHUNK_PAGES;
    }
    return n_pages;
}

/* The first run of granules at or behind *@first_page with anything missing. */
static bool next_run(const SnapIncomingRegion *region, uint64_t *first_page, uint64_t *ret_end_page) {
    uint64_t granule = snap_missing_granule_pages(region), n_pages = snap_missing_pages(region);
    uint64_t page = next_page(region->missing, *first_page, n_pages, true);
    if (page >= n_pages)
        return false;
    page -= page % granule;
    *first_page = page;
    if (granule == 1) {
        *ret_end_page = next_page(region->missing, page, n_pages, false);
        return true;
    }
    do
        page += granule;
    while (next_page(region->missing, page, MIN(page + granule, n_pages), true) < MIN(page + granule, n_pages));
    *ret_end_page = page;
    return true;
}

/* What is good of granules that are not missing whole goes with them, and is kept aside. */
static int keep_rest(SnapIncomingRegion *region, uint64_t page, uint64_t end) {
    uint64_t granule = snap_missing_granule_pages(region);
    for (; region->parts && page < end; page += granule) {
        if (snap_missing_count(region->missing, page, page + granule) == granule)
            continue;
        uint8_t *part = g_try_malloc(region->region->granule_bytes);
        if (!part)
            return -ENOMEM;
        memcpy(part, region->memory + page * region->region->page_bytes, region->region->granule_bytes);
        region->parts[page / granule] = part;
    }
    return 0;
}

/* Before it is registered: dropping what is would wait for ourselves. Until it is, nobody may fill the holes. */
static int drop_missing(SnapMissing *missing, SnapIncomingRegion *region) {
    uint64_t page_bytes = region->region->page_bytes, first = 0, end = 0;
    for (; next_run(region, &first, &end); first = end) {
        int rc = keep_rest(region, first, end);
        if (rc == 0)
            rc = snap_incoming_drop_range(region, first * page_bytes, (end - first) * page_bytes);
        if (rc < 0)
            return rc;
        missing->n_missing +=
            snap_missing_is_huge(region) ? end - first : snap_missing_count(region->missing, first, end);
    }
    return 0;
}

static gboolean make_zeros(SnapMissing *missing, const SnapIncomingRegion *region, GError **error) {
    size_t length = region->region->granule_bytes;
    if (!snap_missing_is_huge(region) || missing->zeros_bytes >= length)
        return TRUE;
    void *zeros = mmap(NULL, length, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (zeros == MAP_FAILED) {
        snap_set_errno(error, errno, "a huge page of zeros");
        return FALSE;
    }
    if (missing->zeros)
        munmap(missing->zeros, missing->zeros_bytes);
    missing->zeros = zeros;
    missing->zeros_bytes = length;
    return TRUE;
}

static int let_huge_pages(const SnapIncomingRegion *region, bool allow) {
    bool matters = region->missing && region->huge_pages;
    return matters ? snap_huge_pages_allow(region->region->host_address, region->region->length_bytes, allow) : 0;
}

static gboolean prepare_region(SnapMissing *missing, SnapIncomingRegion *region, GError **error) {
    int rc = let_huge_pages(region, false);
    if (rc == 0 && region->missing)
        rc = drop_missing(missing, region);
    if (rc < 0)
        return fail_region(region->region, rc, error);
    return !region->missing || make_zeros(missing, region, error);
}

static gboolean register_region(SnapMissing *missing, const SnapIncomingRegion *region, GError **error) {
    const SnapRegion *own = region->region;
    int rc = region->missing ? snap_uffd_register_missing(missing->uffd, own->host_address, own->length_bytes) : 0;
    if (rc == 0)
        rc = let_huge_pages(region, true);
    return rc == 0 || fail_region(own, rc, error);
}

/* The thread looks at masks when somebody has touched what is registered, and finds them as they are from here on.
 */
gboolean snap_missing_arm(SnapMissing *missing, GError **error) {
    const GPtrArray *regions = missing->incoming->regions;
    for (guint i = 0; i < regions->len; i++) {
        if (!prepare_region(missing, g_ptr_array_index(regions, i), error))
            return FALSE;
    }
    __atomic_store_n(&missing->incoming->pages_missing, missing->n_missing, __ATOMIC_RELAXED);
    snap_lock(&missing->lock);
    missing->armed = true;
    snap_unlock(&missing->lock);
    for (guint i = 0; i < regions->len; i++) {
        if (!register_region(missing, g_ptr_array_index(regions, i), error))
            return FALSE;
    }
    return TRUE;
}

/* ---- the thread ------------------------------------------------------------------------------------------ */

static void wake(const SnapMissing *missing) {
    uint64_t one = 1;
    if (write(missing->wake_fd, &one, sizeof one) < 0)
        return; /* it is readable already */
}

void snap_missing_connect(SnapMissing *missing, SnapIncomingLane *lane) {
    snap_lock(&missing->lock);
    missing->wanted = lane;
    snap_unlock(&missing->lock);
    if (lane && !missing->thread && missing->uffd >= 0)
        missing->thread = g_thread_new("snap-missing", snap_missing_run, missing);
    wake(missing);
    snap_lock(&missing->lock);
    while (missing->thread && !lane && missing->lane)
        snap_cond_wait(&missing->changed, &missing->lock);
    if (!missing->thread)
        missing->lane = NULL;
    snap_unlock(&missing->lock);
}

void snap_missing_begin_load(SnapMissing *missing) {
    snap_lock(&missing->lock);
    missing->loading = true;
    missing->lost = missing->lost || !missing->wanted;
    snap_unlock(&missing->lock);
}

gboolean snap_missing_end_load(SnapMissing *missing, GError **error) {
    snap_lock(&missing->lock);
    bool lost = missing->lost;
    missing->loading = false;
    snap_unlock(&missing->lock);
    if (lost && error && !*error)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_IO,
                    "the urgent connection was lost while the guest's state was loaded");
    return !lost;
}

/* ---- the end --------------------------------------------------------------------------------------------- */

static void end_thread(SnapMissing *missing) {
    snap_lock(&missing->lock);
    missing->stop = true;
    snap_unlock(&missing->lock);
    wake(missing);
    if (missing->thread)
        g_thread_join(missing->thread);
    missing->thread = NULL;
    missing->lane = missing->wanted = NULL;
}

/* While the thread serves: who touches something in between is answered. */
static void unregister(SnapMissing *missing) {
    const GPtrArray *regions = missing->incoming->regions;
    for (guint i = 0; i < regions->len; i++) {
        const SnapIncomingRegion *region = g_ptr_array_index(regions, i);
        if (region->missing && missing->armed)
            snap_uffd_unregister(missing->uffd, region->region->host_address, region->region->length_bytes);
    }
}

void snap_missing_finish(SnapMissing *missing) {
    if (missing->uffd < 0)
        return;
    unregister(missing);
    end_thread(missing);
    close(missing->uffd);
    missing->uffd = -1;
}

uint64_t snap_missing_left(SnapMissing *missing) {
    snap_lock(&missing->lock);
    uint64_t n = missing->n_missing;
    snap_unlock(&missing->lock);
    return n;
}

void snap_missing_free(SnapMissing *missing) {
    if (!missing)
        return;
    /* To close the descriptor would show zeros to who touches what is missing: it stays open, and nobody serves
     * it. */
    bool waits = missing->incoming->started && snap_missing_left(missing) > 0;
    if (waits)
        end_thread(missing);
    else
        snap_missing_finish(missing);
    if (missing->wake_fd >= 0)
        close(missing->wake_fd);
    if (missing->zeros)
        munmap(missing->zeros, missing->zeros_bytes);
    snap_cond_clear(&missing->changed);
    snap_lock_clear(&missing->lock);
    g_free(missing);
}

/* ---- what is to come, when it is resumed ----------------------------------------------------------------- */

static gboolean send_masks(SnapMissing *missing, uint32_t number, uint64_t first, uint32_t n, GError **error) {
    const SnapIncomingRegion *region = g_ptr_array_index(missing->incoming->regions, number);
    const SnapWireMissing record = {.region = number, .n_masks = n, .first_chunk = first};
    g_autofree uint64_t *masks = g_new(uint64_t, SNAP_WIRE_MAX_MASKS);
    g_autofree uint8_t *body = g_malloc(SNAP_WIRE_MAX_BODY_BYTES);
    snap_lock(&missing->lock);
    memcpy(masks, region->missing + first, n * sizeof *masks);
    snap_unlock(&missing->lock);
    uint32_t body_bytes = snap_wire_encode_missing(&record, masks, body);
    return snap_incoming_send(missing->incoming, SNAP_WIRE_MISSING, body, body_bytes, error);
}

/* By stretches of the longest length, so that their number does not depend on what is discarded meanwhile. */
gboolean snap_missing_list(SnapMissing *missing, uint64_t *ret_n, GError **error) {
    const GPtrArray *regions = missing->incoming->regions;
    uint64_t n_records = 0;
    if (missing->uffd < 0)
        return TRUE;
    for (guint i = 0; i < regions->len; i++) {
        const SnapIncomingRegion *region = g_ptr_array_index(regions, i);
        for (uint64_t chunk = 0; region->missing && chunk < region->n_chunks; chunk += SNAP_WIRE_MAX_MASKS) {
            uint32_t n = (uint32_t)MIN(region->n_chunks - chunk, SNAP_WIRE_MAX_MASKS);
            n_records++;
            if (!ret_n && !send_masks(missing, i, chunk, n, error))
                return FALSE;
        }
    }
    if (ret_n)
        *ret_n = n_records;
    return TRUE;
}
