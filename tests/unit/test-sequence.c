/*
 * Tests of the test guests' write sequence and of its checker: every state after one write passes, and nothing
 * else.
 */
#include "seqcheck.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* Small pages, so that laps wrap around within a test. */
#define PAGE_BYTES 1024u
#define SLOTS (PAGE_BYTES / SEQ_WORD_BYTES)
#define MAX_PAGES 32u

static const SeqLayout layouts[] = {
    {.pages = 13, .page_bytes = PAGE_BYTES, .touched = 13, .hot = 13, .stride = 8},
    {.pages = 16, .page_bytes = PAGE_BYTES, .touched = 16, .hot = 16, .stride = 1},
    {.pages = 16, .page_bytes = PAGE_BYTES, .touched = 9, .hot = 9, .stride = 7},
    {.pages = 16, .page_bytes = PAGE_BYTES, .touched = 16, .hot = 3, .stride = 5},
    {.pages = 31, .page_bytes = PAGE_BYTES, .touched = 20, .hot = 1, .stride = 19},
    {.pages = 1, .page_bytes = PAGE_BYTES, .touched = 1, .hot = 1, .stride = 1},
};
#define N_LAYOUTS (sizeof(layouts) / sizeof(*layouts))

typedef struct {
    SeqLayout layout;
    SeqCursor cursor;
    uint64_t words[(MAX_PAGES + 1) * SLOTS];
} Guest;

static size_t arena_bytes(const Guest *guest) {
    return (guest->layout.pages + 1) * PAGE_BYTES;
}

static SeqHeader *header_of(Guest *guest) {
    return (SeqHeader *)guest->words;
}

static void start(Guest *guest, const SeqLayout *layout) {
    memset(guest, 0, sizeof(*guest));
    guest->layout = *layout;
    seq_header_init(header_of(guest), layout, 1, 64);
    seq_start(layout, &guest->cursor);
}

/* Go on until @n is the last write done. */
static void run_to(Guest *guest, uint64_t n) {
    while (guest->cursor.n <= n)
        seq_write(&guest->layout, &guest->cursor, guest->words);
}

static bool check(const Guest *guest, SeqReport *ret_report) {
    return seq_check(guest->words, arena_bytes(guest), &guest->layout, ret_report);
}

static uint64_t *page_of(Guest *guest, uint32_t page) {
    return seq_page_words(&guest->layout, guest->words, page);
}

/* ---- the sequence ----------------------------------------------------------------------------------------- */

static void cursor_advanced_is_the_one_sought(void **state) {
    (void)state;
    for (size_t i = 0; i < N_LAYOUTS; i++) {
        SeqCursor advanced, sought;
        memset(&advanced, 0, sizeof(advanced));
        memset(&sought, 0, sizeof(sought));
        seq_start(&layouts[i], &advanced);
        for (uint64_t n = 1; n < 3 * SLOTS * MAX_PAGES; n++) {
            seq_seek(&layouts[i], &sought, n);
            assert_memory_equal(&advanced, &sought, sizeof(sought));
            seq_advance(&layouts[i], &advanced);
        }
    }
}

static void lap_visits_each_page_once(void **state) {
    (void)state;
    for (size_t i = 0; i < N_LAYOUTS; i++) {
        unsigned visits[MAX_PAGES] = {0};
        SeqCursor cursor;
        for (seq_start(&layouts[i], &cursor); cursor.lap == 0; seq_advance(&layouts[i], &cursor))
            assert_int_equal(visits[cursor.page]++, 0);
        assert_int_equal(cursor.n, layouts[i].touched + 1);
    }
}

static void stride_of_any_size_is_valid(void **state) {
    (void)state;
    for (uint32_t pages = 1; pages < 5000; pages++) {
        SeqLayout layout = {pages, PAGE_BYTES, pages, pages, seq_scatter_stride(pages)};
        assert_true(seq_layout_valid(&layout));
    }
}

static void guest_undisturbed_counts_no_error(void **state) {
    Guest guest;

    (void)state;
    for (size_t i = 0; i < N_LAYOUTS; i++) {
        start(&guest, &layouts[i]);
        run_to(&guest, 3 * SLOTS * layouts[i].pages);
        assert_int_equal(header_of(&guest)->errors, 0);
    }
}

