/*
 * See seqcheck.h. Happy path: layout → highest number in the arena → every page against what it is then.
 *
 * Pages are gone through in address order, twice, so that a file that is not in memory is read ahead by the
 * kernel; the position of each page in its lap comes from the inverse of the stride, one addition a page.
 *
 * Failure modes: a damaged word can look like a higher number than was ever written. Where it decodes to a number
 * whose place is elsewhere it is passed over; otherwise the header's counter proposes a second candidate, and the
 * number that leaves fewer wrong pages is reported.
 */
#include "seqcheck.h"

#include <inttypes.h>
#include <string.h>

/* The inverse of the stride, modulo pages, by Euclid's algorithm. */
static uint32_t inverse_stride(const SeqLayout *layout) {
    int64_t r = layout->pages, next_r = layout->stride, t = 0, next_t = 1;

    while (next_r) {
        int64_t quotient = r / next_r, rest = r % next_r, next = t - quotient * next_t;
        r = next_r;
        next_r = rest;
        t = next_t;
        next_t = next;
    }
    return (uint32_t)(t < 0 ? t + layout->pages : t);
}

static const uint64_t *page_words(const SeqLayout *layout, const void *arena, uint32_t page) {
    return (const uint64_t *)((const char *)arena + ((size_t)page + 1) * layout->page_bytes);
}

/* ---- which write is it ------------------------------------------------------------------------------------ */

/* Whether write @n stores into this very word. */
static bool belongs_here(const SeqLayout *layout, uint64_t n, uint32_t page, uint32_t slot) {
    SeqCursor cursor;

    if (n == 0 || n >> 62)
        return false;
    seq_seek(layout, &cursor, n);
    return cursor.page == page && cursor.slot == slot;
}

static uint64_t highest_in_page(const SeqLayout *layout, const uint64_t *words, uint32_t page, uint64_t highest) {
    uint32_t slots = seq_slots(layout);

    for (uint32_t slot = 0; slot < slots; slot++) {
        uint64_t n = words[slot] ^ SEQ_KEY;
        if (words[slot] && n > highest && belongs_here(layout, n, page, slot))
            highest = n;
    }
    return highest;
}

static uint64_t highest_number(const SeqLayout *layout, const void *arena) {
    uint64_t highest = 0;

    for (uint32_t page = 0; page < layout->pages; page++)
        highest = highest_in_page(layout, page_words(layout, arena, page), page, highest);
    return highest;
}

/* ---- every byte against it -------------------------------------------------------------------------------- */

/* Number of the write at position @index of lap @lap. */
static uint64_t number_at(const SeqLayout *layout, uint64_t lap, uint32_t index) {
    return 1 + index + (lap ? layout->touched + (lap - 1) * layout->hot : 0);
}

/* Compare slots [start, end), written in the laps from @lap on. Return: the first wrong slot, or @end. */
static uint32_t compare_run(const SeqLayout *layout, const uint64_t *words, uint32_t index, uint64_t lap,
                            uint32_t start, uint32_t end) {
    uint64_t n = number_at(layout, lap, index), step = layout->hot, different = 0;

    if (lap == 0 && start < end) { /* the step from lap 0 to lap 1 is another one */
        if (words[start] != seq_word(n))
            return start;
        n = number_at(layout, 1, index);
        start++;
    }
    for (uint32_t slot = start; slot < end; slot++)
        different |= words[slot] ^ (n + (slot - start) * step) ^ SEQ_KEY;
    if (!different)
        return end;
    while (words[start] == seq_word(n)) {
        n += step;
        start++;
    }
    return start;
}

static uint32_t compare_zeros(const uint64_t *words, uint32_t start, uint32_t end) {
    uint64_t different = 0;

    for (uint32_t slot = start; slot < end; slot++)
        different |= words[slot];
    if (!different)
        return end;
    while (!words[start])
        start++;
    return start;
}

