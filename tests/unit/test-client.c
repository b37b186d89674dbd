/* tools/client.c in this process: commands, jobs and their errors. Behind a socket: tests/integ/connect.py. */
#include "libsnap.h"
#include "qapi/qmp-error.h"
#include "tools/client.h"

#include <glib/gstdio.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static json_object *path_argument(const Client *client, const char *path) {
    json_object *arguments = json_object_new_object();
    client_add_path(client, arguments, "path", path);
    return arguments;
}

static void no_jobs_are_left(Client *client) {
    g_autoptr(json_object) jobs = client_command(client, "query-jobs", NULL, NULL);
    assert_non_null(jobs);
    assert_int_equal(json_object_array_length(jobs), 0);
}

static void command_unknown_fails(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    g_autoptr(Client) client = client_open(NULL, NULL);
    assert_false(client_is_remote(client));
    assert_null(client_command(client, "query-nothing", NULL, &error));
    assert_string_equal(error->message, "The command query-nothing has not been found");
}

static void command_with_wrong_arguments_fails(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    g_autoptr(Client) client = client_open(NULL, NULL);
    assert_null(client_command(client, "query-snapshot", NULL, &error));
    assert_string_equal(error->message, "Parameter 'path' is missing");
}

static void path_without_a_server_stays_as_it_is(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    g_autoptr(Client) client = client_open(NULL, NULL);
    assert_null(client_command(client, "query-snapshot", path_argument(client, "./no//where"), &error));
    assert_true(g_error_matches(error, SNAP_ERROR, SNAP_ERROR_NOT_FOUND));
    assert_non_null(strstr(error->message, "./no//where"));
}

static void job_that_fails_keeps_text_and_code(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    g_autoptr(Client) client = client_open(NULL, NULL);
    json_object *arguments = path_argument(client, "no/where");
    assert_null(client_run_job(client, "snapshot-delete", arguments, NULL, NULL, &error));
    assert_true(g_error_matches(error, SNAP_ERROR, SNAP_ERROR_NOT_FOUND));
    assert_string_equal(error->message, "no/where: no such image directory");
    no_jobs_are_left(client);
}

static void job_that_cannot_start_is_no_job(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    g_autoptr(Client) client = client_open(NULL, NULL);
    assert_null(client_run_job(client, "snapshot-delete", json_object_new_object(), NULL, NULL, &error));
    assert_string_equal(error->message, "Parameter 'path' is missing");
    no_jobs_are_left(client);
}

/* An image that was not finished is a folder with less in it. */
static char *make_unfinished_image(void) {
    char *folder = g_dir_make_tmp("snap-client-XXXXXX", NULL);
    g_autofree char *ram = g_build_filename(folder, "ram", NULL);
    assert_int_equal(g_mkdir(ram, 0700), 0);
    return folder;
}

/* Its end is an event: who waits need not look for it every tenth of a second. */
static void job_that_succeeds_is_seen_at_once(void **state) {
    (void)state;
    enum { TIMES = 20, LOOK_US = 100000 };
    g_autoptr(Client) client = client_open(NULL, NULL);
    gint64 start_us = g_get_monotonic_time();
    for (int i = 0; i < TIMES; i++) {
        g_autofree char *folder = make_unfinished_image();
        g_autoptr(json_object) result =
            client_run_job(client, "snapshot-delete", path_argument(client, folder), NULL, NULL, NULL);
        json_object *dir = NULL;
        assert_true(json_object_object_get_ex(result, "dir", &dir));
        assert_string_equal(json_object_get_string(dir), folder);
        assert_false(g_file_test(folder, G_FILE_TEST_EXISTS));
    }
    assert_in_range(g_get_monotonic_time() - start_us, 0, TIMES * LOOK_US * 3 / 4);
    no_jobs_are_left(client);
}

static void connection_to_nobody_fails(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    assert_null(client_open("/nowhere/socket", &error));
    assert_true(g_error_matches(error, SNAP_ERROR, SNAP_ERROR_NOT_FOUND));
}

static void error_codes_have_names_both_ways(void **state) {
    (void)state;
    for (int code = 0; code < SNAP_ERROR_MAX; code++) {
        g_autoptr(GError) error = g_error_new_literal(SNAP_ERROR, code, "x");
        assert_int_equal(qapi_error_code(qapi_error_code_name(error)), code);
    }
    g_autoptr(GError) foreign = g_error_new_literal(G_FILE_ERROR, G_FILE_ERROR_IO, "x");
    assert_string_equal(qapi_error_code_name(foreign), "FAILED");
    assert_string_equal(snap_error_text((int)qapi_error_code("BUFFER_FULL")), "the buffer is full");
    assert_int_equal(qapi_error_code("NONSENSE"), SNAP_ERROR_FAILED);
    assert_int_equal(qapi_error_code(NULL), SNAP_ERROR_FAILED);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(command_unknown_fails),
        cmocka_unit_test(command_with_wrong_arguments_fails),
        cmocka_unit_test(path_without_a_server_stays_as_it_is),
        cmocka_unit_test(job_that_fails_keeps_text_and_code),
        cmocka_unit_test(job_that_cannot_start_is_no_job),
        cmocka_unit_test(job_that_succeeds_is_seen_at_once),
        cmocka_unit_test(connection_to_nobody_fails),
        cmocka_unit_test(error_codes_have_names_both_ways),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