/* Whatever a restore gets wrong in a page, the guest sees within the next lap. */
static void guest_with_a_stale_page_counts_an_error(void **state) {
    Guest guest, before;

    (void)state;
    for (size_t i = 0; i < N_LAYOUTS; i++) {
        const SeqLayout *layout = &layouts[i];
        start(&before, layout);
        run_to(&before, 2 * layout->touched);
        guest = before;
        run_to(&guest, 4 * layout->touched); /* page 0 is hot in every layout */
        memcpy(page_of(&guest, 0), page_of(&before, 0), PAGE_BYTES);
        run_to(&guest, 6 * layout->touched);
        assert_int_not_equal(header_of(&guest)->errors, 0);
        assert_int_equal(header_of(&guest)->error_page, 0);
    }
}

static void guest_with_a_torn_first_word_counts_an_error(void **state) {
    Guest guest;

    (void)state;
    start(&guest, &layouts[0]);
    run_to(&guest, 5 * 13);
    page_of(&guest, 4)[0] ^= 1;
    run_to(&guest, 6 * 13);
    assert_int_equal(header_of(&guest)->errors, 1);
    assert_int_equal(header_of(&guest)->error_page, 4);
    assert_int_equal(header_of(&guest)->error_slot, 0);
}

/* ---- the checker: what passes ----------------------------------------------------------------------------- */

static void arena_after_any_write_is_ok(void **state) {
    SeqReport report;
    Guest guest;

    (void)state;
    for (size_t i = 0; i < N_LAYOUTS; i++) {
        start(&guest, &layouts[i]);
        for (uint64_t n = 0; n < 2 * SLOTS * layouts[i].pages + 5; n++) {
            run_to(&guest, n);
            assert_true(check(&guest, &report));
            assert_int_equal(report.n, n);
        }
    }
}

static void arena_with_the_counter_one_behind_is_ok(void **state) {
    SeqReport report;
    Guest guest;

    (void)state;
    start(&guest, &layouts[0]);
    run_to(&guest, 777);
    header_of(&guest)->counter--;
    assert_true(check(&guest, &report));
    assert_int_equal(report.n, 777);
}

static void layout_of_the_header_is_believed(void **state) {
    SeqReport report;
    Guest guest;

    (void)state;
    start(&guest, &layouts[3]);
    run_to(&guest, 1234);
    assert_true(seq_check(guest.words, arena_bytes(&guest), NULL, &report));
    assert_int_equal(report.n, 1234);
}

/* ---- the checker: what does not --------------------------------------------------------------------------- */

static void arena_with_any_bit_flipped_is_wrong(void **state) {
    SeqReport report;
    Guest guest;

    (void)state;
    for (size_t i = 0; i < N_LAYOUTS; i++) {
        start(&guest, &layouts[i]);
        run_to(&guest, 300 + SLOTS * layouts[i].hot / 2);
        for (size_t bit = 3; bit < arena_bytes(&guest) * 8; bit += 61) {
            size_t word = bit / 64;
            uint64_t flipped = UINT64_C(1) << (bit % 64), was = guest.words[word];
            if (word * SEQ_WORD_BYTES >= offsetof(SeqHeader, threads) && word * SEQ_WORD_BYTES < sizeof(SeqHeader))
                continue; /* not part of the state: for people, or checked otherwise */
            guest.words[word] ^= flipped;
            assert_false(check(&guest, &report));
            guest.words[word] = was;
        }
        assert_true(check(&guest, &report));
    }
}

static void arena_with_a_stale_page_is_wrong(void **state) {
    Guest guest, before;
    SeqReport report;

    (void)state;
    start(&before, &layouts[0]);
    run_to(&before, 100);
    guest = before;
    run_to(&guest, 100 + 13);
    memcpy(page_of(&guest, 5), page_of(&before, 5), PAGE_BYTES);
    assert_false(check(&guest, &report));
    assert_int_equal(report.n, 113);
    assert_int_equal(report.wrong_pages, 1);
    assert_int_equal(report.wrong[0].page, 5);
    assert_int_equal(report.wrong[0].found, 0);
}

/* A page with a write that the rest of the arena has not seen yet: each page from N + 1 … N + 13. */
static void arena_with_a_later_page_is_wrong(void **state) {
    Guest guest, after;
    SeqReport report;
    SeqCursor next;

    (void)state;
    for (uint64_t later = 2; later <= 13; later++) {
        start(&guest, &layouts[0]);
        run_to(&guest, 200);
        after = guest;
        run_to(&after, 200 + later);
        seq_seek(&layouts[0], &next, 200 + later);
        memcpy(page_of(&guest, next.page), page_of(&after, next.page), PAGE_BYTES);
        assert_false(check(&guest, &report));
    }
}

