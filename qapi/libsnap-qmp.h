/*
 * A QMP server inside a VMM: a control socket for snapshots, in a few lines.
 *
 *     SnapQmp *qmp = snap_qmp_new(guest, &(SnapQmpOptions){.name = "vm0"}, &error);
 *     snap_qmp_listen(qmp, "/run/vm0.sock", &error);
 *     snap_qmp_start_thread(qmp);                       // or, in the VMM's own loop:
 *
 *     poll snap_qmp_get_fd(qmp) for snap_qmp_get_events(qmp); when it is ready: snap_qmp_process(qmp);
 *
 * The guest is the target "embedded" of all commands; docs/qmp-reference.md has them, docs/embedding.md an
 * example.
 *
 * Threads: commands that may take a while, and snapshots, have threads of their own, in which the functions of the
 * guest and of SnapQmpVm are called. The functions here are for one thread at a time, and not to be called from
 * those.
 */
#pragma once

#include "libsnap.h"

G_BEGIN_DECLS

typedef struct SnapQmp SnapQmp;

/*
 * What the commands stop, cont and query-status do. All may be called in any thread, one at a time, but also while
 * a snapshot has the guest paused: it runs when neither a client nor a snapshot wants it to stand. stop() returns
 * when it stands.
 */
typedef struct {
    gboolean (*stop)(void *opaque, GError **error);
    gboolean (*cont)(void *opaque, GError **error);
    gboolean (*is_running)(void *opaque); /* or would, but for a snapshot or a migration that has it paused */
} SnapQmpVm;

typedef struct {
    const char *name;         /* (nullable) what query-name answers */
    const char *snapshot_dir; /* (nullable) where relative paths of clients begin; NULL: the current directory */
    const SnapQmpVm *vm;      /* (nullable) without it stop, cont and query-status are refused */
    void *vm_opaque;
    void (*on_quit)(void *opaque); /* (nullable) a client says quit, in any thread; without it that is refused */
    void *quit_opaque;
    /*
     * (nullable) This guest has not run yet: it is to be moved here. Where to listen for it, or "defer": a client
     * says so by migrate-incoming. Needs a guest with move_ops. Until these have let it run, stop, cont and saves
     * are refused, and after it was handed over again.
     */
    const char *incoming;
    /*
     * (nullable) It did not come, and cannot come any more: the VMM is of no use, and ends. With "defer" only when
     * its state was being loaded: before that, another migrate-incoming may bring it. Called once at most, in any
     * thread, with vm_opaque; do not free the server in here.
     */
    void (*on_incoming_failed)(const char *why, void *opaque);
    /* A connection of a migration from here that is silent for so long is lost; 0: 10 s. */
    unsigned migration_silence_ms;
} SnapQmpOptions;

/**
 * snap_qmp_new: a server without sockets.
 * @guest: (take) this program's own guest; its memory is this process's.
 * @options: (borrow) (nullable); its vm and opaque pointers until snap_qmp_free().
 * Errors: IO, no descriptors are left; REFUSED, a guest is to come that has no move_ops to arrive with; those of
 *   snap_incoming_start(). The guest is freed then, too.
 * Return: (out) free with snap_qmp_free().
 */
SnapQmp *snap_qmp_new(SnapGuest *guest, const SnapQmpOptions *options, GError **error);

/**
 * snap_qmp_free: close everything, cancel what runs and wait for it, let go of the guest and free it. NULL is
 *   allowed. Blocks for as long as a disk does, and functions of the guest and of SnapQmpVm do: they must not wait
 *   for the caller.
 */
void snap_qmp_free(SnapQmp *qmp);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SnapQmp, snap_qmp_free)

/**
 * snap_qmp_listen: take clients at a unix socket, which is made with mode 0600. Before snap_qmp_start_thread().
 * Errors: EXISTS, somebody else listens there, or it is no socket; USAGE, the path is too long; IO.
 */
gboolean snap_qmp_listen(SnapQmp *qmp, const char *path, GError **error);

/** snap_qmp_add_client: serve a client that is connected. @fd: (take) a socket. Before snap_qmp_start_thread(). */
void snap_qmp_add_client(SnapQmp *qmp, int fd);

/** snap_qmp_start_thread: serve in a thread "snap-qmp" until snap_qmp_free(). */
void snap_qmp_start_thread(SnapQmp *qmp);

/** snap_qmp_get_fd: what to poll; (borrow), the same for the life of @qmp. */
int snap_qmp_get_fd(const SnapQmp *qmp);
/** snap_qmp_get_events: for what: POLLIN. */
short snap_qmp_get_events(const SnapQmp *qmp);
/** snap_qmp_process: do what there is to do, or a part of it. Never waits. */
void snap_qmp_process(SnapQmp *qmp);

G_END_DECLS
