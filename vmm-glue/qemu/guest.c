/*
 * A running QEMU as a SnapGuest.
 *
 * Happy path of one snapshot: preflight and inventory while the guest runs; then, by one write, everything that
 * stops the guest and saves its device state into a memfd that QEMU got beforehand, and the `cont` but for its
 * last byte; the lengths of the RAM blocks by one read of QEMU's own records; the last byte. Nothing is done in
 * the pause that can be done before or after it: the state is read out of the memfd afterwards.
 *
 *     sent      info qom-tree stop xen-save-devices-state {"execute":"cont"        …arming…   }
 *     QEMU      └ busy ─────┘ └──┤ └───────────────────┘                                      └──┤
 *     guest     runs ────────────┤ STOP                                                   RESUME ├─ runs
 *
 * What makes the pause is not the work but the way of the commands into QEMU: its monitor reads them byte by byte,
 * in a thread of its own. While the main loop is busy with a harmless query this thread takes in all that follows,
 * which then runs without a gap. Measured for a plain 1 GiB memfd guest, one command after the other: 1.1-1.5 ms,
 * so: 0.7 ms. The query is one that takes about as long as the reading (0.5-1 ms) and leaves QEMU's heap as it
 * was: query-commands, which takes as long, made it grow by 0.8 MB.
 *
 * Failure modes: anything after `stop`: resume() sends `cont`, even over a connection that no longer answers. This
 * process is killed: the guard sends it, see LAST_WORDS below. A guest that did not run before is never let run. A
 * device that cannot be migrated, plugged in by another monitor within the millisecond between the last look at
 * query-migrate and the stop, is what nobody can guard against from outside.
 *
 * Invariants: `stopped` is TRUE from before `stop` is sent until `cont` has been sent. The connection's turn is
 * ours from pause(READY) to the end of resume(), so that no command of others comes in between.
 */
#include "guest.h"
#include "qemu.h"

#include "../process/guard.h"
#include "description.h"
#include "inventory.h"
#include "peer.h"
#include "preflight.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define STOP_TIMEOUT_MS 60000 /* `stop` writes out what the disks have cached, `cont` may take as long */
#define STATE_TIMEOUT_MS 20000

#define FDSET_FIRST 0x10000000 /* ours are this plus our process number; QEMU's own count from 0 */

#define SPIN_US 2000 /* how long answers are looked for without sleeping, in the pause */

/*
 * What the guard says when we are killed. Whatever half command is in QEMU's parser, the first byte does away with
 * it.
 *
 * QEMU forgets the commands it has not begun yet as soon as the connection closes, which the end of the guard
 * does. So QEMU itself is given a copy of our end of the connection to hold (getfd), which the last words make it
 * close.
 *
 * The descriptor for the device state is there for as long as the words are in force, and no longer: with the
 * connection it would go only where no other monitor of this QEMU has a client (libvirt, say).
 */
#define HELD_NAME "vmsnap"
#define LAST_WORDS_BEGIN "\1"
#define LAST_WORDS_CONT "{\"execute\":\"cont\"}"
#define LAST_WORDS_REMOVE "{\"execute\":\"remove-fd\",\"arguments\":{\"fdset-id\":%" G_GINT64_FORMAT "}}"
#define LAST_WORDS_CLOSE "{\"execute\":\"closefd\",\"arguments\":{\"fdname\":\"" HELD_NAME "\"}}\n"

typedef struct {
    QemuGuestOptions options;
    int pid;
    Connection *connection;
    Qmp *qmp; /* its client while we have the turn, NULL otherwise */
    Guard *guard;
    char *machine;
    char *accel;
    char *version;
    /* One snapshot: */
    Inventory *inventory;
    int state_fd;        /* memfd that QEMU writes its device state to */
    int64_t fdset;       /* its number in QEMU; -1 for none */
    gboolean expect_run; /* as preflight saw it */
    gboolean was_running;
    gboolean stopped;
    gboolean held; /* QEMU has our end of the connection as well */
} QemuGuest;

/* ---- the turn ---- */

/* From here on the connection is ours alone. */
static gboolean begin_turn(QemuGuest *guest, GError **error) {
    connection_take(guest->connection, -1, NULL);
    guest->qmp = connection_qmp(guest->connection, error);
    if (!guest->qmp)
        connection_give(guest->connection);
    return guest->qmp != NULL;
}

static void end_turn(QemuGuest *guest) {
    guest->qmp = NULL;
    connection_give(guest->connection);
}

