/*
 * A QMP server in a VMM's own loop: nothing may be lost, and the loop may not be woken for nothing. This is where
 * a descriptor, an idle source or a timer shows that is not in what the VMM polls.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "client.h"
#include "vmm.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    CLIENTS = 8,
    COMMANDS = 500,
    OUT_OF_BAND = 50, /* one in so many */
    IDLE_MS = 3000,
};

#define MS UINT64_C(1000000)

static int vmm_up(void **state) {
    Vmm *vmm = g_new0(Vmm, 1);
    vmm_init(vmm, "anon", VMM_OWN_LOOP);
    *state = vmm;
    return 0;
}

static int vmm_down(void **state) {
    Vmm *vmm = *state;
    vmm_clear(vmm);
    g_free(vmm);
    return 0;
}

/* Until nothing happens any more; then nothing may happen. */
static void expect_idle(const Vmm *vmm, unsigned ms) {
    uint64_t before = UINT64_MAX;
    for (int i = 0; i < 50 && before != vmm->wakeups; i++) {
        before = vmm->wakeups;
        g_usleep(200000);
    }
    before = __atomic_load_n(&vmm->wakeups, __ATOMIC_RELAXED);
    g_usleep(ms * 1000);
    assert_int_equal(__atomic_load_n(&vmm->wakeups, __ATOMIC_RELAXED) - before, 0);
}

/* ---- many commands at once ------------------------------------------------------------------------------- */

/* One of several clients, each in a thread of its own, where cmocka cannot be told of a failure. */
typedef struct {
    const char *socket;
    bool oob;
    GString *out;
    GString *in;
    gsize sent;
    unsigned n_in_band; /* answers, in order */
    unsigned n_out_of_band;
    char problem[256];
} Flood;

static void write_commands(Flood *flood) {
    static const char *const commands[] = {"query-version", "query-name", "query-status", "query-targets",
                                           "query-commands"};
    flood->out = g_string_new(NULL);
    g_string_append_printf(flood->out, "{\"execute\":\"qmp_capabilities\",\"arguments\":{\"enable\":[%s]}}",
                           flood->oob ? "\"oob\"" : "");
    for (unsigned i = 0; i < COMMANDS; i++) {
        g_string_append_printf(flood->out, "{\"execute\":\"%s\",\"id\":%u}", commands[i % G_N_ELEMENTS(commands)],
                               i);
        if (flood->oob && i % OUT_OF_BAND == 0)
            g_string_append(flood->out, "{\"exec-oob\":\"query-targets\",\"id\":\"oob\"}");
    }
}

static void look_at(Flood *flood, const char *line) {
    g_autoptr(json_object) message = json_tokener_parse(line);
    json_object *id = client_member(message, "id");
    if (client_member(message, "QMP") || (client_member(message, "return") && !id))
        return;
    if (!client_member(message, "return"))
        g_strlcpy(flood->problem, line, sizeof(flood->problem));
    else if (json_object_is_type(id, json_type_string))
        flood->n_out_of_band++;
    else if (json_object_get_int64(id) == flood->n_in_band)
        flood->n_in_band++;
    else
        g_snprintf(flood->problem, sizeof(flood->problem), "%s after %u", line, flood->n_in_band);
}

static void take_lines(Flood *flood) {
    const char *end;
    while ((end = strstr(flood->in->str, "\r\n"))) {
        flood->in->str[end - flood->in->str] = 0;
        look_at(flood, flood->in->str);
        g_string_erase(flood->in, 0, end - flood->in->str + 2);
    }
}

/* Return: whether there is more to come. */
static bool exchange(Flood *flood, int fd) {
    char data[4096];
    bool all_sent = flood->sent == flood->out->len;
    struct pollfd ready = {.fd = fd, .events = all_sent ? POLLIN : POLLIN | POLLOUT};
    if (poll(&ready, 1, 10000) != 1) {
        g_snprintf(flood->problem, sizeof(flood->problem), "nothing after %u answers", flood->n_in_band);
        return false;
    }
    if (ready.revents & POLLOUT) {
        ssize_t n = send(fd, flood->out->str + flood->sent, flood->out->len - flood->sent, MSG_DONTWAIT);
        flood->sent += n > 0 ? (gsize)n : 0;
    }
    ssize_t n = recv(fd, data, sizeof(data), MSG_DONTWAIT);
    if (n > 0)
        g_string_append_len(flood->in, data, n);
    take_lines(flood);
    return (n > 0 || (n < 0 && errno == EAGAIN)) && !flood->problem[0] && flood->n_in_band < COMMANDS;
}