/* The page of N + 1 alone makes it the state after N + 1, of which only a header that is older still can tell. */
static void arena_with_the_very_next_page_is_the_next_state(void **state) {
    Guest guest, after;
    SeqReport report;
    SeqCursor next;

    (void)state;
    start(&guest, &layouts[0]);
    run_to(&guest, 200);
    after = guest;
    run_to(&after, 201);
    seq_seek(&layouts[0], &next, 201);
    memcpy(page_of(&guest, next.page), page_of(&after, next.page), PAGE_BYTES);
    assert_true(check(&guest, &report));
    assert_int_equal(report.n, 201);
    header_of(&guest)->counter = 199;
    assert_false(check(&guest, &report));
}

static void arena_with_a_lost_page_is_wrong(void **state) {
    SeqReport report;
    Guest guest;

    (void)state;
    start(&guest, &layouts[3]);
    run_to(&guest, 16);
    memset(page_of(&guest, 15), 0, PAGE_BYTES); /* a cold page, of which nothing tells but itself */
    assert_false(check(&guest, &report));
    assert_int_equal(report.wrong_pages, 1);
    assert_int_equal(report.wrong[0].page, 15);
}

static void arena_with_two_pages_swapped_is_wrong(void **state) {
    uint64_t copy[SLOTS];
    SeqReport report;
    Guest guest;

    (void)state;
    start(&guest, &layouts[1]);
    run_to(&guest, 1000);
    memcpy(copy, page_of(&guest, 3), PAGE_BYTES);
    memcpy(page_of(&guest, 3), page_of(&guest, 11), PAGE_BYTES);
    memcpy(page_of(&guest, 11), copy, PAGE_BYTES);
    assert_false(check(&guest, &report));
    assert_int_equal(report.wrong_pages, 2);
}

static void arena_with_a_torn_page_is_wrong(void **state) {
    Guest guest, before;
    SeqReport report;

    (void)state;
    start(&before, &layouts[0]);
    run_to(&before, 13 * 60);
    guest = before;
    run_to(&guest, 13 * 70);
    memcpy(page_of(&guest, 2) + SLOTS / 2, page_of(&before, 2) + SLOTS / 2, PAGE_BYTES / 2);
    assert_false(check(&guest, &report));
    assert_int_equal(report.wrong_pages, 1);
    assert_int_equal(report.wrong[0].slot, SLOTS / 2);
}

static void header_of_another_instant_is_wrong(void **state) {
    static const int64_t offsets[] = {-13, -2, 1, 2, 64};
    SeqReport report;
    Guest guest;

    (void)state;
    for (size_t i = 0; i < sizeof(offsets) / sizeof(*offsets); i++) {
        start(&guest, &layouts[0]);
        run_to(&guest, 500);
        header_of(&guest)->counter += (uint64_t)offsets[i];
        assert_false(check(&guest, &report));
        assert_int_equal(report.n, 500);
        assert_int_equal(report.wrong_pages, 0);
        assert_string_not_equal(report.problem, "");
    }
}

static void guest_that_counted_an_error_is_wrong(void **state) {
    SeqReport report;
    Guest guest;

    (void)state;
    start(&guest, &layouts[0]);
    run_to(&guest, 500);
    header_of(&guest)->errors = 1;
    assert_false(check(&guest, &report));
}

static void wrong_pages_beyond_ten_are_counted_only(void **state) {
    SeqReport report;
    Guest guest;

    (void)state;
    start(&guest, &layouts[0]);
    run_to(&guest, 500);
    for (uint32_t page = 0; page < 12; page++)
        page_of(&guest, page)[SLOTS - 1] = 1;
    assert_false(check(&guest, &report));
    assert_int_equal(report.n, 500);
    assert_int_equal(report.wrong_pages, 12);
    assert_int_equal(report.wrong[SEQ_WRONG_MAX - 1].page, 9);
}

