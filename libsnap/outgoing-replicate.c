/*
 * Replication: the guest as it is at one moment after another, at the other side. See outgoing.h.
 *
 * Happy path: when an epoch is due, the guest stops; what it wrote since the one before is copied into a buffer,
 * and it runs on. Then the copy is sent, with the device state, and END; READY says that it is in force there. The
 * pause is what the guest pays: nothing is sent, hashed or compressed in it.
 *
 * A process maps and unmaps as it likes: where its memory is laid out differently in the pause, the epoch begins
 * with the new layout. What a new mapping holds is sent as well; where that is much, while the guest runs on, and
 * another pause follows.
 *
 * The last one, where the guest is handed over, is a switch-over like any other.
 *
 * Failure modes: whatever fails ends the replication, and the guest runs on. What the other side has is the last
 * epoch that was in force.
 */
#include "outgoing.h"

#include "chunk.h"

#include <sys/mman.h>

/* New memory that is copied in the pause; more of it is sent while the guest runs. And how often, before the guest
 * has to stand for it. */
enum { NEW_MOST_BYTES = 4 << 20, NEW_TIMES = 3 };

/* Pages of one epoch. It stays as large as it ever had to be, so that a pause does not wait for memory. */
typedef struct {
    uint8_t *bytes;
    uint64_t length_bytes;
    uint64_t used_bytes;
    GArray *chunks; /* of SnapKeptChunk */
} Buffer;

static void buffer_clear(Buffer *buffer) {
    if (buffer->bytes) {
        munmap(buffer->bytes, buffer->length_bytes);
    }
    g_array_unref(buffer->chunks);
}

static gboolean buffer_grow(Buffer *buffer, uint64_t needed_bytes, GError **error) {
    if (needed_bytes <= buffer->length_bytes) {
        return TRUE;
    }
    if (buffer->bytes) {
        munmap(buffer->bytes, buffer->length_bytes);
    }
    buffer->length_bytes = needed_bytes + needed_bytes / 4;
    buffer->bytes = mmap(NULL, buffer->length_bytes, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (buffer->bytes != MAP_FAILED) {
        return TRUE;
    }
    buffer->bytes = NULL;
    buffer->length_bytes = 0;
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_NO_SPACE, "no memory for an epoch of %" G_GUINT64_FORMAT " bytes",
                (guint64)needed_bytes);
    return FALSE;
}

static gboolean copy_source(SnapOutgoing *outgoing, guint number, Buffer *buffer, GError **error) {
    SnapSource *source = snap_outgoing_source(outgoing, number);
    uint64_t chunk = 0;
    for (; snap_pageset_next(&source->pages, chunk, UINT64_MAX, &chunk); chunk++) {
        SnapKeptChunk kept = {.place = {number, chunk}, .offset = buffer->used_bytes};
        kept.mask = snap_pageset_take(&source->pages, chunk, UINT64_MAX);
        if (!snap_outgoing_copy(outgoing, kept.place, kept.mask, buffer->bytes + kept.offset, error)) {
            return FALSE;
        }
        buffer->used_bytes += (uint64_t)__builtin_popcountll(kept.mask) * source->area->region->page_bytes;
        g_array_append_val(buffer->chunks, kept);
    }
    return TRUE;
}

/* The guest stands. */
static gboolean copy_all(SnapOutgoing *outgoing, Buffer *buffer, GError **error) {
    g_array_set_size(buffer->chunks, 0);
    buffer->used_bytes = 0;
    if (!buffer_grow(buffer, snap_outgoing_remaining(outgoing), error)) {
        return FALSE;
    }
    for (guint i = 0; i < outgoing->sources->len; i++) {
        if (!copy_source(outgoing, i, buffer, error)) {
            return FALSE;
        }
    }
    return TRUE;
}

/* What is to be copied of memory that the other side has nothing of. */
static uint64_t new_bytes(const SnapOutgoing *outgoing) {
    uint64_t bytes = 0;
    for (guint i = 0; i < outgoing->sources->len; i++) {
        const SnapSource *source = snap_outgoing_source(outgoing, i);
        bytes += source->kept ? 0 : snap_pageset_count(&source->pages) * source->area->region->page_bytes;
    }
    return bytes;
}

/* What a pause has come to. */
typedef struct {
    bool may_delay; /* (in) */
    bool changed;   /* the layout is another one, and is to be announced */
    bool delayed;   /* nothing was copied: too much of it is new */
} Pause;

