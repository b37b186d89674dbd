/*
 * The guest's memory, as both sides know it.
 *
 * Happy path: the guest lists its regions; each REGION finds its own by name, with the same length, page size and
 * guest address; none is left out. Then the memory is dropped: what the source does not send is zeros. Where there
 * is no guest here, regions are what the source says, and before any epoch it may say that they are others now.
 * Failure modes: REFUSED, the first difference by name.
 *
 * Dropping gives pages back where the mapping allows it; what still holds something afterwards (a private mapping
 * of a file, memory that is locked, a device's) is overwritten.
 */
#include "incoming.h"

#include <errno.h>
#include <sys/mman.h>

void snap_incoming_region_drop_masks(SnapIncomingRegion *region) {
    uint64_t n_granules = region->parts ? region->region->length_bytes / region->region->granule_bytes : 0;
    for (uint64_t i = 0; i < n_granules; i++)
        g_free(region->parts[i]);
    g_clear_pointer(&region->parts, g_free);
    g_clear_pointer(&region->put, g_free);
    g_clear_pointer(&region->missing, g_free);
    g_clear_pointer(&region->asked, g_free);
}

void snap_incoming_region_free(gpointer data) {
    SnapIncomingRegion *region = data;
    snap_incoming_region_drop_masks(region);
    snap_region_free(region->region);
    g_free(region);
}

/* ---- comparing ------------------------------------------------------------------------------------------- */

static const char *cannot_receive(const SnapRegion *region) {
    if (region->refusal)
        return region->refusal;
    if (region->memory == SNAP_MEMORY_FIXED)
        return "it cannot be written here";
    return region->length_bytes % region->page_bytes ? "its length is no multiple of its pages" : NULL;
}

GPtrArray *snap_incoming_list_regions(SnapIncoming *incoming, GError **error) {
    g_autoptr(GPtrArray) own = g_ptr_array_new_with_free_func((GDestroyNotify)snap_region_free);
    const SnapGuestOps *ops = incoming->guest->ops;
    if (!ops->list_regions(incoming->guest->opaque, FALSE, own, error))
        return NULL;
    for (guint i = 0; i < own->len; i++) {
        const SnapRegion *region = g_ptr_array_index(own, i);
        const char *why = cannot_receive(region);
        if (why) {
            snap_incoming_refuse(error, "region \"%s\": %s", region->name, why);
            return NULL;
        }
    }
    return g_steal_pointer(&own);
}

static gboolean differ(const char *name, const char *what, uint64_t there, uint64_t here, GError **error) {
    return snap_incoming_refuse(
        error, "region \"%s\" has %s 0x%" G_GINT64_MODIFIER "x there, and 0x%" G_GINT64_MODIFIER "x here", name,
        what, there, here);
}

static gboolean compare(const SnapRegion *own, const SnapWireRegion *theirs, GError **error) {
    if (own->length_bytes != theirs->length_bytes)
        return differ(own->name, "length", theirs->length_bytes, own->length_bytes, error);
    if (own->page_bytes != theirs->page_bytes)
        return differ(own->name, "pages of", theirs->page_bytes, own->page_bytes, error);
    if (own->guest_address != theirs->guest_address)
        return differ(own->name, "guest address", theirs->guest_address, own->guest_address, error);
    return TRUE;
}

static SnapIncomingRegion *region_new(const SnapIncoming *incoming, SnapRegion *region,
                                      const SnapWireRegion *theirs) {
    SnapIncomingRegion *entry = g_new0(SnapIncomingRegion, 1);
    entry->region = region;
    entry->n_chunks = snap_chunk_count(region->length_bytes, region->page_bytes);
    entry->source_granule_bytes = theirs->granule_bytes;
    if (incoming->guest) {
        entry->memory = (uint8_t *)(uintptr_t)region->host_address; /* this process's */
        entry->put = g_new0(uint64_t, entry->n_chunks);
    }
    return entry;
}

/* Without a guest the region is what the source says it is; of its kind only huge pages can be told. */
static SnapIncomingRegion *foreign_new(const SnapIncoming *incoming, const SnapWireRegion *theirs) {
    g_autofree char *name = g_strndup(theirs->name, theirs->name_bytes);
    bool huge = theirs->granule_bytes > theirs->page_bytes;
    SnapRegion *region = snap_region_new(name, huge ? SNAP_MEMORY_HUGETLB : SNAP_MEMORY_ANON, theirs->host_address,
                                         theirs->length_bytes);
    region->guest_address = theirs->guest_address;
    region->page_bytes = theirs->page_bytes;
    region->granule_bytes = theirs->granule_bytes;
    return region_new(incoming, region, theirs);
}

