/*
 * Commands and events of an attached QEMU, beside its snapshots: the verbs of qemu.h that need no more than its
 * connection.
 *
 * Happy path of a command: wait for the turn, send it, wait for its answer. Failure modes: QEMU refuses it, which
 * is told in its own words and class; somebody else has the turn for too long; the connection is lost in between,
 * and the command may or may not have been carried out.
 */
#include "guest.h"
#include "qemu.h"

G_DEFINE_QUARK(qemu - error, qemu_error)

/* Classes that SNAP_ERROR has no code for. */
static const char *const classes[] = {
    [QEMU_ERROR_COMMAND_NOT_FOUND] = "CommandNotFound",
    [QEMU_ERROR_DEVICE_NOT_ACTIVE] = "DeviceNotActive",
    [QEMU_ERROR_KVM_MISSING_CAP] = "KVMMissingCap",
};
_Static_assert(G_N_ELEMENTS(classes) == QEMU_ERROR_MAX, "every class has a name");

const char *qemu_error_class(const GError *error) {
    if (error->domain == QEMU_ERROR && error->code >= 0 && error->code < QEMU_ERROR_MAX)
        return classes[error->code];
    return snap_error_qmp_class(error->domain == SNAP_ERROR ? error->code : SNAP_ERROR_FAILED);
}

/* What QEMU has said of a command. */
static void set_refusal(GError **error, json_object *refusal) {
    const char *name = qmp_get_string(refusal, "class");
    const char *text = qmp_get_string(refusal, "desc");
    for (int i = 0; i < QEMU_ERROR_MAX; i++)
        if (g_str_equal(name, classes[i])) {
            g_set_error_literal(error, QEMU_ERROR, i, text);
            return;
        }
    gboolean not_found = g_str_equal(name, snap_error_qmp_class(SNAP_ERROR_NOT_FOUND));
    g_set_error_literal(error, SNAP_ERROR, not_found ? SNAP_ERROR_NOT_FOUND : SNAP_ERROR_FAILED, text);
}

/* For who has the turn. @arguments: (take). */
static json_object *run(Connection *connection, const char *command, json_object *arguments, int timeout_ms,
                        GError **error) {
    g_autoptr(json_object) taken = arguments;
    g_autoptr(GError) why = NULL;
    json_object *answer = NULL;
    Qmp *qmp = connection_qmp(connection, error);
    if (!qmp)
        return NULL;
    if (qmp_command(qmp, command, g_steal_pointer(&taken), timeout_ms, &answer, &why))
        return answer ? answer : json_object_new_object();
    if (qmp_refusal(qmp))
        set_refusal(error, qmp_refusal(qmp));
    else
        g_propagate_error(error, g_steal_pointer(&why));
    return NULL;
}

json_object *qemu_guest_command(SnapGuest *guest, const char *command, json_object *arguments, int timeout_ms,
                                GError **error) {
    Connection *connection = qemu_guest_connection(guest);
    int64_t deadline = g_get_monotonic_time() + (int64_t)timeout_ms * 1000;
    if (!connection)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_USAGE, "the guest is no QEMU: it has no commands");
    if (!connection || !connection_take(connection, timeout_ms, error)) {
        json_object_put(arguments);
        return NULL;
    }
    int64_t left_ms = (deadline - g_get_monotonic_time()) / 1000;
    json_object *answer = run(connection, command, arguments, (int)MAX(left_ms, 1), error);
    connection_give(connection);
    return answer;
}

int qemu_guest_fd(SnapGuest *guest) {
    Connection *connection = qemu_guest_connection(guest);
    return connection ? connection_fd(connection) : -1;
}

gboolean qemu_guest_read_events(SnapGuest *guest, GError **error) {
    Connection *connection = qemu_guest_connection(guest);
    return !connection || connection_read_events(connection, error);
}

void qemu_guest_set_event_func(SnapGuest *guest, QemuEventFunc func, void *opaque) {
    Connection *connection = qemu_guest_connection(guest);
    if (connection)
        connection_set_event_func(connection, func, opaque);
}
