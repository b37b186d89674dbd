/* The destination of a replication that has no guest: epochs become a chain of images. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "incoming-rig.h"

#include "../lib/own-process.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PAGES = 200 };

static const SnapMemory both[] = {SNAP_MEMORY_ANON, SNAP_MEMORY_ANON};

typedef struct {
    Rig rig;
    char images[64];
    Hand hands[2];
} Setup;

static void listen_for_images(Setup *setup) {
    g_autoptr(GError) error = NULL;
    rig_init(&setup->rig, both, G_N_ELEMENTS(both), PAGES);
    g_snprintf(setup->images, sizeof setup->images, "%s/images", setup->rig.dir);
    setup->rig.hello.purpose = SNAP_WIRE_REPLICATE;
    const SnapIncomingOptions options = {.uri = setup->rig.uri, .image_dir = setup->images};
    setup->rig.incoming = snap_incoming_start(NULL, &options, NULL, NULL, &error);
    fail_on(error);
}

/* Regions as a source has them, at addresses of its own. */
static void greet(Setup *setup) {
    Rig *rig = &setup->rig;
    hand_open(&setup->hands[0], rig);
    hand_say_hello(&setup->hands[0], rig, 0);
    for (unsigned i = 0; i < rig->n_regions; i++) {
        uint8_t body[1152];
        const RigRegion *region = &rig->regions[i];
        const SnapWireRegion record = {.guest_address = region->guest_address,
                                       .length_bytes = region->length_bytes,
                                       .page_bytes = rig->page,
                                       .granule_bytes = rig->page,
                                       .host_address = (uintptr_t)region->data,
                                       .name = region->name,
                                       .name_bytes = (uint16_t)strlen(region->name)};
        hand_send(&setup->hands[0], SNAP_WIRE_REGION, 0, body, snap_wire_encode_region(&record, body));
    }
    hand_expect(&setup->hands[0], SNAP_WIRE_WELCOME);
    for (unsigned i = 1; i < rig->hello.n_channels; i++)
        hand_join(&setup->hands[i], rig, i);
}

static void begin(Setup *setup, unsigned n_channels) {
    listen_for_images(setup);
    setup->rig.hello.n_channels = n_channels;
    greet(setup);
}

static void clear(Setup *setup) {
    char *rm[] = {"rm", "-rf", setup->images, NULL};
    for (unsigned i = 0; i < setup->rig.hello.n_channels; i++)
        hand_close(&setup->hands[i]);
    assert_true(g_spawn_sync(NULL, rm, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL, NULL, NULL, NULL, NULL));
    rig_clear(&setup->rig, 0);
}

static void end(Setup *setup, uint64_t epoch) {
    char state[32];
    g_snprintf(state, sizeof state, "state %u", (unsigned)epoch);
    for (unsigned i = 1; i < setup->rig.hello.n_channels; i++)
        hand_end(&setup->hands[i], epoch, 0, 0);
    hand_state(&setup->hands[0], "cpu", state, strlen(state) + 1);
    hand_end(&setup->hands[0], epoch, 1, 0);
    hand_expect_ready(&setup->hands[0], epoch);
}

static SnapImage *open_image(const Setup *setup, unsigned number) {
    g_autoptr(GError) error = NULL;
    g_autofree char *dir = g_strdup_printf("%s/%06u", setup->images, number);
    SnapImage *image = snap_image_open(dir, &error);
    fail_on(error);
    snap_image_verify(image, NULL, NULL, &error);
    fail_on(error);
    return image;
}

/* Page @page of a region in an image is of that generation; 0: zeros. */
static void check_page(const Setup *setup, const SnapImage *image, unsigned region, uint64_t page,
                       unsigned generation) {
    g_autoptr(GError) error = NULL;
    g_autofree uint8_t *read = g_malloc(setup->rig.page);
    g_autofree uint8_t *expected = g_malloc0(setup->rig.page);
    snap_image_read(image, region, page * setup->rig.page, read, setup->rig.page, &error);
    fail_on(error);
    if (generation)
        rig_page(&setup->rig, region, page, generation, expected);
    assert_memory_equal(read, expected, setup->rig.page);
}

static void check_state(const SnapImage *image, const char *expected) {
    g_autoptr(GBytes) state = snap_image_state(image, "cpu", NULL);
    assert_non_null(state);
    assert_string_equal(g_bytes_get_data(state, NULL), expected);
}

static void send(Setup *setup, HandChunk chunk) {
    hand_chunk(&setup->hands[chunk.chunk % setup->rig.hello.n_channels], &setup->rig, chunk);
}

