/* What each kind of target does its own way: see target-drivers.h. */
#include "target-drivers.h"

#include "embedded.h"
#include "process/process.h"
#include "qemu/qemu.h"
#include "targets.h"

#define VERB_TIMEOUT_MS 60000 /* stop writes out what disks have cached */

static const char *const verb_names[] = {
    [QAPI_VERB_STATUS] = "query-status",
    [QAPI_VERB_NAME] = "query-name",
    [QAPI_VERB_STOP] = "stop",
    [QAPI_VERB_CONT] = "cont",
};
G_STATIC_ASSERT(G_N_ELEMENTS(verb_names) == QAPI_VERB_MAX);

/* ---- process --------------------------------------------------------------------------------------------- */

static SnapGuest *open_process(const QapiCall *call, char **ret_where, GError **error) {
    int64_t pid = qapi_int(call, "pid", 0);
    *ret_where = NULL;
    if (pid < 1 || pid > G_MAXINT) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "Parameter 'pid' expects the number of a process");
        return NULL;
    }
    return process_guest_new((int)pid, error);
}

static json_object *run_state(gboolean running, const char *status) {
    json_object *object = json_object_new_object();
    qapi_json_add_bool(object, "running", running);
    qapi_json_add_bool(object, "singlestep", FALSE);
    qapi_json_add_string(object, "status", status);
    return object;
}

json_object *qapi_run_state(gboolean running) {
    return run_state(running, running ? "running" : "paused");
}

json_object *qapi_run_state_named(const char *status) {
    return run_state(FALSE, status);
}

static json_object *process_status(SnapGuest *guest, GError **error) {
    gboolean stopped = FALSE;
    return process_guest_is_stopped(guest, &stopped, error) ? qapi_run_state(!stopped) : NULL;
}

static json_object *process_name(SnapGuest *guest) {
    g_autofree char *path = g_strdup_printf("/proc/%d/comm", snap_guest_pid(guest));
    g_autofree char *name = NULL;
    json_object *object = json_object_new_object();
    if (g_file_get_contents(path, &name, NULL, NULL))
        qapi_json_add_string(object, "name", g_strchomp(name));
    return object;
}

/* As QEMU: an event where it makes a difference. */
static void process_stop(SnapGuest *guest, gboolean stop, QapiTarget *target, GError **error) {
    gboolean stopped = FALSE;
    if (!process_guest_is_stopped(guest, &stopped, error) || stopped == stop)
        return;
    if (stop ? process_guest_stop(guest, error) : process_guest_cont(guest, error))
        qapi_target_emit(target, stop ? "STOP" : "RESUME", NULL, 0);
}

static json_object *run_process(SnapGuest *guest, QapiVerb verb, QapiTarget *target, void *own, GError **error) {
    (void)own;
    if (verb == QAPI_VERB_STATUS)
        return process_status(guest, error);
    if (verb == QAPI_VERB_NAME)
        return process_name(guest);
    process_stop(guest, verb == QAPI_VERB_STOP, target, error);
    return NULL;
}

/* ---- qemu ------------------------------------------------------------------------------------------------ */

static SnapGuest *open_qemu(const QapiCall *call, char **ret_where, GError **error) {
    gboolean ignore = g_strcmp0(qapi_string(call, "disks"), "ignore") == 0;
    QemuGuestOptions options = {.disks = ignore ? QEMU_DISKS_IGNORE : QEMU_DISKS_REFUSE};
    *ret_where = qapi_call_path(call, "qmp-socket");
    return qemu_guest_new(*ret_where, &options, error);
}

static json_object *run_qemu(SnapGuest *guest, QapiVerb verb, QapiTarget *target, void *own, GError **error) {
    (void)target, (void)own;
    json_object *answer = qemu_guest_command(guest, verb_names[verb], NULL, VERB_TIMEOUT_MS, error);
    if (answer && verb == QAPI_VERB_STATUS && !json_object_object_get_ex(answer, "singlestep", NULL))
        qapi_json_add_bool(answer, "singlestep", FALSE); /* QEMU 9 has dropped it */
    return answer;
}

/* Those of QEMU's events that are ours too. */
static void relay(const char *event, json_object *data, int64_t time_us, void *opaque) {
    static const char *const relayed[] = {"STOP", "RESUME", "SHUTDOWN", NULL};
    if (!g_strv_contains(relayed, event))
        return;
    qapi_target_emit(opaque, event, data ? qapi_json_copy(data) : NULL, time_us);
}

static void on_qemu_events(SnapGuest *guest, QapiTarget *target) {
    qemu_guest_set_event_func(guest, relay, target);
}

static void read_qemu_events(SnapGuest *guest) {
    qemu_guest_read_events(guest, NULL);
}

/* ---------------------------------------------------------------------------------------------------------- */

static const QapiDriver drivers[] = {
    {.name = "process", .open = open_process, .run = run_process},
    {.name = "qemu",
     .open = open_qemu,
     .run = run_qemu,
     .on_events = on_qemu_events,
     .event_fd = qemu_guest_fd,
     .read_events = read_qemu_events},
    {.name = "embedded", .run = qapi_embedded_run, .would_run = qapi_embedded_would_run},
};

const QapiDriver *qapi_driver_find(const char *name) {
    for (guint i = 0; i < G_N_ELEMENTS(drivers); i++)
        if (g_str_equal(drivers[i].name, name))
            return &drivers[i];
    g_assert_not_reached();
}