static void arena_cut_short_is_wrong(void **state) {
    SeqReport report;
    Guest guest;

    (void)state;
    start(&guest, &layouts[0]);
    assert_false(seq_check(guest.words, arena_bytes(&guest) - PAGE_BYTES, NULL, &report));
    assert_false(seq_check(guest.words, sizeof(SeqHeader) - 1, NULL, &report));
    memset(guest.words, 0, PAGE_BYTES);
    assert_false(seq_check(guest.words, arena_bytes(&guest), NULL, &report));
}

/* ---- event areas ------------------------------------------------------------------------------------------ */

#define AREA_ADDRESS UINT64_C(0x10000)
#define AREA_TARGET UINT64_C(0x90000)
#define AREA_PAGES 4u

/* What a page of an area holds: nothing, half of generation 7, all of 7, all of 6. */
typedef enum { Z, HALF_7, G7, G6, HALF_7_6 } Content;

typedef struct {
    SeqEventKind kind;
    SeqPhase phase;
    uint64_t under;
    uint64_t mapped_at; /* where the content is; 0: nowhere */
    Content pages[AREA_PAGES];
    bool legal;
} EventCase;

static const EventCase event_cases[] = {
    {SEQ_EVENT_DONTNEED, SEQ_PHASE_EMPTY, 0, AREA_ADDRESS, {Z, Z, Z, Z}, true},
    {SEQ_EVENT_DONTNEED, SEQ_PHASE_EMPTY, 0, AREA_ADDRESS, {Z, G7, Z, Z}, false},
    {SEQ_EVENT_DONTNEED, SEQ_PHASE_EMPTY, 0, 0, {Z, Z, Z, Z}, false},
    {SEQ_EVENT_DONTNEED, SEQ_PHASE_FILLING, 0, AREA_ADDRESS, {Z, Z, Z, Z}, true},
    {SEQ_EVENT_DONTNEED, SEQ_PHASE_FILLING, 0, AREA_ADDRESS, {G7, HALF_7, Z, Z}, true},
    {SEQ_EVENT_DONTNEED, SEQ_PHASE_FILLING, 0, AREA_ADDRESS, {G7, G7, G7, G7}, true},
    {SEQ_EVENT_DONTNEED, SEQ_PHASE_FILLING, 0, AREA_ADDRESS, {G7, Z, G7, Z}, false},
    {SEQ_EVENT_FORK, SEQ_PHASE_FILLING, 6, AREA_ADDRESS, {G7, HALF_7_6, G6, G6}, true},
    {SEQ_EVENT_FORK, SEQ_PHASE_FILLING, 6, AREA_ADDRESS, {G7, G6, G7, G6}, false},
    {SEQ_EVENT_FORK, SEQ_PHASE_FILLING, 6, AREA_ADDRESS, {G7, G6, Z, G6}, false},
    {SEQ_EVENT_PUNCH, SEQ_PHASE_FULL, 0, AREA_ADDRESS, {G7, G7, G7, G7}, true},
    {SEQ_EVENT_PUNCH, SEQ_PHASE_FULL, 0, AREA_ADDRESS, {Z, Z, Z, Z}, false},
    {SEQ_EVENT_PUNCH, SEQ_PHASE_FULL, 0, AREA_ADDRESS, {G7, G7, G7, G6}, false},
    {SEQ_EVENT_FREE, SEQ_PHASE_DROPPING, 0, AREA_ADDRESS, {G7, Z, G7, Z}, true},
    {SEQ_EVENT_FREE, SEQ_PHASE_DROPPING, 0, AREA_ADDRESS, {G7, HALF_7, G7, Z}, false},
    {SEQ_EVENT_FREE, SEQ_PHASE_DROPPING, 0, 0, {Z, Z, Z, Z}, false},
    {SEQ_EVENT_UNMAP, SEQ_PHASE_DROPPING, 0, AREA_ADDRESS, {G7, G7, G7, G7}, true},
    {SEQ_EVENT_UNMAP, SEQ_PHASE_DROPPING, 0, 0, {Z, Z, Z, Z}, true},
    {SEQ_EVENT_UNMAP, SEQ_PHASE_FULL, 0, 0, {Z, Z, Z, Z}, false},
    {SEQ_EVENT_REMAP, SEQ_PHASE_MOVING, 0, AREA_ADDRESS, {G7, G7, G7, G7}, true},
    {SEQ_EVENT_REMAP, SEQ_PHASE_MOVING, 0, AREA_TARGET, {G7, G7, G7, G7}, true},
    {SEQ_EVENT_REMAP, SEQ_PHASE_MOVING, 0, AREA_TARGET, {G7, Z, G7, G7}, false},
    {SEQ_EVENT_REMAP, SEQ_PHASE_MOVING, 0, 0, {Z, Z, Z, Z}, false},
    {SEQ_EVENT_REMAP, SEQ_PHASE_FULL, 0, AREA_TARGET, {G7, G7, G7, G7}, false},
};