static void epochs_become_images(unsigned n_channels) {
    Setup setup;
    begin(&setup, n_channels);
    /* The first copy has rounds: pages come again, become zeros, and something else once more. */
    send(&setup, (HandChunk){.region = 0, .chunk = 0, .present = 0xff, .generation = 1});
    send(&setup, (HandChunk){.region = 0, .chunk = 1, .present = UINT64_MAX, .generation = 1, .zstd = true});
    send(&setup, (HandChunk){.region = 0, .chunk = 0, .present = 0x0f, .zero = 0x03, .generation = 2});
    send(&setup, (HandChunk){.region = 0, .chunk = 0, .present = 0x02, .generation = 3});
    send(&setup, (HandChunk){.region = 1, .chunk = 3, .present = 0x80, .generation = 1});
    end(&setup, 1);
    send(&setup, (HandChunk){.region = 0, .chunk = 1, .present = 0x11, .zero = 0x10, .generation = 4});
    send(&setup, (HandChunk){.region = 1, .chunk = 3, .present = 0x80, .zero = 0x80});
    end(&setup, 2);
    end(&setup, 3);
    const unsigned first[] = {0, 3, 2, 2, 1, 1, 1, 1, 0};
    for (unsigned number = 1; number <= 3; number++) {
        g_autoptr(SnapImage) image = open_image(&setup, number);
        g_autofree char *state = g_strdup_printf("state %u", number);
        assert_int_equal(snap_image_info(image)->n_parents, number - 1);
        assert_string_equal(snap_image_info(image)->driver, "test");
        check_state(image, state);
        assert_true(number < 3 || snap_image_info(image)->pages_held == 0);
        for (unsigned page = 0; page < G_N_ELEMENTS(first); page++)
            check_page(&setup, image, 0, page, first[page]);
        check_page(&setup, image, 0, 64, number > 1 ? 4 : 1);
        check_page(&setup, image, 0, 68, number > 1 ? 0 : 1);
        check_page(&setup, image, 0, 69, 1);
        check_page(&setup, image, 1, 199, number > 1 ? 0 : 1);
    }
    clear(&setup);
}

static void epochs_become_a_chain_of_images(void **state) {
    (void)state;
    epochs_become_images(1);
}

static void epochs_on_two_channels_become_a_chain_of_images(void **state) {
    (void)state;
    epochs_become_images(2);
}

static void epoch_that_is_cut_leaves_no_image(void **state) {
    (void)state;
    Setup setup;
    struct stat about;
    begin(&setup, 1);
    send(&setup, (HandChunk){.chunk = 0, .present = 1, .generation = 1});
    end(&setup, 1);
    send(&setup, (HandChunk){.chunk = 0, .present = 1, .generation = 2});
    snap_channel_shutdown(&setup.hands[0].channel);
    rig_wait(&setup.rig, SNAP_ERROR_IO, "closed");
    g_autoptr(SnapImage) image = open_image(&setup, 1);
    check_page(&setup, image, 0, 0, 1);
    g_autofree char *second = g_build_filename(setup.images, "000002", NULL);
    assert_int_equal(stat(second, &about), -1);
    clear(&setup);
}

static void move_without_a_guest_is_refused(void **state) {
    (void)state;
    Setup setup;
    listen_for_images(&setup);
    setup.rig.hello.purpose = SNAP_WIRE_MOVE;
    hand_open(&setup.hands[0], &setup.rig);
    hand_say_hello(&setup.hands[0], &setup.rig, 0);
    hand_expect_failed(&setup.hands[0], "there is no guest here");
    rig_wait(&setup.rig, SNAP_ERROR_REFUSED, "there is no guest here");
    clear(&setup);
}

static void go_without_a_guest_is_refused(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    Setup setup;
    begin(&setup, 1);
    end(&setup, 1);
    assert_false(snap_incoming_promote(setup.rig.incoming, TRUE, &error));
    assert_int_equal(error->code, SNAP_ERROR_REFUSED);
    hand_id(&setup.hands[0], &setup.rig, SNAP_WIRE_GO);
    rig_wait(&setup.rig, SNAP_ERROR_PROTOCOL, "there is no guest to run here");
    clear(&setup);
}

static void folder_with_images_is_refused(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    Setup setup;
    begin(&setup, 1);
    end(&setup, 1);
    const SnapIncomingOptions options = {.uri = "unix:/tmp/snap-never", .image_dir = setup.images};
    assert_null(snap_incoming_start(NULL, &options, NULL, NULL, &error));
    assert_int_equal(error->code, SNAP_ERROR_EXISTS);
    clear(&setup);
}

static void image_that_cannot_be_made_is_told(void **state) {
    (void)state;
    Setup setup;
    listen_for_images(&setup);
    greet(&setup);
    g_autofree char *in_the_way = g_build_filename(setup.images, "000001", NULL);
    assert_true(g_file_set_contents(in_the_way, "x", 1, NULL));
    hand_end(&setup.hands[0], 1, 0, 0);
    hand_expect_failed(&setup.hands[0], "image 000001: ");
    rig_wait(&setup.rig, SNAP_ERROR_EXISTS, "image 000001: ");
    clear(&setup);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(epochs_become_a_chain_of_images),
        cmocka_unit_test(epochs_on_two_channels_become_a_chain_of_images),
        cmocka_unit_test(epoch_that_is_cut_leaves_no_image),
        cmocka_unit_test(move_without_a_guest_is_refused),
        cmocka_unit_test(go_without_a_guest_is_refused),
        cmocka_unit_test(folder_with_images_is_refused),
        cmocka_unit_test(image_that_cannot_be_made_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
