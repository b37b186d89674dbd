/* vmsnap restore: a guest from an image, in the QEMU that the user names. */
#include "command.h"
#include "qapi/restore.h"
#include "units.h"

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

/* To stderr: standard output is QEMU's. */
static void print_restored(json_object *result) {
    g_autofree char *ready = units_format_us(result_double(result, "ready-ms") * 1e3);
    g_autofree char *stream = units_format_size(result_uint(result, "stream-bytes"));
    g_autofree char *mapped = units_format_size(result_uint(result, "mapped-bytes"));
    fprintf(stderr, "vmsnap restore: %s in %s, process %" PRIu64 "; %s sent, %s mapped\n",
            result_bool(result, "running") ? "runs" : "loaded and paused, as it was,", ready,
            result_uint(result, "pid"), stream, mapped);
}

/* The QEMU is the helper's child: it stays when this command ends. */
static int restore_remotely(Invocation *invocation, char **program) {
    int status = STATUS_DONE;
    g_autoptr(Client) client = invocation_connect(invocation, &status);
    if (!client)
        return status;
    json_object *command = json_object_new_array(), *arguments = json_object_new_object();
    for (; *program; program++)
        json_object_array_add(command, json_object_new_string(*program));
    client_add_path(client, arguments, "path", invocation->argv[0]);
    qapi_json_add(arguments, "command", command);
    return invocation_run_job(invocation, client, "restoring", "snapshot-load", arguments, print_restored);
}

/* qemu_process_wait() passes on what is blocked; Ctrl-C goes to QEMU, which ends by itself then. */
static void leave_signals_to_qemu(void) {
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGHUP);
    sigprocmask(SIG_BLOCK, &signals, NULL);
}

static const char *const map_names[QEMU_MAP_MAX] = {
    [QEMU_MAP_AUTO] = "auto",
    [QEMU_MAP_ALWAYS] = "always",
    [QEMU_MAP_NEVER] = "never",
};

/* FALSE: no such word. */
static gboolean parse_map(const char *text, QemuMap *ret_map) {
    for (QemuMap map = 0; map < QEMU_MAP_MAX; map++) {
        if (!text || strcmp(text, map_names[map]) == 0) {
            *ret_map = map;
            return TRUE;
        }
    }
    return FALSE;
}

static int wait_for(QemuProcess *process, int status) {
    int qemu_status = qemu_process_wait(process);
    if (qemu_status == 0)
        return status;
    fprintf(stderr, "vmsnap restore: QEMU ended with status %d\n", qemu_status);
    return STATUS_FAILED;
}

static int run(Invocation *invocation) {
    int status = STATUS_DONE;
    gboolean qemu = FALSE, detach = FALSE;
    g_autofree char *map = NULL;
    const GOptionEntry entries[] = {
        {"qemu", 0, 0, G_OPTION_ARG_NONE, &qemu, "What follows -- is a QEMU command", NULL},
        {"map", 0, 0, G_OPTION_ARG_STRING, &map, "Map RAM from the image instead of copying it",
         "auto|always|never"},
        {"detach", 0, 0, G_OPTION_ARG_NONE, &detach, "Leave QEMU running and return as soon as the guest runs",
         NULL},
        G_OPTION_ENTRY_NULL,
    };
    if (!invocation_parse(invocation, entries, 1, 1, &status))
        return status;
    if (!qemu || !invocation->program || !*invocation->program)
        return invocation_usage(invocation, "%s is missing", qemu ? "-- QEMU-COMMAND..." : "--qemu");

    QapiRestoreOptions options = {.dir = invocation->argv[0], .argv = invocation->program};
    if (!parse_map(map, &options.qemu.map))
        return invocation_usage(invocation, "--map=%s: it is auto, always or never", map);
    if (invocation->connect && map)
        return invocation_usage(invocation, "--map: not over --connect, where it is auto");
    if (invocation->connect)
        return restore_remotely(invocation, invocation->program);
    leave_signals_to_qemu();
    g_autoptr(QemuProcess) process = NULL;
    g_autoptr(GError) error = NULL;
    g_autoptr(json_object) result = qapi_restore(&options, &process, &error);
    if (!result)
        return invocation_fail(invocation, error);
    status = invocation_finish(invocation, result, print_restored);
    return detach ? status : wait_for(process, status);
}

const Command command_restore = {
    .name = "restore",
    .operands = "DIR --qemu -- QEMU-COMMAND...",
    .summary = "Start a QEMU from an image.",
    .description =
        "Everything after -- is the command that the guest was started with, without -incoming and -S.\n"
        "It stays in the foreground, passes signals on and ends with QEMU. The image is not changed: it\n"
        "can be restored again and again. With mapped RAM (--map: by default where the command itself\n"
        "keeps RAM in a file or a memfd) the guest runs within milliseconds, but the image must stay\n"
        "where it is meanwhile, and that guest cannot be saved again; --map=never copies.\n\n"
        "Example:\n"
        "  vmsnap restore snap --qemu -- qemu-system-x86_64 -m 1G -accel kvm -kernel guest.elf",
    .takes_program = TRUE,
    .run = run,
};
