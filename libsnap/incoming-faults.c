/*
 * Post-copy: who waits for a page, and the asking for it: the thread "snap-missing".
 *
 * Happy path: somebody touches a page that is missing; the kernel says so; the page is asked for on the urgent
 * channel, and what is answered is put in place.
 *
 * Failure modes: a fault where nothing is missing is a page that the guest never had, or has discarded: zeros, at
 * once. A channel that fails leaves who waits waiting; what was asked for is asked for again on the next one. An
 * answer that does not come in the time of silence is a failed channel too: others may well speak.
 *
 * Invariant: whatever happens to the connection, the thread reads faults and events as long as anything is
 * registered: a guest that discards memory waits for that.
 */
#include "incoming-missing.h"

#include "go-first.h"
#include "uffd.h"

#include <poll.h>
#include <unistd.h>

enum {
    MESSAGES_AT_A_TIME = 16, /* between looks at the channel */
    EVENT_STEP_US = 50,      /* between tries while an event is to be read by the other thread */
};

/* ---- asking ---------------------------------------------------------------------------------------------- */

static bool is_vain_locked(const SnapMissing *missing) SNAP_REQUIRES(missing->lock) {
    return missing->loading && missing->lost;
}

/* They fault again, and are answered by what holds then. */
static void wake_all(const SnapMissing *missing) {
    const GPtrArray *regions = missing->incoming->regions;
    for (guint i = 0; i < regions->len; i++) {
        const SnapIncomingRegion *region = g_ptr_array_index(regions, i);
        if (region->missing)
            snap_uffd_wake(missing->uffd, region->region->host_address, region->region->length_bytes);
    }
}

static void lane_failed(SnapMissing *missing, GError *error) {
    missing->broken = missing->lane;
    snap_incoming_lane_failed(missing->lane, error);
    snap_lock(&missing->lock);
    missing->lost = true;
    bool vain = is_vain_locked(missing);
    snap_unlock(&missing->lock);
    if (vain)
        wake_all(missing);
}

static bool can_ask(const SnapMissing *missing) {
    return missing->lane && missing->lane != missing->broken;
}

/* What the source takes at once, as far as it is no more than we fault at once. */
static uint64_t request_pages(const SnapIncomingRegion *region) {
    uint64_t granule = MIN(region->region->granule_bytes, region->source_granule_bytes);
    return MAX(granule / region->region->page_bytes, 1);
}

static void send_request(SnapMissing *missing, uint32_t number, uint64_t page, uint64_t n_pages) {
    const SnapWireRequest request = {.region = number, .n_pages = (uint32_t)n_pages, .first_page = page};
    GError *error = NULL;
    uint8_t body[32];
    uint32_t body_bytes = snap_wire_encode_request(&request, body);
    missing->asked_us = g_get_monotonic_time();
    __atomic_add_fetch(&missing->incoming->requests, 1, __ATOMIC_RELAXED);
    if (!snap_channel_send(&missing->lane->channel, SNAP_WIRE_REQUEST, 0, body, body_bytes, NULL, 0, &error))
        lane_failed(missing, error);
}

/* Ask for those of pages [page, end) that are missing and asked for. Without a channel they are noted, and asked
 * for on the next one. */
static void ask(SnapMissing *missing, uint32_t number, uint64_t page, uint64_t end) {
    const SnapIncomingRegion *region = g_ptr_array_index(missing->incoming->regions, number);
    uint64_t step = request_pages(region);
    for (page -= page % step; page < end && can_ask(missing); page += step) {
        uint64_t n = MIN(step, snap_missing_pages(region) - page);
        snap_lock(&missing->lock);
        bool due = snap_missing_count(region->asked, page, page + n) > 0;
        snap_unlock(&missing->lock);
        if (due)
            send_request(missing, number, page, n);
    }
}

/* A chunk after the other; of huge pages a granule, so that it is asked for once. */
static void ask_again_in(SnapMissing *missing, uint32_t number) {
    const SnapIncomingRegion *region = g_ptr_array_index(missing->incoming->regions, number);
    uint64_t step = MAX(request_pages(region), SNAP_CHUNK_PAGES), n_pages = snap_missing_pages(region);
    for (uint64_t page = 0; page < n_pages; page += step) {
        uint64_t end = MIN(page + step, n_pages);
        snap_lock(&missing->lock);
        bool due = snap_missing_count(region->asked, page, end) > 0;
        snap_unlock(&missing->lock);
        if (due)
            ask(missing, number, page, end);
    }
}