/* @laps: how many laps have written to this page. Return: the first wrong slot, or the number of slots. */
static uint32_t compare_page(const SeqLayout *layout, const uint64_t *words, uint32_t index, uint64_t laps) {
    uint32_t slots = seq_slots(layout), wrong;
    uint32_t written = laps < slots ? (uint32_t)laps : slots; /* slots that are not zero */
    uint32_t again = (uint32_t)(laps & (slots - 1));          /* slots that the latest round has reached */
    uint64_t round = laps - again;                            /* its first lap */

    if (laps < slots) {
        wrong = compare_run(layout, words, index, 0, 0, written);
        return wrong < written ? wrong : compare_zeros(words, written, slots);
    }
    wrong = compare_run(layout, words, index, round, 0, again);
    return wrong < again ? wrong : compare_run(layout, words, index, round - slots + again, again, slots);
}

static uint64_t expected_word(const SeqLayout *layout, uint32_t index, uint64_t laps, uint32_t slot) {
    uint32_t slots = seq_slots(layout);
    uint64_t lap;

    if (slot >= laps)
        return 0;
    lap = (laps - 1) - ((laps - 1 - slot) & (slots - 1));
    return seq_word(number_at(layout, lap, index));
}

static void add_wrong(SeqReport *report, uint32_t page, uint32_t slot, uint64_t found, uint64_t expected) {
    if (report->wrong_pages < SEQ_WRONG_MAX)
        report->wrong[report->wrong_pages] = (SeqWrong){page, slot, found, expected};
    report->wrong_pages++;
}

/* Compare all data pages with the state after write report->n. */
static void compare_arena(const SeqLayout *layout, const void *arena, SeqReport *report) {
    uint32_t inverse = inverse_stride(layout), index = 0, slots = seq_slots(layout);
    SeqCursor last = {0};

    if (report->n)
        seq_seek(layout, &last, report->n);
    for (uint32_t page = 0; page < layout->pages; page++) {
        const uint64_t *words = page_words(layout, arena, page);
        uint64_t laps = 0;
        if (report->n && index < layout->touched) /* lap 0, and for hot pages the later ones up to the last */
            laps = index < layout->hot || last.lap == 0 ? last.lap + (index <= last.index) : 1;
        uint32_t slot = compare_page(layout, words, index, laps);
        if (slot < slots)
            add_wrong(report, page, slot, words[slot], expected_word(layout, index, laps, slot));
        index = (uint32_t)(((uint64_t)index + inverse) % layout->pages);
    }
}

/* ---- the header ------------------------------------------------------------------------------------------- */

bool seq_read_layout(const void *arena, size_t length_bytes, SeqLayout *ret_layout) {
    SeqHeader header;
    SeqLayout layout;

    if (length_bytes < sizeof(header))
        return false;
    memcpy(&header, arena, sizeof(header));
    if (memcmp(header.magic, SEQ_MAGIC, sizeof(header.magic)) != 0 ||
        (header.page_bytes | header.pages | header.touched | header.hot | header.stride) > UINT32_MAX)
        return false;
    layout = (SeqLayout){(uint32_t)header.pages, (uint32_t)header.page_bytes, (uint32_t)header.touched,
                         (uint32_t)header.hot, (uint32_t)header.stride};
    if (!seq_layout_valid(&layout))
        return false;
    *ret_layout = layout;
    return true;
}

static bool same_layout(const SeqLayout *a, const SeqLayout *b) {
    return a->pages == b->pages && a->page_bytes == b->page_bytes && a->touched == b->touched &&
           a->hot == b->hot && a->stride == b->stride;
}

static bool reserved_is_zero(const SeqLayout *layout, const SeqHeader *header) {
    const unsigned char *bytes = (const unsigned char *)header;
    unsigned different = 0;

    for (size_t i = 0; i < sizeof(header->reserved1); i++)
        different |= ((const unsigned char *)header->reserved1)[i];
    for (size_t i = 0; i < sizeof(header->reserved2); i++)
        different |= ((const unsigned char *)header->reserved2)[i];
    for (size_t i = sizeof(*header); i < layout->page_bytes; i++)
        different |= bytes[i];
    return !different;
}

