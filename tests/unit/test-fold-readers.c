/*
 * Merging an image into its child, in place, while others use the images: they are waited for, or left alone, and
 * what they read is right.
 */
#include "fold-fixture.h"

#include <sys/mman.h>
#include <sys/wait.h>

static void fold_while_somebody_reads_waits_for_another_time(void **state) {
    GError *error = NULL;
    g_autoptr(Chain) chain = fold_make_chain(state, fold_seed());
    for (guint i = 0; i < FOLD_LEVELS; i++) {
        g_autoptr(SnapImage) reader = snap_image_open(chain->levels[i].dir, &error);
        expect_ok(reader != NULL, error);
        assert_false(fold_act_fold(chain, &error));
        expect_error(&error, SNAP_ERROR_TIMED_OUT, chain->levels[0].dir);
        chain_check_image(chain, i, reader);
        fold_check_untouched(state, chain);
    }
    expect_ok(fold_act_fold(chain, &error), error);
    fold_check_recovered(state, chain);
}

static void fold_while_a_data_file_is_mapped_waits_for_another_time(void **state) {
    GError *error = NULL;
    g_autoptr(Chain) chain = fold_make_chain(state, 3);
    g_autofree char *path = g_strconcat(chain->levels[0].dir, "/ram/pc.ram.img", NULL);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    void *mapped = mmap(NULL, FIX_PAGE, PROT_READ, MAP_PRIVATE, fd, 0);
    assert_true(mapped != MAP_FAILED);
    close(fd);
    assert_false(fold_act_fold(chain, &error));
    expect_error(&error, SNAP_ERROR_TIMED_OUT, path);
    fold_check_untouched(state, chain);
    munmap(mapped, FIX_PAGE);
    expect_ok(fold_act_fold(chain, &error), error);
    fold_check_recovered(state, chain);
}

static const Chain *exchanged_chain;
static int exchanged_call; /* of a merge: the first one after the parent has been exchanged */

static void exchange_parent(void) {
    assert_false(fold_act_and_die(exchanged_chain, fold_act_fold, exchanged_call));
}

static gboolean is_marked(const Chain *chain) {
    GError *error = NULL;
    snap_image_free(snap_image_open(chain->levels[0].dir, &error));
    gboolean marked = g_error_matches(error, SNAP_ERROR, SNAP_ERROR_INCOMPLETE);
    g_clear_error(&error);
    return marked;
}

/* The directory is exchanged after it was opened, and before it is locked: the lock is on what is there then. */
static void open_while_the_parent_is_exchanged_locks_the_new_one(void **state) {
    GError *error = NULL;
    g_autoptr(Chain) chain = fold_make_chain(state, fold_seed());
    exchanged_chain = chain;
    for (exchanged_call = 1; !is_marked(chain); exchanged_call++) {
        fold_restore_chain(state);
        exchange_parent();
    }
    exchanged_call--;
    fold_restore_chain(state);
    fold_before_lock(chain->levels[0].dir, exchange_parent);
    g_autoptr(SnapImage) reader = snap_image_open(chain->levels[2].dir, &error);
    expect_ok(reader != NULL, error);
    assert_false(fold_before_lock_is_due());
    assert_true(is_marked(chain));
    assert_false(fold_act_fold(chain, &error));
    expect_error(&error, SNAP_ERROR_TIMED_OUT, chain->levels[0].dir);
    chain_check_image(chain, 2, reader);
    expect_ok(snap_image_verify(reader, NULL, NULL, &error), error);
    g_clear_pointer(&reader, snap_image_free);
    expect_ok(fold_act_fold(chain, &error), error);
    fold_check_recovered(state, chain);
}

/* Open the newest image again and again until there is a file @stop: 0, or 1 when it cannot be opened or read. */
static int read_until(const Chain *chain, const char *stop) {
    const ChainLevel *newest = &chain->levels[chain->n_levels - 1];
    uint8_t expected[FIX_PAGE], found[FIX_PAGE];
    for (guint i = 0; access(stop, F_OK) != 0; i++) {
        g_autoptr(GError) error = NULL;
        g_autoptr(SnapImage) image = snap_image_open(newest->dir, &error);
        uint64_t page = i % newest->regions[0].n_pages;
        if (!image || !snap_image_read(image, 0, page * FIX_PAGE, found, FIX_PAGE, &error) ||
            (i % 16 == 0 && !snap_image_verify(image, NULL, NULL, &error))) {
            print_message("reader: %s\n", error->message);
            return 1;
        }
        chain_fill(chain_expect(chain, chain->n_levels - 1, newest->regions[0].name, page), expected);
        if (memcmp(expected, found, FIX_PAGE) != 0)
            return 1;
        g_clear_pointer(&image, snap_image_free);
        g_usleep(i % 7 * 1000); /* now and then nobody reads */
    }
    return 0;
}

/* Again as long as somebody reads. */
static void fold_patiently(const Chain *chain, guint i) {
    GError *error = NULL;
    for (int tries = 0; !snap_image_fold(chain->levels[i - 1].dir, chain->levels[i].dir, &error); tries++) {
        assert_in_range(tries, 0, 200);
        expect_error(&error, SNAP_ERROR_TIMED_OUT, "now");
    }
}

/* Readers come and go while images are merged away below them. */
static void fold_beside_readers_disturbs_nobody(void **state) {
    g_autoptr(Chain) chain = fold_make_chain(state, fold_seed());
    g_autofree char *stop = fix_path(state, "stop");
    for (int round = 0; round < 12; round++) {
        int status = 0;
        pid_t readers[2];
        fold_restore_chain(state);
        for (guint i = 0; i < G_N_ELEMENTS(readers); i++) {
            if ((readers[i] = fork()) == 0)
                _exit(read_until(chain, stop));
        }
        for (guint i = 1; i < FOLD_LEVELS; i++)
            fold_patiently(chain, i);
        assert_true(g_file_set_contents(stop, "", 0, NULL));
        for (guint i = 0; i < G_N_ELEMENTS(readers); i++) {
            assert_int_equal(waitpid(readers[i], &status, 0), readers[i]);
            assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        }
        fold_check_levels(chain, FOLD_LEVELS - 1);
        assert_int_equal(unlink(stop), 0);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        FIX_TEST(fold_while_somebody_reads_waits_for_another_time),
        FIX_TEST(fold_while_a_data_file_is_mapped_waits_for_another_time),
        FIX_TEST(open_while_the_parent_is_exchanged_locks_the_new_one),
        FIX_TEST(fold_beside_readers_disturbs_nobody),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
