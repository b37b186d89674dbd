/* Ranges that are still to be reported; see async-owed.h. */
#include "async-owed.h"

void snap_owed_init(SnapOwed *owed) {
    owed->ranges = g_array_new(FALSE, FALSE, sizeof(SnapBytes));
}

void snap_owed_clear(SnapOwed *owed) {
    g_clear_pointer(&owed->ranges, g_array_unref);
}

static SnapBytes *range(const SnapOwed *owed, guint i) {
    return &g_array_index(owed->ranges, SnapBytes, i);
}

/* Index of the first range that ends behind @start. */
static guint first_range(const SnapOwed *owed, uint64_t start) {
    guint low = 0, high = owed->ranges->len;
    while (low < high) {
        guint mid = low + (high - low) / 2;
        if (range(owed, mid)->end <= start) {
            low = mid + 1;
        } else {
            high = mid;
        }
    }
    return low;
}

void snap_owed_settle(SnapOwed *owed, uint64_t start, uint64_t end) {
    guint i = first_range(owed, start);
    while (i < owed->ranges->len && range(owed, i)->start < end) {
        SnapBytes before = {range(owed, i)->start, start}, behind = {end, range(owed, i)->end};
        g_array_remove_index(owed->ranges, i);
        if (behind.start < behind.end) {
            g_array_insert_val(owed->ranges, i, behind);
        }
        if (before.start < before.end) {
            g_array_insert_val(owed->ranges, i, before);
            i++;
        }
        if (behind.start < behind.end) {
            return;
        }
    }
}

void snap_owed_add(SnapOwed *owed, uint64_t start, uint64_t end) {
    SnapBytes added = {start, end};
    snap_owed_settle(owed, start, end);
    g_array_insert_val(owed->ranges, first_range(owed, start), added);
}

const SnapBytes *snap_owed_next(const SnapOwed *owed, uint64_t start) {
    guint i = first_range(owed, start);
    return i < owed->ranges->len ? range(owed, i) : NULL;
}
