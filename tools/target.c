/* Which guest: see target.h. */
#include "target.h"

#include "libsnap.h"

void target_options_clear(TargetOptions *options) {
    g_free(options->pid);
    g_free(options->qemu);
    g_free(options->libvirt);
}

static gboolean refuse(const Invocation *invocation, int *ret_status, const char *what) {
    *ret_status = invocation_usage(invocation, "%s", what);
    return FALSE;
}

gboolean target_parse(const Invocation *invocation, const TargetOptions *options, QapiGuestOptions *ret_target,
                      int *ret_status) {
    guint64 pid = 0;
    if (options->libvirt)
        return refuse(invocation, ret_status, "--libvirt: not built yet; --qemu with the domain's QMP socket is");
    if (!options->pid == !options->qemu)
        return refuse(invocation, ret_status, "one target, please: --pid PID or --qemu QMP-SOCKET");
    if (options->qemu) {
        *ret_target = (QapiGuestOptions){.kind = QAPI_GUEST_QEMU, .qemu = {.qmp_path = options->qemu}};
        return TRUE;
    }
    if (!g_ascii_string_to_unsigned(options->pid, 10, 1, G_MAXINT, &pid, NULL))
        return refuse(invocation, ret_status, "--pid: not a process id; a number from ps or pidof");
    *ret_target = (QapiGuestOptions){.kind = QAPI_GUEST_PROCESS, .process = {.pid = (int)pid}};
    return TRUE;
}

/* ---- where commands go ----------------------------------------------------------------------------------- */

/* Names tell what a command has added, and with which policy about disks: who cares must not inherit the other. */
#define IGNORES_DISKS "-nodisks"

static gboolean is_guest(const Client *client, json_object *target, const QapiGuestOptions *guest) {
    static const char *const by_pid[] = {"process", "embedded", NULL}; /* or the program that answers itself */
    gboolean attached = g_str_equal(result_string(target, "state"), "attached");
    if (guest->kind == QAPI_GUEST_PROCESS)
        return attached && g_strv_contains(by_pid, result_string(target, "driver")) &&
               result_uint(target, "pid") == (uint64_t)guest->process.pid;
    g_autofree char *path = client_path(client, guest->qemu.qmp_path);
    return attached && g_strcmp0(result_string(target, "qmp-socket"), path) == 0;
}

/* The target that @guest is already. *ret_id stays NULL where it is none. */
static gboolean find(Client *client, const QapiGuestOptions *guest, char **ret_id, GError **error) {
    g_autoptr(json_object) targets = client_command(client, "query-targets", NULL, error);
    for (gsize i = 0; targets && i < json_object_array_length(targets); i++) {
        json_object *target = json_object_array_get_idx(targets, i);
        if (is_guest(client, target, guest))
            *ret_id = g_strdup(result_string(target, "id"));
    }
    return targets != NULL;
}

static char *add(Client *client, const QapiGuestOptions *guest, GError **error) {
    gboolean is_qemu = guest->kind == QAPI_GUEST_QEMU;
    g_autofree char *name = client_name();
    g_autofree char *id = g_strconcat(name, is_qemu && guest->qemu.ignore_disks ? IGNORES_DISKS : "", NULL);
    json_object *arguments = json_object_new_object();
    qapi_json_add_string(arguments, "id", id);
    qapi_json_add_string(arguments, "driver", is_qemu ? "qemu" : "process");
    if (is_qemu) {
        client_add_path(client, arguments, "qmp-socket", guest->qemu.qmp_path);
        qapi_json_add_string(arguments, "disks", guest->qemu.ignore_disks ? "ignore" : "refuse");
    } else {
        qapi_json_add(arguments, "pid", json_object_new_int(guest->process.pid));
    }
    g_autoptr(json_object) added = client_command(client, "target-add", arguments, error);
    return added ? g_steal_pointer(&id) : NULL;
}

char *target_acquire(Client *client, const QapiGuestOptions *guest, GError **error) {
    g_autofree char *id = NULL;
    if (!find(client, guest, &id, error))
        return NULL;
    if (!id)
        return add(client, guest, error);
    gboolean cares = guest->kind == QAPI_GUEST_QEMU && !guest->qemu.ignore_disks;
    if (!cares || !g_str_has_prefix(id, CLIENT_NAME_PREFIX) || !g_str_has_suffix(id, IGNORES_DISKS))
        return g_steal_pointer(&id);
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_REFUSED,
                "another command works on this guest and ignores its disks; --disks ignore does so too, or wait");
    return NULL;
}

/* Somebody else may have come to use what we have added, or have left to us what it had added. */
void target_release(Client *client, const char *id) {
    if (!g_str_has_prefix(id, CLIENT_NAME_PREFIX))
        return;
    g_autoptr(json_object) targets = client_command(client, "query-targets", NULL, NULL);
    for (gsize i = 0; targets && i < json_object_array_length(targets); i++) {
        json_object *target = json_object_array_get_idx(targets, i);
        if (!g_str_equal(result_string(target, "id"), id) || result_uint(target, "jobs") > 0 ||
            result_bool(target, "dirty-log"))
            continue;
        json_object *arguments = json_object_new_object();
        qapi_json_add_string(arguments, "id", id);
        json_object_put(client_command(client, "target-del", arguments, NULL));
    }
}