static gboolean pause_for_epoch(SnapOutgoing *outgoing, Buffer *buffer, Pause *pause, GError **error) {
    if (!snap_outgoing_get_ready(outgoing, error) || !snap_outgoing_stop_guest(outgoing, error) ||
        !snap_outgoing_collect(outgoing, true, NULL, error) ||
        !snap_outgoing_update_layout(outgoing, &pause->changed, error)) {
        return FALSE;
    }
    pause->delayed = pause->may_delay && pause->changed && new_bytes(outgoing) > NEW_MOST_BYTES;
    return pause->delayed || copy_all(outgoing, buffer, error);
}

/* @ret_pause_ns: all that the guest stood. After an error it may stand. */
static gboolean take_epoch(SnapOutgoing *outgoing, Buffer *buffer, uint64_t *ret_pause_ns, GError **error) {
    *ret_pause_ns = 0;
    for (unsigned times = 0;; times++) {
        Pause pause = {.may_delay = times < NEW_TIMES};
        if (!pause_for_epoch(outgoing, buffer, &pause, error) ||
            !snap_outgoing_resume_guest(outgoing, NULL, error)) {
            return FALSE;
        }
        *ret_pause_ns += snap_now_ns() - outgoing->stop_ns;
        if (pause.changed && !snap_outgoing_send_layout(outgoing, error)) {
            return FALSE;
        }
        if (!pause.delayed) {
            return TRUE;
        }
        if (!snap_outgoing_sweep(outgoing, error)) {
            return FALSE;
        }
    }
}

static gboolean send_epoch(SnapOutgoing *outgoing, const Buffer *buffer, uint64_t epoch, GError **error) {
    g_autoptr(GPtrArray) states = snap_outgoing_get_states(outgoing, error);
    return states && snap_outgoing_sweep_kept(outgoing, buffer->chunks, buffer->bytes, error) &&
           snap_outgoing_send_states(outgoing, states, error) &&
           snap_outgoing_send_end(outgoing, 0, epoch, states->len, error) &&
           (outgoing->one_way ? snap_transport_keep(outgoing->transport, error)
                              : snap_outgoing_await_ready(outgoing, epoch, error));
}

static gboolean run_epoch(SnapOutgoing *outgoing, Buffer *buffer, uint64_t epoch, GError **error) {
    uint64_t pause_ns;
    if (!take_epoch(outgoing, buffer, &pause_ns, error) || !send_epoch(outgoing, buffer, epoch, error)) {
        g_prefix_error(error, "epoch %" G_GUINT64_FORMAT ": ", (guint64)epoch);
        return FALSE;
    }
    snap_lock(&outgoing->lock);
    outgoing->stats.epoch = epoch;
    outgoing->stats.epoch_pause_ns = pause_ns;
    snap_unlock(&outgoing->lock);
    if (epoch == 1) {
        snap_outgoing_enter(outgoing, SNAP_MIGRATION_STANDBY);
    }
    return TRUE;
}

static bool is_to_hand_over(SnapOutgoing *outgoing) {
    snap_lock(&outgoing->lock);
    bool wanted = outgoing->wishes.hand_over;
    snap_unlock(&outgoing->lock);
    return wanted;
}

/* Until the next epoch is due, from the last pause on. */
static gboolean wait_until_due(SnapOutgoing *outgoing, GError **error) {
    uint64_t due_ns = outgoing->stop_ns + outgoing->options.epoch_ms * 1000000, now_ns;
    while ((now_ns = snap_now_ns()) < due_ns && !is_to_hand_over(outgoing)) {
        if (!snap_outgoing_doze(outgoing, (due_ns - now_ns + 999999) / 1000000, error)) {
            return FALSE;
        }
    }
    return snap_outgoing_look(outgoing, error);
}

static gboolean run_epochs(SnapOutgoing *outgoing, Buffer *buffer, uint64_t *ret_next, GError **error) {
    uint64_t epoch = 1;
    do {
        if (!run_epoch(outgoing, buffer, epoch++, error) || !wait_until_due(outgoing, error)) {
            return FALSE;
        }
    } while (!is_to_hand_over(outgoing));
    *ret_next = epoch;
    return TRUE;
}

gboolean snap_outgoing_replicate(SnapOutgoing *outgoing, GError **error) {
    Buffer buffer = {.chunks = g_array_new(FALSE, FALSE, sizeof(SnapKeptChunk))};
    uint64_t next;
    gboolean done = run_epochs(outgoing, &buffer, &next, error);
    buffer_clear(&buffer);
    return done && snap_outgoing_switch_over(outgoing, next, error);
}
