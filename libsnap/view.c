/* Pages to be told of; see view.h. */
#include "view.h"

#include <glib.h>
#include <sys/mman.h>

enum { WORD_BITS = 64 };

static size_t bitmap_bytes(const SnapView *view) {
    uint64_t n_pages = (view->end - view->start) / view->page_bytes;
    return (size_t)(n_pages / WORD_BITS + 1) * sizeof(uint64_t);
}

void snap_view_init(SnapView *view, uint64_t start, uint64_t end, uint64_t page_bytes) {
    *view = (SnapView){.start = start, .end = end, .page_bytes = page_bytes, .low = UINT64_MAX};
    view->bits =
        mmap(NULL, bitmap_bytes(view), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    g_assert(view->bits != MAP_FAILED);
}

void snap_view_clear(SnapView *view) {
    if (view->bits) {
        munmap(view->bits, bitmap_bytes(view));
    }
    *view = (SnapView){0};
}

bool snap_view_is_empty(const SnapView *view) {
    return view->low >= view->high;
}

/* Bits of word @word that pages [first, end) are. */
static uint64_t mask_of(uint64_t word, uint64_t first, uint64_t end) {
    uint64_t base = word * WORD_BITS, mask = UINT64_MAX;
    if (first > base) {
        mask <<= first - base;
    }
    if (end < base + WORD_BITS) {
        mask &= (UINT64_C(1) << (end - base)) - 1;
    }
    return mask;
}

/* [start, end), cut to the view, in pages; FALSE when nothing is left. */
static bool to_pages(const SnapView *view, uint64_t start, uint64_t end, uint64_t *ret_first, uint64_t *ret_end) {
    start = MAX(start, view->start);
    end = MIN(end, view->end);
    if (start >= end) {
        return false;
    }
    *ret_first = (start - view->start) / view->page_bytes;
    *ret_end = (end - view->start + view->page_bytes - 1) / view->page_bytes;
    return true;
}

void snap_view_mark(SnapView *view, uint64_t start, uint64_t end) {
    uint64_t first, behind;
    if (!to_pages(view, start, end, &first, &behind)) {
        return;
    }
    for (uint64_t word = first / WORD_BITS; word * WORD_BITS < behind; word++) {
        view->bits[word] |= mask_of(word, first, behind);
    }
    view->low = MIN(view->low, first);
    view->high = MAX(view->high, behind);
}

/* The first page in [first, end) whose bit is @set; @end when there is none. */
static uint64_t find(const SnapView *view, uint64_t first, uint64_t end, bool set) {
    for (uint64_t word = first / WORD_BITS; word * WORD_BITS < end; word++) {
        uint64_t bits = (set ? view->bits[word] : ~view->bits[word]) & mask_of(word, first, end);
        if (bits) {
            return word * WORD_BITS + (uint64_t)__builtin_ctzll(bits);
        }
    }
    return end;
}

/* The same, cut to where bits are set. */
static bool to_marked_pages(const SnapView *view, uint64_t start, uint64_t end, uint64_t *ret_first,
                            uint64_t *ret_end) {
    if (!to_pages(view, start, end, ret_first, ret_end)) {
        return false;
    }
    *ret_first = MAX(*ret_first, view->low);
    *ret_end = MIN(*ret_end, view->high);
    return *ret_first < *ret_end;
}

bool snap_view_next(const SnapView *view, uint64_t address, uint64_t end, uint64_t *ret_start, uint64_t *ret_end) {
    uint64_t first, behind;
    if (!to_marked_pages(view, address, end, &first, &behind)) {
        return false;
    }
    uint64_t page = find(view, first, behind, true);
    if (page >= behind) {
        return false;
    }
    *ret_start = view->start + page * view->page_bytes;
    *ret_end = view->start + find(view, page, behind, false) * view->page_bytes;
    return true;
}

void snap_view_unmark(SnapView *view, uint64_t start, uint64_t end) {
    uint64_t first, behind;
    if (!to_marked_pages(view, start, end, &first, &behind)) {
        return;
    }
    for (uint64_t word = first / WORD_BITS; word * WORD_BITS < behind; word++) {
        view->bits[word] &= ~mask_of(word, first, behind);
    }
    if (first <= view->low && behind >= view->high) {
        view->low = UINT64_MAX;
        view->high = 0;
    } else if (first <= view->low) {
        view->low = MAX(view->low, behind);
    }
}