/* On a new channel: all that somebody waits for. */
static void ask_again(SnapMissing *missing) {
    const GPtrArray *regions = missing->incoming->regions;
    for (guint i = 0; i < regions->len; i++) {
        const SnapIncomingRegion *region = g_ptr_array_index(regions, i);
        if (region->asked)
            ask_again_in(missing, i);
    }
}

/* ---- faults and events ----------------------------------------------------------------------------------- */

/* The region at @address that has anything missing; G_MAXUINT32: none. */
static uint32_t find_region(const SnapMissing *missing, uint64_t address) {
    const GPtrArray *regions = missing->incoming->regions;
    for (guint i = 0; i < regions->len; i++) {
        const SnapIncomingRegion *region = g_ptr_array_index(regions, i);
        if (region->missing && address >= region->region->host_address &&
            address - region->region->host_address < region->region->length_bytes)
            return i;
    }
    return G_MAXUINT32;
}

/* Zeros. Whoever waits is woken in any case: if there is nothing yet, it faults again. */
static void give_zeros(SnapMissing *missing, const SnapIncomingRegion *region, uint64_t page) {
    uint64_t length = region->region->granule_bytes;
    uint64_t address = region->region->host_address + page * region->region->page_bytes;
    int64_t done = snap_missing_is_huge(region) ? snap_uffd_copy(missing->uffd, address, missing->zeros, length)
                                                : snap_uffd_zero(missing->uffd, address, length);
    if (done < 0)
        snap_uffd_wake(missing->uffd, address, length);
}

static void note_asked_locked(SnapMissing *missing, SnapIncomingRegion *region, uint64_t page, uint64_t end)
    SNAP_REQUIRES(missing->lock) {
    for (; page < end; page++) {
        if (snap_missing_count(region->missing, page, page + 1) == 0 ||
            snap_missing_count(region->asked, page, page + 1) > 0)
            continue;
        snap_missing_set(region->asked, page, page + 1);
        missing->n_asked++;
    }
}

/* What is to be asked for. Return: FALSE, nothing is. */
static bool serve_fault_locked(SnapMissing *missing, uint64_t address, uint32_t *ret_number, uint64_t *ret_page,
                               uint64_t *ret_end) SNAP_REQUIRES(missing->lock) {
    uint32_t number = find_region(missing, address);
    if (number == G_MAXUINT32)
        return false;
    SnapIncomingRegion *region = g_ptr_array_index(missing->incoming->regions, number);
    uint64_t granule = snap_missing_granule_pages(region);
    uint64_t page = (address - region->region->host_address) / region->region->page_bytes;
    page -= page % granule;
    if (snap_missing_is_there_locked(missing, region, page) || is_vain_locked(missing)) {
        give_zeros(missing, region, page);
        return false;
    }
    bool asked = snap_missing_count(region->asked, page, page + granule) > 0;
    note_asked_locked(missing, region, page, page + granule);
    *ret_number = number;
    *ret_page = page;
    *ret_end = page + granule;
    return !asked;
}

static void serve_fault(SnapMissing *missing, uint64_t address) {
    uint32_t number = 0;
    uint64_t page = 0, end = 0;
    snap_lock(&missing->lock);
    bool due = serve_fault_locked(missing, address, &number, &page, &end);
    snap_unlock(&missing->lock);
    if (due)
        ask(missing, number, page, end);
}

static void discard_locked(SnapMissing *missing, SnapIncomingRegion *region, uint64_t page, uint64_t end)
    SNAP_REQUIRES(missing->lock) {
    uint64_t granule = snap_missing_granule_pages(region);
    for (; page < end; page += granule) {
        if (snap_missing_is_there_locked(missing, region, page))
            continue;
        if (region->parts)
            g_clear_pointer(&region->parts[page / granule], g_free);
        snap_missing_note_locked(missing, region, page, page + granule);
    }
}

/* [start, end) is about to be discarded; who waits there finds zeros then. */
static void serve_remove(SnapMissing *missing, uint64_t start, uint64_t end) {
    const GPtrArray *regions = missing->incoming->regions;
    snap_lock(&missing->lock);
    for (guint i = 0; i < regions->len; i++) {
        SnapIncomingRegion *region = g_ptr_array_index(regions, i);
        uint64_t base = region->region->host_address, page_bytes = region->region->page_bytes;
        uint64_t from = MAX(start, base), to = MIN(end, base + region->region->length_bytes);
        if (!region->missing || from >= to)
            continue;
        discard_locked(missing, region, (from - base) / page_bytes, (to - base) / page_bytes);
        snap_uffd_wake(missing->uffd, from, to - from);
    }
    snap_unlock(&missing->lock);
}