/* The versioned type is what a migration stream names; "pc" is an alias that it never does. */
static gboolean read_machine(QemuGuest *guest, GError **error) {
    g_autoptr(json_object) type = NULL;
    g_autoptr(json_object) kvm = NULL;
    static const char suffix[] = "-machine";
    if (!qmp_command(guest->qmp, "qom-get", qmp_args("path", "/machine", "property", "type", NULL), QMP_TIMEOUT_MS,
                     &type, error) ||
        !qmp_command(guest->qmp, "query-kvm", NULL, QMP_TIMEOUT_MS, &kvm, error))
        return FALSE;
    const char *name = json_object_is_type(type, json_type_string) ? json_object_get_string(type) : "";
    size_t length = strlen(name);
    if (!g_str_has_suffix(name, suffix)) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED, "QEMU calls its machine \"%s\": no *%s", name,
                    suffix);
        return FALSE;
    }
    g_free(guest->machine);
    g_free(guest->accel);
    g_free(guest->version);
    guest->version = g_strdup(qmp_version(guest->qmp));
    guest->machine = g_strndup(name, length - strlen(suffix));
    guest->accel = g_strdup(qmp_get_bool(kvm, "enabled") ? "kvm" : "tcg");
    return TRUE;
}

/* ---- where QEMU writes its device state ---- */

/* QEMU wants a descriptor that is open for writing only. */
static int reopen_for_writing(int fd) {
    g_autofree char *path = g_strdup_printf("/proc/self/fd/%d", fd);
    return open(path, O_WRONLY | O_CLOEXEC);
}

static json_object *fdset_args(const QemuGuest *guest) {
    json_object *arguments = json_object_new_object();
    json_object_object_add(arguments, "fdset-id", json_object_new_int64(guest->fdset));
    return arguments;
}

/* QEMU 7 closes it only while the guest runs: one that is paused keeps an empty memfd until then. */
static void remove_fdset(QemuGuest *guest) {
    if (guest->fdset >= 0 && qmp_send(guest->qmp, "remove-fd", fdset_args(guest), -1, NULL))
        qmp_receive_rest(guest->qmp, QMP_TIMEOUT_MS, NULL);
    guest->fdset = -1;
}

static void empty_state(const QemuGuest *guest) {
    if (guest->state_fd >= 0 && ftruncate(guest->state_fd, 0) < 0)
        g_debug("the device state stays in QEMU's memfd: %s", g_strerror(errno));
}

static gboolean add_fdset(QemuGuest *guest, GError **error) {
    empty_state(guest);
    if (guest->state_fd >= 0)
        close(guest->state_fd);
    guest->state_fd = memfd_create("device-state", MFD_CLOEXEC);
    int writer = guest->state_fd < 0 ? -1 : reopen_for_writing(guest->state_fd);
    if (writer < 0) {
        snap_set_errno(error, errno, "a memfd for the device state");
        return FALSE;
    }
    gboolean ok = qmp_send(guest->qmp, "add-fd", fdset_args(guest), writer, error) &&
                  qmp_receive(guest->qmp, QMP_TIMEOUT_MS, NULL, error);
    close(writer);
    return ok;
}

/* ---- regions ---- */

static gboolean list_running(QemuGuest *guest, GPtrArray *regions, GError **error) {
    g_clear_pointer(&guest->inventory, inventory_free);
    if (!preflight_check(guest->qmp, guest->pid, guest->options.disks, &guest->expect_run, error) ||
        !read_machine(guest, error))
        return FALSE;
    guest->inventory = inventory_new(guest->qmp, guest->pid, error);
    if (!guest->inventory)
        return FALSE;
    inventory_append(guest->inventory, regions);
    preflight_regions(guest->pid, regions);
    return TRUE;
}

static gboolean list_regions(void *opaque, gboolean paused, GPtrArray *regions, GError **error) {
    QemuGuest *guest = opaque;
    if (paused) {
        if (!inventory_update(guest->inventory, guest->qmp, error))
            return FALSE;
        inventory_append(guest->inventory, regions);
        return TRUE;
    }
    if (!begin_turn(guest, error))
        return FALSE;
    gboolean ok = list_running(guest, regions, error);
    end_turn(guest);
    return ok;
}

static int open_uffd(void *opaque, GError **error) {
    QemuGuest *guest = opaque;
    return guard_open_uffd(guest->guard, guest->pid, error);
}

/* ---- the pause ---- */

static gboolean arm_guard(QemuGuest *guest, GError **error) {
    g_autofree char *words = g_strdup_printf(LAST_WORDS_BEGIN "%s" LAST_WORDS_REMOVE LAST_WORDS_CLOSE,
                                             guest->expect_run ? LAST_WORDS_CONT : "", guest->fdset);
    return guard_on_death(guest->guard, qmp_fd(guest->qmp), words, strlen(words), error);
}

