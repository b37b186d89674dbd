/* qapi/output.c: a file is there when it is complete, and not before. */
#include "qapi/output.h"

#include "libsnap.h"

#include <fcntl.h>
#include <glib/gstdio.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char *folder;

static int make_folder(void **state) {
    (void)state;
    folder = g_dir_make_tmp("snap-output-XXXXXX", NULL);
    return folder ? 0 : -1;
}

static guint count_files(void) {
    guint n = 0;
    g_autoptr(GDir) dir = g_dir_open(folder, 0, NULL);
    while (g_dir_read_name(dir))
        n++;
    return n;
}

static int remove_folder(void **state) {
    (void)state;
    int result = g_rmdir(folder);
    g_free(folder);
    return result;
}

static void output_committed_replaces_the_file(void **state) {
    (void)state;
    g_autofree char *name = g_build_filename(folder, "out", NULL);
    assert_true(g_file_set_contents(name, "old", -1, NULL));
    g_autoptr(QapiOutput) output = qapi_output_open(name, NULL);
    assert_non_null(output);
    assert_true(output->sparse);
    assert_int_equal(write(output->fd, "new", 3), 3);
    g_autofree char *before = NULL, *after = NULL;
    assert_true(g_file_get_contents(name, &before, NULL, NULL));
    assert_string_equal(before, "old");
    assert_true(qapi_output_commit(output, NULL));
    assert_true(g_file_get_contents(name, &after, NULL, NULL));
    assert_string_equal(after, "new");
    struct stat found;
    assert_int_equal(stat(name, &found), 0);
    assert_int_equal(found.st_mode & 07777, 0600);
    assert_int_equal(count_files(), 1);
    assert_int_equal(g_unlink(name), 0);
}

static void output_freed_without_commit_leaves_nothing(void **state) {
    (void)state;
    g_autofree char *name = g_build_filename(folder, "out", NULL);
    QapiOutput *output = qapi_output_open(name, NULL);
    assert_non_null(output);
    assert_int_equal(write(output->fd, "half", 4), 4);
    assert_int_equal(count_files(), 1);
    qapi_output_free(output);
    assert_int_equal(count_files(), 0);
}

static void output_in_missing_folder_is_not_found(void **state) {
    (void)state;
    g_autofree char *name = g_build_filename(folder, "none", "out", NULL);
    g_autoptr(GError) error = NULL;
    assert_null(qapi_output_open(name, &error));
    assert_true(g_error_matches(error, SNAP_ERROR, SNAP_ERROR_NOT_FOUND));
    assert_non_null(strstr(error->message, name));
}

static void output_over_a_folder_is_refused(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    assert_null(qapi_output_open(folder, &error));
    assert_true(g_error_matches(error, SNAP_ERROR, SNAP_ERROR_EXISTS));
}

static void output_to_fifo_stays_a_fifo(void **state) {
    (void)state;
    g_autofree char *name = g_build_filename(folder, "fifo", NULL);
    assert_int_equal(mkfifo(name, 0600), 0);
    int reader = g_open(name, O_RDONLY | O_NONBLOCK);
    assert_true(reader >= 0);
    QapiOutput *output = qapi_output_open(name, NULL);
    assert_non_null(output);
    assert_false(output->sparse);
    assert_null(output->path);
    assert_int_equal(write(output->fd, "x", 1), 1);
    assert_true(qapi_output_commit(output, NULL));
    qapi_output_free(output);
    char byte = 0;
    assert_int_equal(read(reader, &byte, 1), 1);
    assert_int_equal(byte, 'x');
    close(reader);
    assert_int_equal(g_unlink(name), 0);
}

static void output_dash_is_stdout_and_keeps_it_open(void **state) {
    (void)state;
    QapiOutput *output = qapi_output_open("-", NULL);
    assert_non_null(output);
    assert_int_not_equal(output->fd, STDOUT_FILENO);
    assert_true(qapi_output_commit(output, NULL));
    qapi_output_free(output);
    struct stat found;
    assert_int_equal(fstat(STDOUT_FILENO, &found), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(output_committed_replaces_the_file),
        cmocka_unit_test(output_freed_without_commit_leaves_nothing),
        cmocka_unit_test(output_in_missing_folder_is_not_found),
        cmocka_unit_test(output_over_a_folder_is_refused),
        cmocka_unit_test(output_to_fifo_stays_a_fifo),
        cmocka_unit_test(output_dash_is_stdout_and_keeps_it_open),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
