/*
 * Replication: chunks of an epoch that is not complete.
 *
 * Happy path: each is received into a buffer of its own and checked; when the epoch has its END, all are copied
 * into the guest's memory, in the order in which they came, which cannot fail. Failure modes: an epoch may not be
 * larger than the guest's memory, as its chunks are each sent once; what is dropped was never seen by anybody.
 *
 * Lock: a leaf. Data channels add, snap-incoming takes while they wait for their turn.
 */
#include "incoming.h"

/* A chunk that is kept; its pages follow. */
typedef struct Arrival {
    struct Arrival *next;
    SnapIncomingRegion *region;
    uint64_t chunk;
    uint64_t present;
    uint64_t zero;
    uint8_t pages[];
} Arrival;

struct SnapArrivals {
    /* set before start */
    uint64_t most_bytes; /* all of the guest's memory */
    uint64_t most_chunks;

    /* under lock */
    SnapLock lock;
    Arrival *first;
    Arrival **last; /* where the next one goes */
    uint64_t n_bytes;
    uint64_t n_chunks;
};

SnapArrivals *snap_arrivals_new(SnapIncoming *incoming) {
    SnapArrivals *arrivals = g_new0(SnapArrivals, 1);
    snap_lock_init(&arrivals->lock);
    arrivals->last = &arrivals->first;
    for (guint i = 0; i < incoming->regions->len; i++) {
        const SnapIncomingRegion *region = g_ptr_array_index(incoming->regions, i);
        arrivals->most_bytes += region->region->length_bytes;
        arrivals->most_chunks += region->n_chunks;
    }
    return arrivals;
}

void snap_arrivals_free(SnapArrivals *arrivals) {
    if (!arrivals)
        return;
    snap_arrivals_drop(arrivals);
    snap_lock_clear(&arrivals->lock);
    g_free(arrivals);
}

/* Whether there is room for one more, which is taken then. */
static bool take_room(SnapArrivals *arrivals, uint64_t bytes) {
    snap_lock(&arrivals->lock);
    bool room = arrivals->n_chunks < arrivals->most_chunks && bytes <= arrivals->most_bytes - arrivals->n_bytes;
    if (room) {
        arrivals->n_chunks++;
        arrivals->n_bytes += bytes;
    }
    snap_unlock(&arrivals->lock);
    return room;
}

gboolean snap_arrivals_take(SnapIncomingLane *lane, SnapIncomingRegion *region, const SnapWireChunk *chunk,
                            GError **error) {
    SnapArrivals *arrivals = lane->incoming->arrivals;
    const SnapChunkRecord *record = &chunk->record;
    uint64_t bytes = (uint64_t)__builtin_popcountll(record->present & ~record->zero) * region->region->page_bytes;
    if (!take_room(arrivals, bytes))
        return snap_incoming_wrong(lane, SNAP_WIRE_CHUNK, "the epoch is larger than the guest's memory", error);
    g_autofree Arrival *arrival = g_try_malloc(sizeof(Arrival) + bytes);
    if (!arrival) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "there is no memory for the epoch");
        return FALSE;
    }
    *arrival =
        (Arrival){.region = region, .chunk = chunk->chunk, .present = record->present, .zero = record->zero};
    if (!snap_incoming_read_pages(lane, region, chunk, arrival->pages, error))
        return FALSE;
    snap_lock(&arrivals->lock);
    *arrivals->last = arrival;
    arrivals->last = &arrival->next;
    snap_unlock(&arrivals->lock);
    g_steal_pointer(&arrival);
    return TRUE;
}

/* All of them, which are the caller's. */
static Arrival *steal(SnapArrivals *arrivals) {
    snap_lock(&arrivals->lock);
    Arrival *first = arrivals->first;
    arrivals->first = NULL;
    arrivals->last = &arrivals->first;
    arrivals->n_bytes = arrivals->n_chunks = 0;
    snap_unlock(&arrivals->lock);
    return first;
}

void snap_arrivals_apply(SnapArrivals *arrivals) {
    for (Arrival *at = steal(arrivals), *next = NULL; at; at = next) {
        next = at->next;
        snap_incoming_put_pages(at->region, at->chunk, at->present, at->zero, at->pages);
        g_free(at);
    }
}

void snap_arrivals_drop(SnapArrivals *arrivals) {
    for (Arrival *at = steal(arrivals), *next = NULL; at; at = next) {
        next = at->next;
        g_free(at);
    }
}

bool snap_arrivals_is_empty(SnapArrivals *arrivals) {
    snap_lock(&arrivals->lock);
    bool empty = arrivals->n_chunks == 0;
    snap_unlock(&arrivals->lock);
    return empty;
}
