/*
 * A QMP server inside a VMM, as clients see it: served by a thread of its own, and by the VMM's own loop, each
 * with guest memory of two kinds. The guest writes as fast as it can meanwhile, so that every image is of a moment
 * in the middle of something; it must be the memory at exactly that moment.
 *
 * What only the own loop can get wrong is in test-embedded-loop.c, ends are in test-embedded-end.c.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "client.h"
#include "vmm.h"

#include <unistd.h>

enum { TIMES = 10 }; /* with each kind of memory */

#define SAVED "created running waiting pending concluded"

typedef struct {
    const char *name;
    const char *memory;
    VmmServing serving;
} Way;

static const Way ways[] = {
    {"thread, anon", "anon", VMM_THREAD},
    {"thread, memfd", "memfd", VMM_THREAD},
    {"own loop, anon", "anon", VMM_OWN_LOOP},
    {"own loop, memfd", "memfd", VMM_OWN_LOOP},
};

typedef struct {
    Vmm vmm;
    Client client;
} Rig;

static int rig_init(void **state) {
    const Way *way = *state;
    Rig *rig = g_new0(Rig, 1);
    vmm_init(&rig->vmm, way->memory, way->serving);
    client_open(&rig->client, rig->vmm.socket);
    *state = rig;
    return 0;
}

static int rig_clear(void **state) {
    Rig *rig = *state;
    client_close(&rig->client);
    vmm_clear(&rig->vmm);
    g_free(rig);
    return 0;
}

static void expect_event(Rig *rig, const char *expected) {
    g_autofree char *event = client_event(&rig->client);
    assert_string_equal(event, expected);
}

static void expect_failure(Rig *rig, const char *command, const char *expected) {
    g_autofree char *failure = client_fail(&rig->client, "%s", command);
    assert_string_equal(failure, expected);
}

/* ---- queries, stop and cont ------------------------------------------------------------------------------ */

static void queries_tell_of_the_vmm(void **state) {
    Rig *rig = *state;
    g_autoptr(json_object) name = client_call(&rig->client, "{'execute': 'query-name'}");
    g_autoptr(json_object) status = client_call(&rig->client, "{'execute': 'query-status'}");
    g_autoptr(json_object) targets = client_call(&rig->client, "{'execute': 'query-targets'}");
    assert_string_equal(client_text(name, "name"), "vm0");
    assert_string_equal(client_text(status, "status"), "running");
    assert_int_equal(json_object_array_length(targets), 1);
    assert_string_equal(client_text(targets, "0.id"), "embedded");
    assert_string_equal(client_text(targets, "0.driver"), "embedded");
    assert_string_equal(client_text(targets, "0.state"), "attached");
    assert_int_equal(client_number(targets, "0.pid"), getpid());
}

/* An event comes where it makes a difference, and before the answer. */
static void stop_and_cont_hold_the_guest(void **state) {
    Rig *rig = *state;
    vmm_await_writes(&rig->vmm, 1000);
    for (int i = 0; i < 3; i++) {
        client_run(&rig->client, "{'execute': 'stop'}");
        client_run(&rig->client, "{'execute': 'stop'}");
        uint64_t written = vmm_written(&rig->vmm);
        g_autoptr(json_object) status = client_call(&rig->client, "{'execute': 'query-status'}");
        assert_string_equal(client_text(status, "status"), "paused");
        assert_int_equal(vmm_written(&rig->vmm), written);
        client_run(&rig->client, "{'execute': 'cont'}");
        client_run(&rig->client, "{'execute': 'cont', 'arguments': {}}");
        vmm_await_writes(&rig->vmm, 1000);
        assert_int_equal(rig->client.events.length, 2);
        expect_event(rig, "STOP {\"target\":\"embedded\"}");
        expect_event(rig, "RESUME {\"target\":\"embedded\"}");
    }
}

static void stop_that_fails_is_told_and_is_no_event(void **state) {
    Rig *rig = *state;
    rig->vmm.fails = true;
    expect_failure(rig, "{'execute': 'stop'}", "GenericError: the lid is open");
    rig->vmm.fails = false;
    assert_int_equal(rig->client.events.length, 0);
    vmm_await_writes(&rig->vmm, 1000);
}

static void quit_is_the_vmms_affair(void **state) {
    Rig *rig = *state;
    client_run(&rig->client, "{'execute': 'quit'}");
    assert_int_equal(rig->vmm.quits, 1);
    client_run(&rig->client, "{'execute': 'stop'}");
}

