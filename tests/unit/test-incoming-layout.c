/*
 * The destination of a replication whose guest has other regions than it had: LAYOUT. What is kept goes on, what
 * is new under a name that was there hides it, and what cannot be is refused.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "expect.h"
#include "incoming-fixture.h"

enum { KEPT = SNAP_WIRE_KEPT, NEW = 0 };

/* A region as the rig has it; @name, @n_pages: (0: as it is) otherwise. */
static void say_region(Rig *rig, unsigned number, uint16_t flags, const char *name, uint64_t n_pages) {
    const RigRegion *region = &rig->regions[number];
    const char *said = name ? name : region->name;
    uint8_t body[1152];
    const SnapWireRegion record = {.guest_address = region->guest_address,
                                   .length_bytes = (n_pages ? n_pages : region->n_pages) * rig->page,
                                   .page_bytes = rig->page,
                                   .granule_bytes = rig->page,
                                   .host_address = (uintptr_t)region->data,
                                   .name = said,
                                   .name_bytes = (uint16_t)strlen(said)};
    hand_say(&rig->main, SNAP_WIRE_REGION, flags, body, snap_wire_encode_region(&record, body));
}

/* Both regions again. */
static void say_layout(Rig *rig, uint16_t first, uint16_t second) {
    hand_say_number(&rig->main, SNAP_WIRE_LAYOUT, 2);
    say_region(rig, 0, first, NULL, 0);
    say_region(rig, 1, second, NULL, 0);
}

static void first_epoch(Rig *rig) {
    rig_send_region(rig, 0, 1);
    rig_send_region(rig, 1, 1);
    rig_finish_epoch(rig, 1);
}

static void layout_with_new_region_hides_what_had_its_name(void **state) {
    Rig *rig = rig_into_images(state, 1);
    first_epoch(rig);
    say_layout(rig, NEW, KEPT);
    rig_send(rig, (RigChunk){.chunk = 1, .present = 0x3, .zero = 0x1, .generation = 2});
    rig_send(rig, (RigChunk){.region = 1, .present = 0x1, .generation = 2});
    rig_finish_epoch(rig, 2);
    rig_send(rig, (RigChunk){.chunk = 0, .present = 0x1, .generation = 3});
    rig_finish_epoch(rig, 3);
    for (unsigned number = 2; number <= 3; number++) {
        g_autoptr(SnapImage) image = rig_open_image(rig, number);
        for (unsigned page = 0; page < RIG_PAGES; page++) {
            rig_check_image(rig, image, 0, 0, page, page == 65 ? 2 : page == 0 && number == 3 ? 3 : 0);
            rig_check_image(rig, image, 1, 1, page, page == 0 ? 2 : 1);
        }
    }
}

static void layout_in_an_epoch_keeps_what_has_come(void **state) {
    Rig *rig = rig_into_images(state, 1);
    first_epoch(rig);
    rig_send(rig, (RigChunk){.present = 0x3, .generation = 2});
    rig_send(rig, (RigChunk){.region = 1, .present = 0x3, .generation = 2});
    say_layout(rig, NEW, KEPT); /* what has come of the first is of something that is no more */
    rig_send(rig, (RigChunk){.present = 0x2, .generation = 3});
    say_layout(rig, KEPT, KEPT); /* still new, compared with the epoch before */
    rig_send(rig, (RigChunk){.region = 1, .present = 0x2, .generation = 3});
    rig_finish_epoch(rig, 2);
    g_autoptr(SnapImage) image = rig_open_image(rig, 2);
    for (unsigned page = 0; page < RIG_PAGES; page++) {
        rig_check_image(rig, image, 0, 0, page, page == 1 ? 3 : 0);
        rig_check_image(rig, image, 1, 1, page, page == 0 ? 2 : page == 1 ? 3 : 1);
    }
}