/*
 * The last look: a machine that cannot be migrated must not be asked for its device state, for that crashes QEMU.
 * In the same breath QEMU is given our end of the connection.
 */
static gboolean look_again(QemuGuest *guest, GError **error) {
    g_autoptr(json_object) migration = NULL;
    g_autoptr(json_object) status = NULL;
    qmp_queue(guest->qmp, "query-migrate", NULL);
    qmp_queue(guest->qmp, "query-status", NULL);
    guest->held = TRUE;
    if (!qmp_send(guest->qmp, "getfd", qmp_args("fdname", HELD_NAME, NULL), qmp_fd(guest->qmp), error))
        return FALSE;
    gboolean ok = qmp_receive(guest->qmp, QMP_TIMEOUT_MS, &migration, error);
    ok = qmp_receive(guest->qmp, QMP_TIMEOUT_MS, &status, ok ? error : NULL) && ok;
    ok = qmp_receive(guest->qmp, QMP_TIMEOUT_MS, NULL, ok ? error : NULL) && ok;
    return ok && preflight_migration(migration, error) && preflight_status(status, &guest->expect_run, error);
}

static gboolean send_stop_and_save(QemuGuest *guest, GError **error) {
    g_autofree char *name = g_strdup_printf("/dev/fdset/%" G_GINT64_FORMAT, guest->fdset);
    json_object *arguments = qmp_args("filename", name, NULL);
    json_object_object_add(arguments, "live", json_object_new_boolean(FALSE));
    qmp_queue(guest->qmp, "human-monitor-command", qmp_args("command-line", "info qom-tree", NULL));
    qmp_queue(guest->qmp, "stop", NULL);
    if (!guest->expect_run || !guest->inventory->have_records)
        return qmp_send(guest->qmp, "xen-save-devices-state", arguments, -1, error);
    qmp_queue(guest->qmp, "xen-save-devices-state", arguments);
    qmp_begin(guest->qmp, "cont");
    return qmp_flush(guest->qmp, error);
}

static gboolean get_ready(QemuGuest *guest, GError **error) {
    guest->was_running = FALSE;
    guest->fdset = FDSET_FIRST + getpid();
    gboolean expected_run = guest->expect_run;
    return arm_guard(guest, error) && look_again(guest, error) &&
           (guest->expect_run == expected_run || arm_guard(guest, error)) && add_fdset(guest, error);
}

static gboolean guest_pause(void *opaque, SnapPauseStep step, GError **error) {
    QemuGuest *guest = opaque;
    if (step == SNAP_PAUSE_READY)
        return begin_turn(guest, error) && get_ready(guest, error);
    guest->stopped = TRUE;
    guest->was_running = guest->expect_run; /* until it is known better */
    int64_t stopped_before_us = qmp_event_us(guest->qmp, "STOP");
    qmp_spin(guest->qmp, SPIN_US);
    gboolean ok = send_stop_and_save(guest, error) && qmp_receive(guest->qmp, QMP_TIMEOUT_MS, NULL, error) &&
                  qmp_receive(guest->qmp, STOP_TIMEOUT_MS, NULL, error);
    if (ok) /* a guest that stood still already sends no STOP */
        guest->was_running = qmp_event_us(guest->qmp, "STOP") != stopped_before_us;
    return ok && qmp_receive(guest->qmp, STATE_TIMEOUT_MS, NULL, error);
}

static gboolean let_run(QemuGuest *guest, GError **error) {
    gboolean sent =
        qmp_has_begun(guest->qmp) ? qmp_finish(guest->qmp, error) : qmp_send(guest->qmp, "cont", NULL, -1, error);
    return sent && qmp_receive_rest(guest->qmp, STOP_TIMEOUT_MS, error);
}

/* Over a connection that no longer answers as well: it could not end else. */
static void let_go(QemuGuest *guest) {
    if (guest->held && qmp_send(guest->qmp, "closefd", qmp_args("fdname", HELD_NAME, NULL), -1, NULL))
        qmp_receive_rest(guest->qmp, QMP_TIMEOUT_MS, NULL);
    guest->held = FALSE;
}

