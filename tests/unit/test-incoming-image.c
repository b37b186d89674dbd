/* The destination of a replication that has no guest: epochs become a chain of images. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "expect.h"
#include "incoming-fixture.h"

static void check_state(const SnapImage *image, unsigned epoch) {
    g_autofree char *expected = g_strdup_printf("state %u", epoch);
    g_autoptr(GBytes) state = snap_image_state(image, "cpu", NULL);
    assert_non_null(state);
    assert_string_equal(g_bytes_get_data(state, NULL), expected);
}

static void epochs_become_images(void **state, uint32_t n_channels) {
    static const unsigned first[] = {0, 3, 2, 2, 1, 1, 1, 1, 0};
    Rig *rig = rig_into_images(state, n_channels);
    /* The first copy has rounds: pages come again, become zeros, and something else once more. */
    rig_send(rig, (RigChunk){.chunk = 0, .present = 0xff, .generation = 1});
    rig_send(rig, (RigChunk){.chunk = 1, .present = UINT64_MAX, .generation = 1, .zstd = true});
    rig_send(rig, (RigChunk){.chunk = 0, .present = 0x0f, .zero = 0x03, .generation = 2});
    rig_send(rig, (RigChunk){.chunk = 0, .present = 0x02, .generation = 3});
    rig_send(rig, (RigChunk){.region = 1, .chunk = 3, .present = 0x80, .generation = 1});
    rig_finish_epoch(rig, 1);
    rig_send(rig, (RigChunk){.chunk = 1, .present = 0x11, .zero = 0x10, .generation = 4});
    rig_send(rig, (RigChunk){.region = 1, .chunk = 3, .present = 0x80, .zero = 0x80});
    rig_finish_epoch(rig, 2);
    rig_finish_epoch(rig, 3);
    for (unsigned number = 1; number <= 3; number++) {
        g_autoptr(SnapImage) image = rig_open_image(rig, number);
        assert_int_equal(snap_image_info(image)->n_parents, number - 1);
        assert_string_equal(snap_image_info(image)->driver, "test");
        assert_true(number < 3 || snap_image_info(image)->pages_held == 0);
        check_state(image, number);
        for (unsigned page = 0; page < G_N_ELEMENTS(first); page++)
            rig_check_image(rig, image, 0, 0, page, first[page]);
        rig_check_image(rig, image, 0, 0, 64, number > 1 ? 4 : 1);
        rig_check_image(rig, image, 0, 0, 68, number > 1 ? 0 : 1);
        rig_check_image(rig, image, 0, 0, 69, 1);
        rig_check_image(rig, image, 1, 1, 199, number > 1 ? 0 : 1);
    }
}

static void epochs_become_a_chain_of_images(void **state) {
    epochs_become_images(state, 1);
}

static void epochs_on_two_channels_become_a_chain_of_images(void **state) {
    epochs_become_images(state, 2);
}

static void epoch_that_is_cut_leaves_no_image(void **state) {
    Rig *rig = rig_into_images(state, 1);
    rig_send(rig, (RigChunk){.present = 1, .generation = 1});
    rig_finish_epoch(rig, 1);
    rig_send(rig, (RigChunk){.present = 1, .generation = 2});
    rig_close(rig);
    rig_expect_ended(rig, SNAP_ERROR_IO, "closed");
    g_autoptr(SnapImage) image = rig_open_image(rig, 1);
    rig_check_image(rig, image, 0, 0, 0, 1);
    g_autofree char *second = g_build_filename(rig->images, "000002", NULL);
    assert_false(g_file_test(second, G_FILE_TEST_EXISTS));
}

static void move_without_a_guest_is_refused(void **state) {
    Rig *rig = rig_for_images(state, 1);
    rig->hello.purpose = SNAP_WIRE_MOVE;
    rig_connect(rig, &rig->main);
    rig_say_hello(rig, &rig->main, 0);
    rig_expect_failed(rig, SNAP_ERROR_REFUSED, "there is no guest here");
}

static void go_without_a_guest_is_refused(void **state) {
    GError *error = NULL;
    Rig *rig = rig_into_images(state, 1);
    rig_finish_epoch(rig, 1);
    expect_error(snap_incoming_promote(rig->incoming, TRUE, &error), &error, SNAP_ERROR_REFUSED, "");
    hand_say_id(&rig->main, SNAP_WIRE_GO);
    rig_expect_ended(rig, SNAP_ERROR_PROTOCOL, "there is no guest to run here");
}

static void folder_with_images_is_refused(void **state) {
    GError *error = NULL;
    Rig *rig = rig_into_images(state, 1);
    rig_finish_epoch(rig, 1);
    const SnapIncomingOptions options = {.uri = "unix:/tmp/snap-never", .image_dir = rig->images};
    expect_error(snap_incoming_start(NULL, &options, NULL, NULL, &error), &error, SNAP_ERROR_EXISTS, "");
}

static void image_that_cannot_be_made_is_told(void **state) {
    Rig *rig = rig_into_images(state, 1);
    g_autofree char *in_the_way = g_build_filename(rig->images, "000001", NULL);
    assert_true(g_file_set_contents(in_the_way, "x", 1, NULL));
    rig_end(rig, 1, 0, 0);
    rig_expect_failed(rig, SNAP_ERROR_EXISTS, "image 000001: ");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(epochs_become_a_chain_of_images),   TEST(epochs_on_two_channels_become_a_chain_of_images),
        TEST(epoch_that_is_cut_leaves_no_image), TEST(move_without_a_guest_is_refused),
        TEST(go_without_a_guest_is_refused),     TEST(folder_with_images_is_refused),
        TEST(image_that_cannot_be_made_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
