/*
 * What is spared from protection: when the guest is asked for it. See spared.h for why.
 *
 * Asked often before anything is protected, since a lock that is fought for is seen only while somebody waits for
 * it; before each round, where that does not lengthen the round by much; and in the pause, when the answer is
 * exact.
 */
#include "save.h"

#include <unistd.h>

#include "spared.h"

enum {
    LOOKS = 16,
    STEP_US = 200,
};

#define AHEAD_NS UINT64_C(10000000)

/* What is written past the page tables cannot be protected either. Return: how many pages it is. */
static uint64_t list_unseen(const SnapSave *save, GArray *addresses) {
    g_autoptr(GArray) ranges = g_array_new(FALSE, FALSE, sizeof(SnapRange));
    snap_guest_list_unseen(save->guest, ranges);
    for (guint i = 0; i < ranges->len; i++) {
        SnapRange range = g_array_index(ranges, SnapRange, i);
        uint64_t page_bytes = save->tracker->page_bytes, end = range.address + range.length_bytes;
        for (uint64_t page = range.address / page_bytes * page_bytes; page < end; page += page_bytes) {
            g_array_append_val(addresses, page);
        }
    }
    return addresses->len;
}

uint64_t snap_save_spare(SnapSave *save, gboolean paused) {
    uint64_t begin_ns = snap_now_ns();
    g_autoptr(GArray) addresses = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    if (!paused || save->has_unseen) { /* the question takes a while */
        save->has_unseen = list_unseen(save, addresses) > 0;
    }
    snap_guest_list_spared(save->guest, paused, addresses);
    snap_spared_add(save->tracker, addresses);
    return snap_now_ns() - begin_ns;
}

void snap_save_spare_ahead(SnapSave *save) {
    uint64_t end_ns = snap_now_ns() + AHEAD_NS;
    for (int i = 0; i < LOOKS && save->guest->ops->list_spared && snap_now_ns() < end_ns; i++) {
        save->spare_ns = snap_save_spare(save, FALSE);
        usleep(STEP_US);
    }
}

gboolean snap_save_check_unseen(const SnapSave *save, uint32_t pool_pages, GError **error) {
    g_autoptr(GArray) addresses = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    uint64_t pages = list_unseen(save, addresses);
    if (pages <= pool_pages / 2) {
        return TRUE;
    }
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_USAGE,
                "%" G_GUINT64_FORMAT
                " KiB of the guest are written past the page tables, and the buffer is too small to "
                "hold them: give it more by --buffer",
                (guint64)(pages * save->tracker->page_bytes >> 10));
    return FALSE;
}