static void *flood(void *opaque) {
    Flood *one = opaque;
    one->in = g_string_new(NULL);
    write_commands(one);
    int fd = client_connect(one->socket);
    while (exchange(one, fd))
        continue;
    close(fd);
    g_string_free(one->in, TRUE);
    g_string_free(one->out, TRUE);
    return NULL;
}

static void pipelined_commands_are_all_answered_in_order(void **state) {
    Vmm *vmm = *state;
    pthread_t threads[CLIENTS];
    Flood floods[CLIENTS] = {0};
    for (int i = 0; i < CLIENTS; i++) {
        floods[i] = (Flood){.socket = vmm->socket, .oob = i % 2};
        assert_int_equal(pthread_create(&threads[i], NULL, flood, &floods[i]), 0);
    }
    for (int i = 0; i < CLIENTS; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < CLIENTS; i++) {
        assert_string_equal(floods[i].problem, "");
        assert_int_equal(floods[i].n_in_band, COMMANDS);
        assert_int_equal(floods[i].n_out_of_band, floods[i].oob ? COMMANDS / OUT_OF_BAND : 0);
    }
    print_message("%lu wake-ups, the longest %lu us\n", vmm->wakeups, vmm->longest_ns / 1000);
}

/* A client that reads late: the server waits for it to be writable, and the loop with it. */
static void answers_wait_for_a_slow_reader(void **state) {
    enum { TIMES = 100 };
    Vmm *vmm = *state;
    Client slow, other;
    client_open(&slow, vmm->socket);
    client_open(&other, vmm->socket);
    for (int i = 0; i < TIMES; i++)
        client_send(&slow, "{\"execute\":\"query-qmp-schema\"}");
    client_run(&other, "{'execute': 'stop'}");
    expect_idle(vmm, 300); /* it does not read: there is nothing to do */
    for (int i = 0, answers = 0; answers < TIMES; i++) {
        g_autoptr(json_object) message = client_read(&slow);
        assert_non_null(message);
        answers += client_member(message, "return") != NULL;
    }
    client_run(&slow, "{'execute': 'cont'}");
    client_close(&slow);
    client_close(&other);
}

/* ---- the loop's time ------------------------------------------------------------------------------------- */

static void slow_command_does_not_hold_up_the_loop(void **state) {
    Vmm *vmm = *state;
    Client one, other;
    client_open(&one, vmm->socket);
    client_open(&other, vmm->socket);
    vmm->slow_ms = 1500;
    client_send(&one, "{\"execute\":\"stop\"}");
    uint64_t start_ns = clock_ns();
    for (int i = 0; i < 50; i++) {
        client_ask(&other, "{'execute': 'query-version'}");
        g_autoptr(json_object) targets = client_call(&other, "{'execute': 'query-targets'}");
        assert_non_null(client_member(targets, "0.id"));
    }
    assert_true(clock_ns() - start_ns < 1000 * MS);
    assert_true(vmm->longest_ns < 500 * MS);
    client_close(&one);
    client_close(&other);
    vmm->slow_ms = 0;
}

static unsigned descriptors(void) {
    unsigned n = 0;
    DIR *dir = opendir("/proc/self/fd");
    while (readdir(dir))
        n++;
    closedir(dir);
    return n - 3; /* . and .. and its own */
}

/* Take all descriptors that this process may have. */
static void take_descriptors(GArray *ret_taken) {
    struct rlimit limit;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    limit.rlim_cur = 128;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
    int fd;
    while ((fd = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 0)) >= 0)
        g_array_append_val(ret_taken, fd);
}

/* Nobody can be taken in: the loop neither spins nor waits, and goes on when there is room again. */
static void client_without_a_descriptor_left_is_taken_later(void **state) {
    Vmm *vmm = *state;
    Client client, late;
    client_open(&client, vmm->socket);
    g_autoptr(GArray) taken = g_array_new(FALSE, FALSE, sizeof(int));
    take_descriptors(taken);
    close(g_array_index(taken, int, taken->len - 1));
    int fd = client_connect(vmm->socket); /* with the last one */
    g_array_set_size(taken, taken->len - 1);
    uint64_t wakeups = vmm->wakeups, busy_ns = vmm->busy_ns;
    for (int i = 0; i < 10; i++) {
        g_usleep(100000);
        client_ask(&client, "{'execute': 'query-version'}");
    }
    uint64_t idle = vmm->wakeups;
    g_usleep(500000);
    assert_in_range(vmm->wakeups - idle, 2, 10); /* that nobody's descriptor was the cause of */
    busy_ns = vmm->busy_ns - busy_ns;
    print_message("%lu wake-ups, %lu us\n", vmm->wakeups - wakeups, busy_ns / 1000);
    for (guint i = 0; i < taken->len; i++)
        close(g_array_index(taken, int, i));
    assert_true(vmm->wakeups - wakeups < 100);
    assert_true(busy_ns < 300 * MS);
    client_open_fd(&late, fd);
    client_close(&late);
    client_close(&client);
}

