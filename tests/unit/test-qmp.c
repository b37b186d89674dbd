/* The QMP client against a server made of a socket pair: what it would say is written beforehand. */
#include "qmp.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#define GREETING                                                                                                  \
    "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 22, \"minor\": 2, \"major\": 7}, \"package\": \"\"}, "        \
    "\"capabilities\": [\"oob\"]}}\r\n"
#define GREETING_WITHOUT_OOB "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 0, \"minor\": 1, \"major\": 3}}}}\r\n"
#define EMPTY "{\"return\": {}}\r\n"
#define STOP_EVENT "{\"timestamp\": {\"seconds\": 1700000000, \"microseconds\": 123456}, \"event\": \"STOP\"}\r\n"

/* A client whose server has said @text already. @ret_server: the server's end. */
static Qmp *connect_to(const char *text, int *ret_server, int timeout_ms, GError **error) {
    int ends[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    assert_int_equal(write(ends[1], text, strlen(text)), (ssize_t)strlen(text));
    *ret_server = ends[1];
    return qmp_new(ends[0], "QMP socket test", timeout_ms, error);
}

static Qmp *connected(const char *text, int *ret_server) {
    GError *error = NULL;
    Qmp *qmp = connect_to(text, ret_server, 1000, &error);
    if (!qmp)
        fail_msg("%s", error->message);
    return qmp;
}

static char *heard(int server) {
    char bytes[4096];
    ssize_t n = recv(server, bytes, sizeof(bytes) - 1, MSG_DONTWAIT);
    return g_strndup(bytes, n > 0 ? (size_t)n : 0);
}

static void expect(GError **error, SnapErrorCode code, const char *text) {
    assert_non_null(*error);
    assert_int_equal((*error)->code, code);
    if (!strstr((*error)->message, text) || strchr((*error)->message, '\n'))
        fail_msg("\"%s\" where one line with \"%s\" was expected", (*error)->message, text);
    g_clear_error(error);
}

static void greeting_of_qemu_is_negotiated(void **state) {
    (void)state;
    int server;
    g_autoptr(Qmp) qmp = connected(GREETING EMPTY, &server);
    g_autofree char *said = heard(server);
    assert_string_equal(qmp_version(qmp), "7.2.22");
    assert_string_equal(said, "{\"execute\":\"qmp_capabilities\",\"arguments\":{\"enable\":[\"oob\"]}}\n");
    close(server);
}

static void greeting_without_oob_does_not_ask_for_it(void **state) {
    (void)state;
    int server;
    G_GNUC_UNUSED g_autoptr(Qmp) qmp = connected(GREETING_WITHOUT_OOB EMPTY, &server);
    g_autofree char *said = heard(server);
    assert_string_equal(said, "{\"execute\":\"qmp_capabilities\"}\n");
    close(server);
}

static void answer_between_events_is_found(void **state) {
    (void)state;
    int server;
    GError *error = NULL;
    g_autoptr(Qmp) qmp =
        connected(GREETING EMPTY STOP_EVENT "{\"return\": {\"status\": \"paused\"}}\r\n" STOP_EVENT, &server);
    g_autoptr(json_object) answer = NULL;
    assert_int_equal(qmp_event_us(qmp, "STOP"), 0);
    assert_true(qmp_command(qmp, "query-status", NULL, 1000, &answer, &error));
    assert_string_equal(qmp_get_string(answer, "status"), "paused");
    assert_string_equal(qmp_get_string(answer, "nothing"), "");
    assert_true(qmp_event_us(qmp, "STOP") == INT64_C(1700000000123456));
    close(server);
}

typedef struct {
    int fd;
    const char *text;
} Slow;

static void *say_byte_by_byte(void *opaque) {
    Slow *slow = opaque;
    for (const char *at = slow->text; *at; at++) {
        ssize_t ignored = write(slow->fd, at, 1);
        (void)ignored;
        g_usleep(100);
    }
    return NULL;
}

static void answer_in_single_bytes_is_put_together(void **state) {
    (void)state;
    int server;
    GError *error = NULL;
    g_autoptr(Qmp) qmp = connected(GREETING EMPTY, &server);
    Slow slow = {server, STOP_EVENT "{\"return\": [\"a\\u00e4 \\\"}{\", 1]}\r\n"};
    GThread *thread = g_thread_new("server", say_byte_by_byte, &slow);
    g_autoptr(json_object) answer = NULL;
    assert_true(qmp_command(qmp, "x", NULL, 3000, &answer, &error));
    assert_string_equal(json_object_get_string(json_object_array_get_idx(answer, 0)), "aä \"}{");
    g_thread_join(thread);
    close(server);
}

static void error_answer_gives_the_text_of_qemu(void **state) {
    (void)state;
    int server;
    GError *error = NULL;
    g_autoptr(Qmp) qmp = connected(
        GREETING EMPTY "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no such thing\"}}\r\n" EMPTY,
        &server);
    assert_false(qmp_command(qmp, "cmd", NULL, 1000, NULL, &error));
    expect(&error, SNAP_ERROR_FAILED, "cmd: QEMU says: no such thing");
    assert_true(qmp_command(qmp, "cmd", NULL, 1000, NULL, &error)); /* the connection is good still */
    close(server);
}

static void error_answer_is_kept_until_the_next_command(void **state) {
    (void)state;
    int server;
    g_autoptr(Qmp) qmp = connected(
        GREETING EMPTY "{\"error\": {\"class\": \"DeviceNotActive\", \"desc\": \"no balloon\"}}\r\n" EMPTY,
        &server);
    assert_null(qmp_refusal(qmp));
    assert_false(qmp_command(qmp, "cmd", NULL, 1000, NULL, NULL));
    assert_string_equal(qmp_get_string(qmp_refusal(qmp), "class"), "DeviceNotActive");
    assert_string_equal(qmp_get_string(qmp_refusal(qmp), "desc"), "no balloon");
    assert_true(qmp_command(qmp, "cmd", NULL, 1000, NULL, NULL));
    assert_null(qmp_refusal(qmp));
    close(server);
}

static void note(const char *event, json_object *data, int64_t time_us, void *opaque) {
    g_string_append_printf(opaque, "%s %s %" G_GINT64_FORMAT ";", event,
                           data ? json_object_to_json_string(data) : "-", time_us % G_USEC_PER_SEC);
}

#define RESET_EVENT                                                                                               \
    "{\"timestamp\": {\"seconds\": 1, \"microseconds\": 2}, \"event\": \"RESET\", \"data\": {\"guest\": "         \
    "true}}\r\n"
#define BOTH_NOTED "STOP - 123456;RESET { \"guest\": true } 2;"

static void events_are_told_among_answers_and_without(void **state) {
    (void)state;
    int server;
    GError *error = NULL;
    g_autoptr(GString) told = g_string_new(NULL);
    g_autoptr(Qmp) qmp = connected(GREETING EMPTY, &server);
    qmp_set_event_func(qmp, note, told);
    assert_true(qmp_read_events(qmp, &error)); /* nothing there: no waiting */
    const char *text = STOP_EVENT EMPTY RESET_EVENT;
    assert_int_equal(write(server, text, strlen(text)), (ssize_t)strlen(text));
    assert_true(qmp_command(qmp, "x", NULL, 1000, NULL, &error));
    assert_true(qmp_read_events(qmp, &error));
    assert_string_equal(told->str, BOTH_NOTED);
    /* In pieces, the last of which is not there yet. */
    g_string_truncate(told, 0);
    text = STOP_EVENT RESET_EVENT;
    size_t most = strlen(text) - 20;
    assert_int_equal(write(server, text, most), (ssize_t)most);
    assert_true(qmp_read_events(qmp, &error));
    assert_string_equal(told->str, "STOP - 123456;");
    assert_int_equal(write(server, text + most, 20), 20);
    assert_true(qmp_read_events(qmp, &error));
    assert_string_equal(told->str, BOTH_NOTED);
    close(server);
}

static void answer_that_nobody_asked_for_breaks_the_connection(void **state) {
    (void)state;
    int server;
    GError *error = NULL;
    g_autoptr(Qmp) qmp = connected(GREETING EMPTY EMPTY, &server);
    assert_false(qmp_read_events(qmp, &error));
    expect(&error, SNAP_ERROR_PROTOCOL, "does not speak QMP");
    assert_true(qmp_is_broken(qmp));
    close(server);
}

static void connection_closed_is_broken_however_it_is_found(void **state) {
    (void)state;
    for (int sending = 0; sending < 2; sending++) {
        int server;
        GError *error = NULL;
        g_autoptr(Qmp) qmp = connected(GREETING EMPTY, &server);
        close(server);
        assert_false(sending ? qmp_send(qmp, "x", NULL, -1, &error) : qmp_read_events(qmp, &error));
        expect(&error, SNAP_ERROR_GUEST_GONE, "closed the connection");
        assert_true(qmp_is_broken(qmp));
    }
}

static void server_that_is_silent_times_out(void **state) {
    (void)state;
    int server;
    GError *error = NULL;
    assert_null(connect_to("", &server, 100, &error));
    expect(&error, SNAP_ERROR_TIMED_OUT, "one client at a time");
    close(server);
}

static void server_silent_to_a_command_breaks_the_connection(void **state) {
    (void)state;
    int server;
    GError *error = NULL;
    g_autoptr(Qmp) qmp = connected(GREETING EMPTY, &server);
    assert_false(qmp_command(qmp, "slow", NULL, 50, NULL, &error));
    expect(&error, SNAP_ERROR_TIMED_OUT, "slow: QMP socket test does not answer");
    assert_true(qmp_is_broken(qmp));
    /* The late answer must not be taken for that to the next command. */
    assert_int_equal(write(server, EMPTY, strlen(EMPTY)), (ssize_t)strlen(EMPTY));
    assert_false(qmp_command(qmp, "next", NULL, 50, NULL, &error));
    expect(&error, SNAP_ERROR_PROTOCOL, "out of step");
    close(server);
}

static void garbage_is_no_qmp(void **state) {
    (void)state;
    static const char *const texts[] = {
        "HTTP/1.1 400 Bad Request\r\n", "{\"hello\": 1}\r\n", "[1, 2]\r\n", "\"x\"\r\n", "{]}", "\1\2\3"};
    for (guint i = 0; i < G_N_ELEMENTS(texts); i++) {
        int server;
        GError *error = NULL;
        assert_null(connect_to(texts[i], &server, 500, &error));
        expect(&error, SNAP_ERROR_PROTOCOL, "does not speak QMP");
        close(server);
    }
}

static void *say_without_end(void *opaque) {
    int fd = *(int *)opaque;
    static char bytes[65536];
    memset(bytes, 'x', sizeof(bytes));
    while (send(fd, bytes, sizeof(bytes), MSG_NOSIGNAL) > 0)
        continue;
    return NULL;
}

static void message_without_end_is_given_up(void **state) {
    (void)state;
    int server;
    GError *error = NULL;
    g_autoptr(Qmp) qmp = connected(GREETING EMPTY "{\"return\": \"", &server);
    GThread *thread = g_thread_new("server", say_without_end, &server);
    assert_false(qmp_command(qmp, "x", NULL, 20000, NULL, &error));
    expect(&error, SNAP_ERROR_PROTOCOL, "does not speak QMP");
    g_clear_pointer(&qmp, qmp_free);
    g_thread_join(thread);
    close(server);
}

static void server_that_hangs_up_is_gone(void **state) {
    (void)state;
    int server;
    GError *error = NULL;
    g_autoptr(Qmp) qmp = connected(GREETING EMPTY, &server);
    close(server);
    assert_false(qmp_command(qmp, "x", NULL, 1000, NULL, &error));
    expect(&error, SNAP_ERROR_GUEST_GONE, "");
}

static void commands_queued_go_out_together_in_order(void **state) {
    (void)state;
    int server;
    GError *error = NULL;
    g_autoptr(Qmp) qmp =
        connected(GREETING EMPTY "{\"return\": 1}\r\n{\"return\": 2}\r\n{\"return\": 3}\r\n", &server);
    g_free(heard(server));
    qmp_queue(qmp, "a", qmp_args("k", "/dev/x", NULL));
    qmp_queue(qmp, "b", NULL);
    qmp_begin(qmp, "c");
    g_autofree char *early = heard(server);
    assert_string_equal(early, "");
    assert_true(qmp_flush(qmp, &error));
    g_autofree char *said = heard(server);
    assert_string_equal(
        said, "{\"execute\":\"a\",\"arguments\":{\"k\":\"/dev/x\"}}\n{\"execute\":\"b\"}\n{\"execute\":\"c\"");
    for (int i = 1; i <= 3; i++) {
        g_autoptr(json_object) answer = NULL;
        assert_int_equal(qmp_has_begun(qmp), i < 3);
        if (i == 2)
            assert_true(qmp_finish(qmp, &error));
        assert_true(qmp_receive(qmp, 1000, &answer, &error));
        assert_int_equal(json_object_get_int(answer), i);
    }
    g_autofree char *last = heard(server);
    assert_string_equal(last, "}");
    close(server);
}

static void command_begun_and_dropped_leaves_the_connection_good(void **state) {
    (void)state;
    int server;
    GError *error = NULL;
    g_autoptr(Qmp) qmp = connected(
        GREETING EMPTY "{\"error\": {\"class\": \"GenericError\", \"desc\": \"JSON parse error\"}}\r\n" EMPTY,
        &server);
    qmp_begin(qmp, "cont");
    assert_true(qmp_flush(qmp, &error));
    g_free(heard(server));
    assert_true(qmp_drop(qmp, &error));
    g_autofree char *said = heard(server);
    assert_string_equal(said, "\1");
    assert_true(qmp_command(qmp, "next", NULL, 1000, NULL, &error));
    close(server);
}

static void descriptor_arrives_with_its_command(void **state) {
    (void)state;
    int server;
    GError *error = NULL;
    g_autoptr(Qmp) qmp = connected(GREETING EMPTY, &server);
    g_free(heard(server));
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    assert_true(qmp_send(qmp, "getfd", NULL, ends[0], &error));
    char bytes[100], control[CMSG_SPACE(sizeof(int))];
    struct iovec iov = {bytes, sizeof(bytes)};
    struct msghdr message = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
    assert_true(recvmsg(server, &message, MSG_DONTWAIT) > 0);
    assert_non_null(CMSG_FIRSTHDR(&message));
    assert_int_equal(CMSG_FIRSTHDR(&message)->cmsg_type, SCM_RIGHTS);
    int passed;
    memcpy(&passed, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(passed));
    assert_int_equal(write(ends[1], "x", 1), 1);
    assert_int_equal(read(passed, bytes, 1), 1);
    close(passed);
    close(ends[0]);
    close(ends[1]);
    close(server);
}

static void socket_that_is_not_there_is_not_found(void **state) {
    (void)state;
    GError *error = NULL;
    assert_null(qmp_connect("/nowhere/qmp.sock", 100, &error));
    expect(&error, SNAP_ERROR_NOT_FOUND, "/nowhere/qmp.sock");
    g_autofree char *longest = g_strnfill(200, 'x');
    assert_null(qmp_connect(longest, 100, &error));
    expect(&error, SNAP_ERROR_USAGE, "longer than");
}

static void socket_that_nobody_serves_says_so(void **state) {
    (void)state;
    g_autofree char *dir = g_dir_make_tmp("test-qmp-XXXXXX", NULL);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    g_snprintf(address.sun_path, sizeof(address.sun_path), "%s/s", dir);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(listener, (struct sockaddr *)&address, sizeof(address)), 0);
    GError *error = NULL;
    assert_null(qmp_connect(address.sun_path, 100, &error));
    expect(&error, SNAP_ERROR_NOT_FOUND, "nobody listens");
    /* Listening, never accepting, as a QEMU that has a client: the backlog fills up in the end. */
    assert_int_equal(listen(listener, 0), 0);
    assert_null(qmp_connect(address.sun_path, 100, &error));
    expect(&error, SNAP_ERROR_TIMED_OUT, "another one");
    close(listener);
    unlink(address.sun_path);
    rmdir(dir);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(greeting_of_qemu_is_negotiated),
        cmocka_unit_test(greeting_without_oob_does_not_ask_for_it),
        cmocka_unit_test(answer_between_events_is_found),
        cmocka_unit_test(answer_in_single_bytes_is_put_together),
        cmocka_unit_test(error_answer_gives_the_text_of_qemu),
        cmocka_unit_test(error_answer_is_kept_until_the_next_command),
        cmocka_unit_test(events_are_told_among_answers_and_without),
        cmocka_unit_test(answer_that_nobody_asked_for_breaks_the_connection),
        cmocka_unit_test(connection_closed_is_broken_however_it_is_found),
        cmocka_unit_test(server_that_is_silent_times_out),
        cmocka_unit_test(server_silent_to_a_command_breaks_the_connection),
        cmocka_unit_test(garbage_is_no_qmp),
        cmocka_unit_test(message_without_end_is_given_up),
        cmocka_unit_test(server_that_hangs_up_is_gone),
        cmocka_unit_test(commands_queued_go_out_together_in_order),
        cmocka_unit_test(command_begun_and_dropped_leaves_the_connection_good),
        cmocka_unit_test(descriptor_arrives_with_its_command),
        cmocka_unit_test(socket_that_is_not_there_is_not_found),
        cmocka_unit_test(socket_that_nobody_serves_says_so),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