static uint64_t content_word(Content content, uint32_t index) {
    bool first_half = index % SLOTS < SLOTS / 2;

    switch (content) {
    case HALF_7:
        return first_half ? seq_event_word(7, index) : 0;
    case HALF_7_6:
        return seq_event_word(first_half ? 7 : 6, index);
    case G7:
        return seq_event_word(7, index);
    case G6:
        return seq_event_word(6, index);
    case Z:
        break;
    }
    return 0;
}

/* A SeqReadFunc; @opaque is an EventCase. */
static int read_case(void *opaque, uint64_t address, void *ret_data, size_t length_bytes) {
    const EventCase *event = opaque;
    uint64_t *words = ret_data;

    assert_int_equal(length_bytes, AREA_PAGES * PAGE_BYTES);
    if (address != event->mapped_at)
        return 1;
    for (uint32_t i = 0; i < AREA_PAGES * SLOTS; i++)
        words[i] = content_word(event->pages[i / SLOTS], i);
    return 0;
}

static void event_area_in_each_phase_is_legal_or_not(void **state) {
    char problem[SEQ_PROBLEM_BYTES];
    SeqHeader header;

    (void)state;
    for (size_t i = 0; i < sizeof(event_cases) / sizeof(*event_cases); i++) {
        EventCase event = event_cases[i];
        memset(&header, 0, sizeof(header));
        header.events[2] = (SeqEventArea){
            event.kind, event.phase, 7, event.under, AREA_ADDRESS, AREA_TARGET, AREA_PAGES * PAGE_BYTES,
            PAGE_BYTES};
        if (seq_check_events(&header, read_case, &event, problem) != event.legal)
            fail_msg("case %zu: %s", i, problem);
        assert_int_equal(problem[0] == '\0', event.legal);
    }
}

static void event_area_that_makes_no_sense_is_refused(void **state) {
    char problem[SEQ_PROBLEM_BYTES];
    SeqHeader header;

    (void)state;
    memset(&header, 0, sizeof(header));
    header.events[0] = (SeqEventArea){.kind = SEQ_EVENT_MAX, .page_bytes = PAGE_BYTES};
    assert_false(seq_check_events(&header, NULL, NULL, problem));
    header.events[0] = (SeqEventArea){.kind = SEQ_EVENT_FREE};
    assert_false(seq_check_events(&header, NULL, NULL, problem));
}

int main(void) {
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(cursor_advanced_is_the_one_sought),
        cmocka_unit_test(lap_visits_each_page_once),
        cmocka_unit_test(stride_of_any_size_is_valid),
        cmocka_unit_test(guest_undisturbed_counts_no_error),
        cmocka_unit_test(guest_with_a_stale_page_counts_an_error),
        cmocka_unit_test(guest_with_a_torn_first_word_counts_an_error),
        cmocka_unit_test(arena_after_any_write_is_ok),
        cmocka_unit_test(arena_with_the_counter_one_behind_is_ok),
        cmocka_unit_test(layout_of_the_header_is_believed),
        cmocka_unit_test(arena_with_any_bit_flipped_is_wrong),
        cmocka_unit_test(arena_with_a_stale_page_is_wrong),
        cmocka_unit_test(arena_with_a_later_page_is_wrong),
        cmocka_unit_test(arena_with_the_very_next_page_is_the_next_state),
        cmocka_unit_test(arena_with_a_lost_page_is_wrong),
        cmocka_unit_test(arena_with_two_pages_swapped_is_wrong),
        cmocka_unit_test(arena_with_a_torn_page_is_wrong),
        cmocka_unit_test(header_of_another_instant_is_wrong),
        cmocka_unit_test(guest_that_counted_an_error_is_wrong),
        cmocka_unit_test(wrong_pages_beyond_ten_are_counted_only),
        cmocka_unit_test(arena_cut_short_is_wrong),
        cmocka_unit_test(event_area_in_each_phase_is_legal_or_not),
        cmocka_unit_test(event_area_that_makes_no_sense_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