static void check_header(const SeqLayout *layout, const void *arena, size_t length_bytes, SeqReport *report) {
    const SeqHeader *header = arena;
    SeqLayout said;

    if (!seq_read_layout(arena, length_bytes, &said) || !same_layout(layout, &said))
        snprintf(report->problem, sizeof(report->problem), "the header's magic or layout is wrong");
    else if (header->counter != report->n && header->counter + 1 != report->n)
        snprintf(report->problem, sizeof(report->problem),
                 "the header's counter is %" PRIu64 ", the arena's N %" PRIu64, header->counter, report->n);
    else if (header->errors || header->event_errors)
        snprintf(report->problem, sizeof(report->problem),
                 "the guest itself counted %" PRIu64 " errors in the arena and %" PRIu64
                 " in event areas, the first in page %" PRIu64 " slot %" PRIu64,
                 header->errors, header->event_errors, header->error_page, header->error_slot);
    else if (!reserved_is_zero(layout, header))
        snprintf(report->problem, sizeof(report->problem), "the header page has bytes that must be zero");
}

/* ---- both ------------------------------------------------------------------------------------------------- */

/* The state after write @n, if that explains the arena better than what @report has. */
static void try_number(const SeqLayout *layout, const void *arena, uint64_t n, SeqReport *report) {
    SeqReport other = {.n = n, .counter = report->counter};

    if (n == report->n || n >> 62)
        return;
    compare_arena(layout, arena, &other);
    if (other.wrong_pages < report->wrong_pages)
        *report = other;
}

bool seq_check(const void *arena, size_t length_bytes, const SeqLayout *layout, SeqReport *ret_report) {
    SeqLayout said;
    SeqReport report = {0};

    if (!layout && !seq_read_layout(arena, length_bytes, &said)) {
        snprintf(report.problem, sizeof(report.problem), "there is no header that makes sense");
        *ret_report = report;
        return false;
    }
    if (!layout)
        layout = &said;
    if (!seq_layout_valid(layout) || length_bytes / layout->page_bytes < (uint64_t)layout->pages + 1) {
        snprintf(report.problem, sizeof(report.problem), "%zu bytes are less than the arena has", length_bytes);
        *ret_report = report;
        return false;
    }
    report.counter = ((const SeqHeader *)arena)->counter;
    report.n = highest_number(layout, arena);
    compare_arena(layout, arena, &report);
    if (report.wrong_pages) {
        try_number(layout, arena, report.counter + 1, &report);
        try_number(layout, arena, report.counter, &report);
    }
    check_header(layout, arena, length_bytes, &report);
    *ret_report = report;
    return report.wrong_pages == 0 && !report.problem[0];
}

static void print_wrong(FILE *file, const SeqWrong *wrong) {
    fprintf(file, "wrong page=%" PRIu32 " slot=%" PRIu32 " found=", wrong->page, wrong->slot);
    if (!wrong->found)
        fprintf(file, "zero");
    else if ((wrong->found ^ SEQ_KEY) >> 62)
        fprintf(file, "0x%016" PRIx64, wrong->found);
    else
        fprintf(file, "write-%" PRIu64, wrong->found ^ SEQ_KEY);
    if (wrong->expected)
        fprintf(file, " expected=write-%" PRIu64 "\n", wrong->expected ^ SEQ_KEY);
    else
        fprintf(file, " expected=zero\n");
}

void seq_print_report(FILE *file, const SeqReport *report) {
    uint64_t listed = report->wrong_pages < SEQ_WRONG_MAX ? report->wrong_pages : SEQ_WRONG_MAX;

    if (!report->wrong_pages && !report->problem[0]) {
        fprintf(file, "ok N=%" PRIu64 " counter=%" PRIu64 "\n", report->n, report->counter);
        return;
    }
    for (uint64_t i = 0; i < listed; i++)
        print_wrong(file, &report->wrong[i]);
    if (report->wrong_pages)
        fprintf(file, "%" PRIu64 " pages are not as after write N=%" PRIu64 " (counter=%" PRIu64 ")\n",
                report->wrong_pages, report->n, report->counter);
    if (report->problem[0])
        fprintf(file, "header: %s\n", report->problem);
}