/* The guest is there as long as the server: nobody could add it again. */
static void embedded_target_cannot_be_added_or_deleted(void **state) {
    Rig *rig = *state;
    expect_failure(rig, "{'execute': 'target-del', 'arguments': {'id': 'embedded'}}",
                   "GenericError: target embedded is this program itself, and stays");
    expect_failure(rig, "{'execute': 'target-add', 'arguments': {'id': 'x', 'driver': 'embedded'}}",
                   "GenericError: Parameter 'driver' does not accept value 'embedded'");
    g_autofree char *failure =
        client_fail(&rig->client,
                    "{'execute': 'target-add', 'arguments': {'id': 'x', 'driver': 'process',"
                    " 'pid': %d}}",
                    getpid());
    g_autofree char *expected =
        g_strdup_printf("GenericError: process %d is this very process: it cannot stop itself", getpid());
    assert_string_equal(failure, expected);
    vmm_await_writes(&rig->vmm, 1000);
}

/* ---- saves ----------------------------------------------------------------------------------------------- */

static void save(Rig *rig, const char *more) {
    client_run(&rig->client, "{'execute': 'snapshot-save', 'arguments': {'job-id': 'j', 'path': 'image'%s}}",
               more);
}

static void dismiss(Rig *rig) {
    client_run(&rig->client, "{'execute': 'job-dismiss', 'arguments': {'id': 'j'}}");
    expect_event(rig, "JOB_STATUS_CHANGE {\"id\":\"j\",\"status\":\"null\"}");
}

static void save_and_check(Rig *rig) {
    save(rig, "");
    g_autofree char *states = client_follow(&rig->client, "j");
    assert_string_equal(states, SAVED);
    dismiss(rig);
    vmm_check_image(&rig->vmm, "image");
}

static void save_is_the_memory_at_one_moment(void **state) {
    Rig *rig = *state;
    uint64_t before = vmm_written(&rig->vmm);
    for (int i = 0; i < TIMES; i++) {
        vmm_await_writes(&rig->vmm, 20000);
        save_and_check(rig);
    }
    print_message("%lu writes meanwhile\n", vmm_written(&rig->vmm) - before);
}

/* Whoever asks while the guest is saved sees it run, and a stop of a client outlasts the save. */
static void save_does_not_let_a_stopped_guest_go(void **state) {
    Rig *rig = *state;
    client_run(&rig->client, "{'execute': 'stop'}");
    expect_event(rig, "STOP {\"target\":\"embedded\"}");
    uint64_t written = vmm_written(&rig->vmm);
    save_and_check(rig);
    assert_int_equal(vmm_written(&rig->vmm), written);
    client_run(&rig->client, "{'execute': 'cont'}");
    vmm_await_writes(&rig->vmm, 1000);
}

/* stop and cont as fast as they go, while saves have their points in time. */
static void saves_are_exact_while_clients_stop_and_go(void **state) {
    Rig *rig = *state;
    Client other;
    client_open(&other, rig->vmm.socket);
    for (int i = 0; i < 4; i++) {
        save(rig, "");
        for (int j = 0; j < 20; j++) {
            client_run(&other, "{'execute': 'stop'}");
            client_run(&other, "{'execute': 'cont'}");
        }
        g_autofree char *states = client_follow(&rig->client, "j");
        assert_string_equal(states, SAVED);
        client_run(&rig->client, "{'execute': 'job-dismiss', 'arguments': {'id': 'j'}}");
        client_await(&rig->client, "JOB_STATUS_CHANGE {\"id\":\"j\",\"status\":\"null\"}");
        vmm_check_image(&rig->vmm, "image");
    }
    client_close(&other);
}

static void await_phase(Rig *rig, const char *phase) {
    for (int i = 0; i < 2000; i++) {
        g_autoptr(json_object) jobs = client_call(&rig->client, "{'execute': 'query-job-statistics'}");
        if (g_str_equal(client_text(jobs, "0.save.phase"), phase))
            return;
        g_usleep(5000);
    }
    fail_msg("the save does not come to be %s", phase);
}

/* At this speed it would take a minute. */
static void save_cancelled_midway_leaves_nothing(void **state) {
    Rig *rig = *state;
    for (int i = 0; i < 5; i++) {
        save(rig, ", 'max-bandwidth': 1000000");
        await_phase(rig, "sweeping");
        client_run(&rig->client, "{'execute': 'job-cancel', 'arguments': {'id': 'j'}}");
        g_autofree char *states = client_follow(&rig->client, "j");
        assert_string_equal(states, "created running aborting concluded");
        g_autoptr(json_object) jobs = client_call(&rig->client, "{'execute': 'query-jobs'}");
        assert_true(g_str_has_prefix(client_text(jobs, "0.error"), "cancelled; the guest runs on"));
        dismiss(rig);
        g_autofree char *dir = g_build_filename(rig->vmm.folder, "image", NULL);
        assert_false(g_file_test(dir, G_FILE_TEST_EXISTS));
        vmm_await_writes(&rig->vmm, 20000);
    }
    save_and_check(rig);
}

