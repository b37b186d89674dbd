/*
 * Blobs of device state, put together from STATE records.
 *
 * Happy path: a record that begins a blob, others that continue it, the one that completes it; END checks that all
 * that were begun are whole. Failure modes: a text that says what is wrong. Room is taken as bytes come, never for
 * what a record merely announces.
 */
#include "incoming.h"

static void clear_blob(SnapIncoming *incoming) {
    g_clear_pointer(&incoming->blob.name, g_free);
    g_clear_pointer(&incoming->blob.data, g_byte_array_unref);
}

static bool is_known(const GPtrArray *states, const char *name) {
    for (guint i = 0; i < states->len; i++) {
        const SnapState *state = g_ptr_array_index(states, i);
        if (strcmp(state->name, name) == 0)
            return true;
    }
    return false;
}

static const char *begin_blob(SnapIncoming *incoming, const SnapWireState *state) {
    g_autofree char *name = g_strndup(state->name, state->name_bytes);
    if (state->offset_bytes != 0)
        return "the beginning of the blob is missing";
    if (is_known(incoming->next_states, name))
        return "there is such a blob already";
    if (incoming->next_states->len == SNAP_WIRE_MAX_STATES)
        return "too many blobs of state";
    incoming->blob.name = g_steal_pointer(&name);
    incoming->blob.data = g_byte_array_new();
    incoming->blob.total_bytes = state->total_bytes;
    return NULL;
}

static const char *check_blob(const SnapIncoming *incoming, const SnapWireState *state) {
    if (strlen(incoming->blob.name) != state->name_bytes ||
        memcmp(incoming->blob.name, state->name, state->name_bytes) != 0)
        return "the blob before it is not complete";
    if (incoming->blob.total_bytes != state->total_bytes || incoming->blob.data->len != state->offset_bytes)
        return "it does not continue the blob";
    return NULL;
}

const char *snap_incoming_add_state(SnapIncoming *incoming, const SnapWireState *state) {
    const char *wrong = incoming->blob.name ? check_blob(incoming, state) : begin_blob(incoming, state);
    if (wrong)
        return wrong;
    incoming->blob_bytes += state->data_bytes;
    if (incoming->blob_bytes > SNAP_WIRE_MAX_STATE_BYTES)
        return "the device state is longer than it may be";
    g_byte_array_append(incoming->blob.data, state->data, state->data_bytes);
    if (incoming->blob.data->len < incoming->blob.total_bytes)
        return NULL;
    GBytes *data = g_byte_array_free_to_bytes(g_steal_pointer(&incoming->blob.data));
    g_ptr_array_add(incoming->next_states, snap_state_new(incoming->blob.name, data));
    clear_blob(incoming);
    return NULL;
}

const char *snap_incoming_check_states(SnapIncoming *incoming, uint64_t n) {
    if (incoming->blob.name)
        return "a blob of state is not complete";
    return incoming->next_states->len == n ? NULL : "another number of blobs was sent than has come";
}

void snap_incoming_drop_states(SnapIncoming *incoming) {
    clear_blob(incoming);
    incoming->blob_bytes = 0;
    if (incoming->next_states)
        g_ptr_array_set_size(incoming->next_states, 0);
}