static gboolean guest_resume(void *opaque, uint64_t *ret_pause_ns, GError **error) {
    QemuGuest *guest = opaque;
    gboolean ok = TRUE;
    *ret_pause_ns = 0;
    if (!guest->qmp)
        return TRUE; /* there was no connection to begin with */
    if (guest->stopped && guest->was_running) {
        ok = let_run(guest, error);
        int64_t pause_us = qmp_event_us(guest->qmp, "RESUME") - qmp_event_us(guest->qmp, "STOP");
        if (ok && pause_us > 0)
            *ret_pause_ns = (uint64_t)pause_us * 1000;
    } else if (guest->stopped && qmp_has_begun(guest->qmp)) {
        ok = qmp_drop(guest->qmp, error);
    }
    qmp_spin(guest->qmp, 0);
    guest->stopped = FALSE;
    remove_fdset(guest);
    let_go(guest);
    guard_clear_on_death(guest->guard);
    end_turn(guest);
    return ok;
}

/* ---- state ---- */

static GBytes *read_state(QemuGuest *guest, GError **error) {
    struct stat about;
    static const char magic[] = "QEVM";
    if (fstat(guest->state_fd, &about) < 0) {
        snap_set_errno(error, errno, "the device state");
        return NULL;
    }
    size_t length = (size_t)about.st_size;
    g_autofree char *data = g_malloc(length + 1);
    if (pread(guest->state_fd, data, length, 0) != (ssize_t)length) {
        snap_set_errno(error, errno, "the device state");
        return NULL;
    }
    if (length <= strlen(magic) || memcmp(data, magic, strlen(magic)) != 0) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "QEMU wrote no device state (%zu bytes)", length);
        return NULL;
    }
    return g_bytes_new_take(g_steal_pointer(&data), length);
}

static gboolean get_state(void *opaque, GPtrArray *states, GError **error) {
    QemuGuest *guest = opaque;
    GBytes *devices = read_state(guest, error);
    if (!devices)
        return FALSE;
    g_autoptr(GPtrArray) blocks = g_ptr_array_new();
    for (guint i = 0; i < guest->inventory->blocks->len; i++)
        if (g_ptr_array_index(guest->inventory->regions, i))
            g_ptr_array_add(blocks, g_ptr_array_index(guest->inventory->blocks, i));
    QemuDescription description = {.machine = guest->machine,
                                   .version = guest->version,
                                   .accel = guest->accel,
                                   .running = guest->was_running,
                                   .blocks = blocks};
    g_ptr_array_add(states, snap_state_new(QEMU_STATE_DEVICES, devices));
    g_ptr_array_add(states, snap_state_new(QEMU_STATE_DESCRIPTION, description_encode(&description)));
    empty_state(guest);
    return TRUE;
}

/* ---- life ---- */

static void guest_free(void *opaque) {
    QemuGuest *guest = opaque;
    uint64_t pause_ns;
    if (guest->qmp)
        guest_resume(guest, &pause_ns, NULL);
    empty_state(guest);
    guard_free(guest->guard);
    connection_free(guest->connection);
    inventory_free(guest->inventory);
    if (guest->state_fd >= 0)
        close(guest->state_fd);
    g_free(guest->machine);
    g_free(guest->accel);
    g_free(guest->version);
    g_free(guest);
}

static const SnapGuestOps ops = {
    .list_regions = list_regions,
    .open_uffd = open_uffd,
    .pause = guest_pause,
    .resume = guest_resume,
    .get_state = get_state,
    .free = guest_free,
};

/* A machine's UUID, where one was given: a guest that is restored has the same, and may go on with its chain. */
static void identify(SnapGuest *made, Qmp *qmp) {
    g_autoptr(json_object) answer = NULL;
    if (!qmp_command(qmp, "query-uuid", NULL, QMP_TIMEOUT_MS, &answer, NULL))
        return;
    const char *uuid = qmp_get_string(answer, "UUID");
    if (uuid && strspn(uuid, "0-") != strlen(uuid)) {
        g_autofree char *identity = g_strdup_printf("machine %s", uuid);
        snap_guest_set_identity(made, identity);
    }
}

SnapGuest *qemu_guest_new(const char *qmp_path, const QemuGuestOptions *options, GError **error) {
    QemuGuest *guest = g_new0(QemuGuest, 1);
    guest->options = options ? *options : (QemuGuestOptions){0};
    guest->state_fd = -1;
    guest->fdset = -1;
    guest->guard = guard_new(error);
    guest->connection = guest->guard ? connection_new(qmp_path, error) : NULL;
    if (!guest->connection) {
        guest_free(guest);
        return NULL;
    }
    guest->pid = connection_pid(guest->connection);
    SnapGuest *made = snap_guest_new("qemu", guest->pid, &ops, guest);
    if (begin_turn(guest, NULL)) {
        identify(made, guest->qmp);
        end_turn(guest);
    }
    return made;
}

Connection *qemu_guest_connection(const SnapGuest *guest) {
    const QemuGuest *qemu = snap_guest_opaque(guest, &ops);
    return qemu ? qemu->connection : NULL;
}