/* ---- the dirty log --------------------------------------------------------------------------------------- */

static const uint64_t some_pages[] = {0, 1, 2, 100, 4095, 4096, 9000};

/* What is collected must be runs of these pages. */
static void check_round(Rig *rig, json_object *round) {
    uint64_t page_bytes = rig->vmm.backing.page_bytes;
    assert_int_equal(client_number(round, "dirty-pages"), G_N_ELEMENTS(some_pages));
    guint seen = 0;
    gsize n = json_object_array_length(client_member(round, "ranges"));
    for (gsize i = 0; i < n; i++) {
        json_object *range = json_object_array_get_idx(client_member(round, "ranges"), i);
        assert_string_equal(client_text(range, "region"), "ram");
        uint64_t offset = (uint64_t)client_number(range, "offset");
        assert_int_equal(client_number(range, "address"), (uintptr_t)rig->vmm.backing.arena + offset);
        for (int64_t left = client_number(range, "length"); left > 0; left -= (int64_t)page_bytes) {
            assert_true(seen < G_N_ELEMENTS(some_pages));
            assert_int_equal(offset, some_pages[seen++] * page_bytes);
            offset += page_bytes;
        }
    }
    assert_int_equal(seen, G_N_ELEMENTS(some_pages));
}

static void collect_what_is_touched(Rig *rig) {
    for (guint i = 0; i < G_N_ELEMENTS(some_pages); i++)
        vmm_touch(&rig->vmm, some_pages[i]);
    g_autoptr(json_object) round = client_call(&rig->client, "{'execute': 'dirty-log-collect'}");
    check_round(rig, round);
    g_autoptr(json_object) after = client_call(&rig->client, "{'execute': 'dirty-log-collect'}");
    assert_int_equal(client_number(after, "dirty-pages"), 0);
}

static void log_once(Rig *rig, const char *mode) {
    client_run(&rig->client, "{'execute': 'stop'}");
    g_autoptr(json_object) log =
        client_call(&rig->client, "{'execute': 'dirty-log-start', 'arguments': {'mode': '%s'}}", mode);
    assert_string_equal(client_text(log, "log"), mode);
    collect_what_is_touched(rig);
    collect_what_is_touched(rig);
    client_run(&rig->client, "{'execute': 'cont'}");
    vmm_await_writes(&rig->vmm, 1000);
    g_autoptr(json_object) round = client_call(&rig->client, "{'execute': 'dirty-log-collect'}");
    assert_true(client_number(round, "dirty-pages") >= 1000);
    client_run(&rig->client, "{'execute': 'dirty-log-stop'}");
    expect_failure(rig, "{'execute': 'dirty-log-collect'}",
                   "GenericError: target embedded is not logged; dirty-log-start begins");
    vmm_await_writes(&rig->vmm, 1000);
}

static void log_has_the_pages_that_were_written(void **state) {
    Rig *rig = *state;
    log_once(rig, "sync");
    if (vmm_has_async())
        log_once(rig, "async");
    else
        print_message("this kernel has no async log\n");
}

/* ---------------------------------------------------------------------------------------------------------- */

int main(void) {
    if (!vmm_can_run())
        return 77;
    int failed = 0;
    for (guint i = 0; i < G_N_ELEMENTS(ways); i++) {
#define CASE(function)                                                                                            \
    { #function, function, rig_init, rig_clear, (void *)&ways[i] }
        const struct CMUnitTest tests[] = {
            CASE(queries_tell_of_the_vmm),
            CASE(stop_and_cont_hold_the_guest),
            CASE(stop_that_fails_is_told_and_is_no_event),
            CASE(quit_is_the_vmms_affair),
            CASE(embedded_target_cannot_be_added_or_deleted),
            CASE(save_is_the_memory_at_one_moment),
            CASE(save_does_not_let_a_stopped_guest_go),
            CASE(saves_are_exact_while_clients_stop_and_go),
            CASE(save_cancelled_midway_leaves_nothing),
            CASE(log_has_the_pages_that_were_written),
        };
#undef CASE
        failed += cmocka_run_group_tests_name(ways[i].name, tests, NULL, NULL);
    }
    return failed;
}
