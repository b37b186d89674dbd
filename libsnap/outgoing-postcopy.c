/*
 * Post-copy: the guest runs at the destination, and its memory follows. See outgoing.h.
 *
 * Happy path: in the pause the other side is told which pages it has not got (MISSING); from before END on the
 * thread "snap-urgent" answers what it asks for, at once and on a channel of its own; after STARTED the lanes send
 * everything else, from where the last request was, since what is near to it is likely to be wanted next.
 * ALL_SENT; COMPLETE: then the memory may go.
 *
 * A request is answered whether the page was sent already or not: it may be on its way, behind much else. The
 * other side passes over what it has.
 *
 * Failure modes: any connection that is lost cuts all of them: UNCONNECTED, and the guest there waits where it
 * touches what is missing.
 *
 * Invariant: the guest stands here, so its memory does not change any more, and may be read in any thread.
 */
#include "outgoing.h"

#include "chunk.h"
#include "go-first.h"

#include <sys/eventfd.h>
#include <sys/prctl.h>

/* ---- what is missing ------------------------------------------------------------------------------------- */

/* Whether a fault can be made of a missing page of such memory, at the destination as here. */
static bool may_miss(const SnapRegion *region) {
    switch (region->memory) {
    case SNAP_MEMORY_ANON:
    case SNAP_MEMORY_SHMEM:
    case SNAP_MEMORY_HUGETLB:
        return true;
    default:
        return false;
    }
}

/* What is dropped, and faulted in, at once is missing as a whole. */
static void widen(SnapSource *source) {
    const SnapRegion *region = source->area->region;
    uint64_t per_granule = region->granule_bytes / region->page_bytes,
             n_pages = region->length_bytes / region->page_bytes;
    uint64_t chunk = 0;
    while (per_granule > 1 && snap_pageset_next(&source->pages, chunk, UINT64_MAX, &chunk)) {
        uint64_t mask = snap_pageset_get(&source->pages, chunk);
        while (mask) {
            uint64_t page = chunk * SNAP_CHUNK_PAGES + (uint64_t)__builtin_ctzll(mask);
            uint64_t first = page / per_granule * per_granule, end = MIN(first + per_granule, n_pages);
            uint64_t behind = end - chunk * SNAP_CHUNK_PAGES; /* bits below it are done */
            snap_pageset_add_run(&source->pages, first, end);
            mask = behind < SNAP_CHUNK_PAGES ? mask & (UINT64_MAX << behind) : 0;
        }
        chunk++;
    }
}

static gboolean send_masks(SnapOutgoing *outgoing, const SnapWireMissing *missing, const uint64_t *masks,
                           uint8_t *body, GError **error) {
    return snap_outgoing_send(outgoing, SNAP_WIRE_MISSING, 0, body, snap_wire_encode_missing(missing, masks, body),
                              error);
}

/* One record for each stretch of chunks, holes of few chunks included. */
static gboolean tell_missing(SnapOutgoing *outgoing, guint number, uint64_t *masks, uint8_t *body,
                             GError **error) {
    enum { GAP_MAX = 3 };
    const SnapPageSet *set = &snap_outgoing_source(outgoing, number)->pages;
    SnapWireMissing missing = {.region = number};
    uint64_t chunk = 0;
    for (; snap_pageset_next(set, chunk, UINT64_MAX, &chunk); chunk++) {
        uint64_t behind = missing.first_chunk + missing.n_masks;
        if (missing.n_masks && (chunk - behind > GAP_MAX || chunk - missing.first_chunk >= SNAP_WIRE_MAX_MASKS)) {
            if (!send_masks(outgoing, &missing, masks, body, error)) {
                return FALSE;
            }
            missing.n_masks = 0;
        }
        if (!missing.n_masks) {
            behind = missing.first_chunk = chunk;
        }
        for (; behind <= chunk; behind++) {
            masks[missing.n_masks++] = snap_pageset_get(set, behind);
        }
    }
    return !missing.n_masks || send_masks(outgoing, &missing, masks, body, error);
}

/* What cannot be missing goes at once. */
static gboolean send_others(SnapOutgoing *outgoing, guint number, GError **error) {
    SnapPageSet *set = &snap_outgoing_source(outgoing, number)->pages;
    uint64_t chunk = 0;
    for (; snap_pageset_next(set, chunk, UINT64_MAX, &chunk); chunk++) {
        uint64_t mask = snap_pageset_take(set, chunk, UINT64_MAX);
        SnapLane *lane = &outgoing->lanes[chunk % outgoing->n_lanes];
        if (!snap_outgoing_look(outgoing, error) ||
            !snap_lane_send(lane, (SnapPosition){number, chunk}, mask, error)) {
            return FALSE;
        }
    }
    return TRUE;
}

gboolean snap_outgoing_send_missing(SnapOutgoing *outgoing, GError **error) {
    g_autofree uint64_t *masks = g_new(uint64_t, SNAP_WIRE_MAX_MASKS);
    g_autofree uint8_t *body = g_malloc(SNAP_WIRE_MAX_BODY_BYTES);
    for (guint i = 0; i < outgoing->sources->len; i++) {
        if (!may_miss(snap_outgoing_region(outgoing, i)) && !send_others(outgoing, i, error)) {
            return FALSE;
        }
    }
    for (guint i = 0; i < outgoing->sources->len; i++) {
        widen(snap_outgoing_source(outgoing, i));
        if (!tell_missing(outgoing, i, masks, body, error)) {
            return FALSE;
        }
    }
    return TRUE;
}

/* ---- answering ------------------------------------------------------------------------------------------- */