static void serve_messages(SnapMissing *missing) {
    struct uffd_msg msg;
    for (int i = 0; i < MESSAGES_AT_A_TIME && snap_uffd_read(missing->uffd, &msg) == 1; i++) {
        if (msg.event == UFFD_EVENT_PAGEFAULT)
            serve_fault(missing, msg.arg.pagefault.address);
        else if (msg.event == UFFD_EVENT_REMOVE)
            serve_remove(missing, msg.arg.remove.start, msg.arg.remove.end);
    }
}

void snap_missing_let_events_go(SnapMissing *missing, const SnapIncomingLane *lane) {
    if (lane->number == SNAP_WIRE_URGENT)
        serve_messages(missing);
    g_usleep(EVENT_STEP_US);
}

/* ---- the thread ------------------------------------------------------------------------------------------ */

/* FALSE: it is to end. */
static bool take_lane(SnapMissing *missing) {
    snap_lock(&missing->lock);
    bool new = missing->lane != missing->wanted;
    missing->lane = missing->wanted;
    bool stop = missing->stop;
    bool armed = missing->armed; /* before that the masks are not this thread's */
    missing->lost = missing->lost && !new;
    snap_cond_broadcast(&missing->changed);
    snap_unlock(&missing->lock);
    if (new) {
        missing->broken = NULL;
        if (missing->lane && armed)
            ask_again(missing);
    }
    return !stop;
}

static void serve_lane(SnapMissing *missing) {
    SnapIncomingLane *lane = missing->lane;
    GError *error = NULL;
    SnapWireHead head;
    if (!snap_channel_receive(&lane->channel, -1, &head, lane->body, &error)) {
        lane_failed(missing, error);
        return;
    }
    bool ok = head.type == SNAP_WIRE_CHUNK
                  ? snap_incoming_take_chunk(lane, &head, &error)
                  : snap_incoming_wrong(lane, head.type, "the urgent channel has no such record", &error);
    if (!ok)
        lane_failed(missing, error);
}

/* Until an answer has to be there; -1: nothing was asked for. */
static int answer_due_ms(SnapMissing *missing) {
    if (!can_ask(missing))
        return -1;
    snap_lock(&missing->lock);
    bool waits = missing->n_asked > 0;
    snap_unlock(&missing->lock);
    const SnapChannel *channel = &missing->lane->channel;
    int64_t since_us = MAX(missing->asked_us, __atomic_load_n(&channel->received_us, __ATOMIC_RELAXED));
    int64_t silent_ms = (g_get_monotonic_time() - since_us) / 1000;
    return waits ? (int)CLAMP((int64_t)channel->silence_ms - silent_ms, 0, G_MAXINT) : -1;
}

static void give_up_lane(SnapMissing *missing) {
    GError *error = NULL;
    g_set_error(&error, SNAP_ERROR, SNAP_ERROR_TIMED_OUT, "a page that was asked for does not come");
    lane_failed(missing, error);
}

gpointer snap_missing_run(gpointer data) {
    SnapMissing *missing = data;
    snap_go_first(true); /* the guest waits for this thread */
    while (take_lane(missing)) {
        struct pollfd fds[] = {{.fd = missing->uffd, .events = POLLIN},
                               {.fd = missing->wake_fd, .events = POLLIN},
                               {.fd = can_ask(missing) ? missing->lane->channel.in : -1, .events = POLLIN},
                               {.fd = can_ask(missing) ? missing->lane->channel.stop_fd : -1, .events = POLLIN}};
        int left_ms = answer_due_ms(missing);
        int n = poll(fds, G_N_ELEMENTS(fds), left_ms);
        uint64_t count = 0;
        if (fds[1].revents && read(missing->wake_fd, &count, sizeof count) < 0)
            continue;
        if (fds[0].revents)
            serve_messages(missing);
        if ((fds[2].revents || fds[3].revents) && can_ask(missing))
            serve_lane(missing); /* which fails where it was stopped */
        if (n == 0 && left_ms >= 0 && answer_due_ms(missing) == 0)
            give_up_lane(missing);
    }
    return NULL;
}