/* ---- idle ------------------------------------------------------------------------------------------------ */

static void idle_server_wakes_nobody(void **state) {
    Vmm *vmm = *state;
    expect_idle(vmm, IDLE_MS);
    Client client, gone;
    client_open(&client, vmm->socket);
    client_open(&gone, vmm->socket);
    client_run(&gone, "{'execute': 'snapshot-save', 'arguments': {'job-id': 'j', 'path': 'image'}}");
    g_autofree char *states = client_follow(&gone, "j");
    assert_non_null(states);
    client_close(&gone);
    vmm_check_image(vmm, "image");
    client_ask(&client, "{'execute': 'dirty-log-start', 'arguments': {'mode': 'sync'}}");
    expect_idle(vmm, IDLE_MS);
    client_ask(&client, "{'execute': 'query-version'}");
    client_close(&client);
    expect_idle(vmm, IDLE_MS);
}

/* A child of the VMM has all descriptors that were open when it was made, also those of clients that go. */
static void idle_server_wakes_nobody_while_a_child_lives(void **state) {
    Vmm *vmm = *state;
    Client clients[2], last;
    client_open(&clients[0], vmm->socket);
    client_open(&clients[1], vmm->socket);
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        /* The clients' own ends: else they would not be closed either. */
        close(clients[0].fd);
        close(clients[1].fd);
        for (;;)
            pause();
    }
    assert_true(pid > 0);
    client_close(&clients[0]);
    client_close(&clients[1]);
    expect_idle(vmm, IDLE_MS);
    client_open(&last, vmm->socket);
    client_run(&last, "{'execute': 'stop'}");
    client_close(&last);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

/* ---- clients come and go --------------------------------------------------------------------------------- */

static void clients_that_vanish_leave_nothing(void **state) {
    static const char *const last_words[] = {
        "",
        "{\"execute\":\"query-ver",
        "{\"execute\":\"query-qmp-schema\"}{\"execute\":\"query-status\"}{\"execute\":\"stop\"}",
        "{\"execute\":\"stop\"}{\"execute\":\"cont\"}]]]{",
    };
    Vmm *vmm = *state;
    Client witness;
    client_open(&witness, vmm->socket);
    client_run(&witness, "{'execute': 'stop'}");
    unsigned before = descriptors();
    for (unsigned i = 0; i < 40; i++) {
        Client client;
        client_open(&client, vmm->socket);
        client_send(&client, last_words[i % G_N_ELEMENTS(last_words)]);
        client_close(&client);
        client_ask(&witness, "{'execute': 'query-version'}");
    }
    for (int i = 0; i < 100 && descriptors() > before; i++)
        g_usleep(50000);
    assert_int_equal(descriptors(), before);
    client_close(&witness);
}

static void clients_that_were_connected_before_are_served(void **state) {
    Vmm *vmm = *state;
    vmm_end_server(vmm);
    vmm_begin_server(vmm);
    int ends[2][2];
    for (int i = 0; i < 2; i++) {
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends[i]), 0);
        snap_qmp_add_client(vmm->qmp, ends[i][0]);
    }
    vmm_serve(vmm, VMM_OWN_LOOP);
    Client one, other;
    client_open_fd(&one, ends[0][1]);
    client_open_fd(&other, ends[1][1]);
    client_run(&one, "{'execute': 'stop'}");
    client_await(&other, "STOP {\"target\":\"embedded\"}");
    client_close(&one);
    client_run(&other, "{'execute': 'cont'}");
    client_close(&other);
}

int main(void) {
    if (!vmm_can_run())
        return 77;
#define CASE(function) cmocka_unit_test_setup_teardown(function, vmm_up, vmm_down)
    const struct CMUnitTest tests[] = {
        CASE(pipelined_commands_are_all_answered_in_order),
        CASE(answers_wait_for_a_slow_reader),
        CASE(slow_command_does_not_hold_up_the_loop),
        CASE(client_without_a_descriptor_left_is_taken_later),
        CASE(idle_server_wakes_nobody),
        CASE(idle_server_wakes_nobody_while_a_child_lives),
        CASE(clients_that_vanish_leave_nothing),
        CASE(clients_that_were_connected_before_are_served),
    };
#undef CASE
    return cmocka_run_group_tests_name("embedded-loop", tests, NULL, NULL);
}