gboolean snap_incoming_add_region(SnapIncoming *incoming, GPtrArray *own, const SnapWireRegion *theirs,
                                  GError **error) {
    g_autofree char *name = g_strndup(theirs->name, theirs->name_bytes);
    if (!incoming->guest) {
        g_ptr_array_add(incoming->regions, foreign_new(incoming, theirs));
        return TRUE;
    }
    for (guint i = 0; i < own->len; i++) {
        const SnapRegion *region = g_ptr_array_index(own, i);
        if (strcmp(region->name, name) != 0)
            continue;
        if (!compare(region, theirs, error))
            return FALSE;
        g_ptr_array_add(incoming->regions, region_new(incoming, g_ptr_array_steal_index(own, i), theirs));
        return TRUE;
    }
    return snap_incoming_refuse(error, "there is no region \"%s\" here, or it came twice", name);
}

gboolean snap_incoming_check_regions(const GPtrArray *own, GError **error) {
    if (own->len == 0)
        return TRUE;
    const SnapRegion *left = g_ptr_array_index(own, 0);
    return snap_incoming_refuse(error, "there is no region \"%s\" at the source", left->name);
}

/* ---- another layout -------------------------------------------------------------------------------------- */

const char *snap_incoming_begin_layout(SnapIncoming *incoming, uint64_t n) {
    if (incoming->hello.purpose != SNAP_WIRE_REPLICATE || incoming->link->n_channels > 1)
        return "it may come in a replication over one channel only";
    if (n < 1 || n > SNAP_WIRE_MAX_REGIONS)
        return "the number of regions is out of range";
    incoming->n_layout = n;
    incoming->layout = g_ptr_array_new_with_free_func(snap_incoming_region_free);
    return NULL;
}

/* All are there: they take the place of those before. */
static const char *use_layout(SnapIncoming *incoming) {
    uint64_t total_bytes = 0;
    const char *wrong = snap_incoming_image_change(incoming, incoming->layout);
    if (wrong)
        return wrong;
    for (guint i = 0; i < incoming->layout->len; i++) {
        const SnapIncomingRegion *region = g_ptr_array_index(incoming->layout, i);
        total_bytes += region->region->length_bytes;
    }
    g_ptr_array_unref(incoming->regions);
    incoming->regions = g_steal_pointer(&incoming->layout);
    snap_lock(&incoming->lock);
    incoming->total_bytes = total_bytes;
    snap_unlock(&incoming->lock);
    return NULL;
}

const char *snap_incoming_add_to_layout(SnapIncoming *incoming, const SnapWireRegion *theirs, bool kept) {
    SnapIncomingRegion *region = foreign_new(incoming, theirs);
    region->anew = !kept;
    g_ptr_array_add(incoming->layout, region);
    return incoming->layout->len < incoming->n_layout ? NULL : use_layout(incoming);
}

/* ---- dropping -------------------------------------------------------------------------------------------- */

/* 0 where nothing can be left; -errno where that is not known. */
static int give_back(SnapMemory memory, void *start, uint64_t length_bytes) {
    switch (memory) {
    case SNAP_MEMORY_ANON:
        return madvise(start, length_bytes, MADV_DONTNEED) < 0 ? -errno : 0;
    case SNAP_MEMORY_SHMEM:
    case SNAP_MEMORY_HUGETLB:
        return madvise(start, length_bytes, MADV_REMOVE) < 0 ? -errno : 0;
    default:
        madvise(start, length_bytes, MADV_DONTNEED); /* a private copy; the file's bytes show again */
        return -ENOTSUP;
    }
}

int snap_incoming_drop_range(const SnapIncomingRegion *region, uint64_t offset, uint64_t length_bytes) {
    return give_back(region->region->memory, region->memory + offset, length_bytes);
}

static void wipe(const SnapIncomingRegion *region) {
    uint64_t page_bytes = region->region->page_bytes;
    for (uint64_t at = 0; at < region->region->length_bytes; at += page_bytes) {
        if (!snap_bytes_are_zero(region->memory + at, page_bytes))
            memset(region->memory + at, 0, page_bytes);
    }
}

void snap_incoming_drop_memory(SnapIncoming *incoming) {
    for (guint i = 0; i < incoming->regions->len; i++) {
        const SnapIncomingRegion *region = g_ptr_array_index(incoming->regions, i);
        if (snap_incoming_drop_range(region, 0, region->region->length_bytes) < 0)
            wipe(region);
    }
}