static void layout_with_fewer_regions_numbers_them_anew(void **state) {
    Rig *rig = rig_into_images(state, 1);
    first_epoch(rig);
    hand_say_number(&rig->main, SNAP_WIRE_LAYOUT, 1);
    say_region(rig, 1, KEPT, NULL, 0);
    rig_finish_epoch(rig, 2);
    g_autoptr(SnapImage) image = rig_open_image(rig, 2);
    assert_int_equal(snap_image_info(image)->n_regions, 1);
    for (unsigned page = 0; page < RIG_PAGES; page++)
        rig_check_image(rig, image, 0, 1, page, 1);
    /* There is no other one any more. */
    rig_send(rig, (RigChunk){.region = 1, .present = 1, .generation = 2});
    rig_expect_failed(rig, SNAP_ERROR_PROTOCOL, "region");
}

/* The regions of a layout, and what is said of it. */
static void refused(void **state, uint64_t n, void (*say)(Rig *rig), const char *words) {
    Rig *rig = rig_into_images(state, 1);
    first_epoch(rig);
    hand_say_number(&rig->main, SNAP_WIRE_LAYOUT, n);
    if (say)
        say(rig);
    rig_expect_failed(rig, SNAP_ERROR_PROTOCOL, words);
    rig_again(state);
}

static void say_unknown(Rig *rig) {
    say_region(rig, 0, KEPT, "never", 0);
}

static void say_longer(Rig *rig) {
    say_region(rig, 0, KEPT, NULL, RIG_PAGES + 1);
}

static void say_twice(Rig *rig) {
    say_region(rig, 0, NEW, NULL, 0);
    say_region(rig, 0, NEW, NULL, 0);
}

static void say_chunk(Rig *rig) {
    say_region(rig, 0, KEPT, NULL, 0);
    rig_send(rig, (RigChunk){.present = 1, .generation = 2});
}

static void say_end(Rig *rig) {
    rig_end(rig, 2, 0, 0);
}

static void layout_that_cannot_be_is_refused(void **state) {
    refused(state, 0, NULL, "out of range");
    refused(state, SNAP_WIRE_MAX_REGIONS + 1, NULL, "out of range");
    refused(state, 1, say_unknown, "no such region before");
    refused(state, 1, say_longer, "no such region before");
    refused(state, 2, say_twice, "one name");
    refused(state, 2, say_chunk, "while regions are listed");
    refused(state, 1, say_end, "while regions are listed");
}

static void layout_on_two_channels_is_refused(void **state) {
    Rig *rig = rig_into_images(state, 2);
    first_epoch(rig);
    hand_say_number(&rig->main, SNAP_WIRE_LAYOUT, 2);
    rig_expect_failed(rig, SNAP_ERROR_PROTOCOL, "one channel");
}

static void layout_for_a_standby_is_refused(void **state) {
    Rig *rig = rig_mapped(state);
    rig->hello.purpose = SNAP_WIRE_REPLICATE;
    rig_listen(rig);
    rig_greet(rig);
    first_epoch(rig);
    hand_say_number(&rig->main, SNAP_WIRE_LAYOUT, 2);
    hand_expect_failed(&rig->main, "laid out differently");
    rig_expect_lost(rig, SNAP_MIGRATION_STANDBY);
}

static void region_kept_at_first_is_refused(void **state) {
    Rig *rig = rig_for_images(state, 1);
    rig_connect(rig, &rig->main);
    rig_say_hello(rig, &rig->main, 0);
    say_region(rig, 0, KEPT, NULL, 0);
    rig_expect_failed(rig, SNAP_ERROR_PROTOCOL, "none before");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(layout_with_new_region_hides_what_had_its_name),
        TEST(layout_in_an_epoch_keeps_what_has_come),
        TEST(layout_with_fewer_regions_numbers_them_anew),
        TEST(layout_that_cannot_be_is_refused),
        TEST(layout_on_two_channels_is_refused),
        TEST(layout_for_a_standby_is_refused),
        TEST(region_kept_at_first_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