static gboolean check_request(const SnapOutgoing *outgoing, const SnapWireRequest *request, GError **error) {
    const char *wrong = NULL;
    if (request->region >= outgoing->sources->len) {
        wrong = "there is no such region";
    } else {
        const SnapRegion *region = snap_outgoing_region(outgoing, request->region);
        uint64_t n_pages = region->length_bytes / region->page_bytes;
        if (request->first_page >= n_pages || request->n_pages > n_pages - request->first_page) {
            wrong = "there are no such pages";
        } else if (request->n_pages > region->granule_bytes / region->page_bytes) {
            wrong = "it is for more than can be faulted at once";
        }
    }
    if (wrong) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_PROTOCOL, "REQUEST: %s", wrong);
    }
    return !wrong;
}

static uint64_t mask_of(uint64_t chunk, uint64_t first_page, uint64_t end_page) {
    uint64_t base = chunk * SNAP_CHUNK_PAGES, mask = UINT64_MAX;
    if (first_page > base) {
        mask <<= first_page - base;
    }
    if (end_page < base + SNAP_CHUNK_PAGES) {
        mask &= (UINT64_C(1) << (end_page - base)) - 1;
    }
    return mask;
}

/* The background goes on behind it. */
static void look_there(SnapOutgoing *outgoing, uint32_t region, uint64_t chunk) {
    snap_lock(&outgoing->lock);
    outgoing->wanted = (SnapPosition){region, chunk};
    outgoing->n_wanted++;
    snap_unlock(&outgoing->lock);
}

static gboolean answer(SnapOutgoing *outgoing, const SnapWireRequest *request, GError **error) {
    SnapSource *source = snap_outgoing_source(outgoing, request->region);
    uint64_t end_page = request->first_page + request->n_pages;
    uint64_t chunk = request->first_page / SNAP_CHUNK_PAGES;
    for (uint64_t i = chunk; i * SNAP_CHUNK_PAGES < end_page; i++) {
        uint64_t mask = mask_of(i, request->first_page, end_page);
        snap_pageset_take(&source->pages, i, mask);
        if (!snap_lane_send(&outgoing->urgent, (SnapPosition){request->region, i}, mask, error)) {
            return FALSE;
        }
    }
    __atomic_fetch_add(&outgoing->n_requests, 1, __ATOMIC_RELAXED);
    look_there(outgoing, request->region, chunk);
    return TRUE;
}

static gboolean answer_next(SnapOutgoing *outgoing, uint8_t *body, GError **error) {
    SnapWireHead head;
    SnapWireRequest request;
    if (!snap_channel_receive(&outgoing->urgent.channel, -1, &head, body, error)) {
        return FALSE;
    }
    const char *wrong = head.type != SNAP_WIRE_REQUEST ? "it is not to be sent on this channel"
                                                       : snap_wire_decode_request(&head, body, &request);
    if (wrong) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_PROTOCOL, "record %" G_GUINT64_FORMAT " (%s): %s", head.number,
                    snap_wire_name(head.type), wrong);
        return FALSE;
    }
    return check_request(outgoing, &request, error) && answer(outgoing, &request, error);
}

/* The channel may be idle for as long as it likes; that the other side lives is seen on main. */
static gpointer run_urgent(gpointer data) {
    SnapOutgoing *outgoing = data;
    g_autofree uint8_t *body = g_malloc(SNAP_WIRE_MAX_BODY_BYTES);
    GError *error = NULL;
    prctl(PR_SET_NAME, "snap-urgent");
    snap_go_first(true); /* a guest waits for each answer */
    while (snap_channel_wait(&outgoing->urgent.channel, -1, -1) && answer_next(outgoing, body, &error)) {
    }
    snap_lock(&outgoing->lock);
    outgoing->urgent_error = error;
    outgoing->urgent_ended = true;
    (void)eventfd_write(outgoing->wake_fd, 1);
    snap_unlock(&outgoing->lock);
    return NULL;
}

void snap_outgoing_start_answering(SnapOutgoing *outgoing) {
    outgoing->urgent.thread = g_thread_new("snap-urgent", run_urgent, outgoing);
}

void snap_outgoing_stop_answering(SnapOutgoing *outgoing) {
    if (!outgoing->urgent.thread) {
        return;
    }
    snap_channel_stop(&outgoing->urgent.channel);
    g_thread_join(g_steal_pointer(&outgoing->urgent.thread));
    snap_lock(&outgoing->lock);
    g_clear_error(&outgoing->urgent_error);
    outgoing->urgent_ended = false;
    snap_unlock(&outgoing->lock);
}

/* ---- the rest -------------------------------------------------------------------------------------------- */

static gboolean send_ends(SnapOutgoing *outgoing, GError **error) {
    for (guint i = 1; i < outgoing->n_lanes; i++) {
        if (!snap_lane_end(&outgoing->lanes[i], 0, 0, 0, error)) {
            return FALSE;
        }
    }
    return snap_outgoing_send_id(outgoing, SNAP_WIRE_ALL_SENT, error);
}

gboolean snap_outgoing_send_rest(SnapOutgoing *outgoing, GError **error) {
    snap_outgoing_set_part(outgoing, SNAP_PART_POSTCOPY);
    snap_outgoing_enter(outgoing, SNAP_MIGRATION_POSTCOPY);
    gboolean done = snap_outgoing_sweep(outgoing, error) && send_ends(outgoing, error) &&
                    snap_outgoing_await_id(outgoing, SNAP_WIRE_COMPLETE, error);
    if (done) {
        snap_outgoing_stop_answering(outgoing);
    }
    return done;
}
