/*
 * A VMM with a control socket for snapshots. Its guest is 64 MiB of memory and a thread that writes it; its loop
 * is its own. ../embedding.md explains it.
 *
 *     cc embed.c $(pkg-config --cflags --libs libsnap-qmp) -o embed
 *     ./embed /tmp/vm.sock
 */
#include <libsnap-qmp.h>

#include <poll.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#define RAM_BYTES ((size_t)64 << 20)
#define RAM_WORDS (RAM_BYTES / sizeof(uint64_t))
#define BATCH 1000

enum { BY_CLIENT = 1, BY_SNAPSHOT = 2 };

typedef struct {
    uint64_t *ram;
    int quit_fd;

    GMutex lock;
    GCond changed;

    /* under lock */
    unsigned held; /* who wants the guest to stand: it runs when nobody does */
    gboolean stands;
    gboolean end;
    uint64_t n; /* words written: the guest's "device state" */

    /* the snapshot's thread only */
    gint64 paused_us;
    uint64_t n_in_pause;
} Vm;

static gpointer run_guest(gpointer opaque) {
    Vm *vm = opaque;
    g_mutex_lock(&vm->lock);
    while (!vm->end) {
        vm->stands = vm->held != 0;
        if (vm->stands) {
            g_cond_broadcast(&vm->changed);
            g_cond_wait(&vm->changed, &vm->lock);
            continue;
        }
        uint64_t n = vm->n;
        g_mutex_unlock(&vm->lock);
        for (uint64_t end = n + BATCH; n < end; n++)
            vm->ram[n * 521 % RAM_WORDS] = n;
        g_mutex_lock(&vm->lock);
        vm->n = n;
    }
    g_mutex_unlock(&vm->lock);
    return NULL;
}

static void hold(Vm *vm, unsigned who) {
    g_mutex_lock(&vm->lock);
    vm->held |= who;
    while (!vm->stands)
        g_cond_wait(&vm->changed, &vm->lock);
    g_mutex_unlock(&vm->lock);
}

static void let_go(Vm *vm, unsigned who) {
    g_mutex_lock(&vm->lock);
    vm->held &= ~who;
    g_cond_broadcast(&vm->changed);
    g_mutex_unlock(&vm->lock);
}

/* ---- the guest, for snapshots ---------------------------------------------------------------------------- */

static gboolean list_regions(void *opaque, gboolean paused, GPtrArray *regions, GError **error) {
    const Vm *vm = opaque;
    (void)paused, (void)error;
    g_ptr_array_add(regions, snap_region_new("ram", SNAP_MEMORY_ANON, (uintptr_t)vm->ram, RAM_BYTES));
    return TRUE;
}

static gboolean pause_guest(void *opaque, SnapPauseStep step, GError **error) {
    Vm *vm = opaque;
    (void)error;
    vm->paused_us = g_get_monotonic_time();
    if (step == SNAP_PAUSE_STOP) {
        hold(vm, BY_SNAPSHOT);
        vm->n_in_pause = vm->n;
    }
    return TRUE;
}

static gboolean resume_guest(void *opaque, uint64_t *ret_pause_ns, GError **error) {
    Vm *vm = opaque;
    (void)error;
    let_go(vm, BY_SNAPSHOT);
    *ret_pause_ns = (uint64_t)(g_get_monotonic_time() - vm->paused_us) * 1000;
    return TRUE;
}

static gboolean get_state(void *opaque, GPtrArray *states, GError **error) {
    const Vm *vm = opaque;
    (void)error;
    g_ptr_array_add(states, snap_state_new("n", g_bytes_new(&vm->n_in_pause, sizeof(vm->n_in_pause))));
    return TRUE;
}

static const SnapGuestOps guest_ops = {
    .list_regions = list_regions, .pause = pause_guest, .resume = resume_guest, .get_state = get_state};

/* ---- the VM, for commands -------------------------------------------------------------------------------- */

static gboolean stop(void *opaque, GError **error) {
    (void)error;
    hold(opaque, BY_CLIENT);
    return TRUE;
}

static gboolean cont(void *opaque, GError **error) {
    (void)error;
    let_go(opaque, BY_CLIENT);
    return TRUE;
}

static gboolean is_running(void *opaque) {
    Vm *vm = opaque;
    g_mutex_lock(&vm->lock);
    gboolean running = !(vm->held & BY_CLIENT);
    g_mutex_unlock(&vm->lock);
    return running;
}

static const SnapQmpVm vm_verbs = {.stop = stop, .cont = cont, .is_running = is_running};

static void on_quit(void *opaque) {
    const Vm *vm = opaque;
    eventfd_write(vm->quit_fd, 1);
}

/* ---------------------------------------------------------------------------------------------------------- */

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: %s SOCKET\n", argv[0]);
        return 2;
    }
    Vm vm = {.quit_fd = eventfd(0, EFD_CLOEXEC)};
    vm.ram = mmap(NULL, RAM_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    GThread *writer = g_thread_new("guest", run_guest, &vm);

    g_autoptr(GError) error = NULL;
    SnapQmpOptions options = {
        .name = "example", .vm = &vm_verbs, .vm_opaque = &vm, .on_quit = on_quit, .quit_opaque = &vm};
    SnapQmp *qmp = snap_qmp_new(snap_guest_new("embedded", 0, &guest_ops, &vm), &options, &error);
    if (!qmp || !snap_qmp_listen(qmp, argv[1], &error)) {
        fprintf(stderr, "%s: %s\n", argv[0], error->message);
        return 1;
    }
    struct pollfd fds[] = {{.fd = snap_qmp_get_fd(qmp), .events = snap_qmp_get_events(qmp)},
                           {.fd = vm.quit_fd, .events = POLLIN}}; /* and whatever else this VMM waits for */
    while (!fds[1].revents) {
        poll(fds, G_N_ELEMENTS(fds), -1);
        if (fds[0].revents)
            snap_qmp_process(qmp);
    }
    snap_qmp_free(qmp);

    g_mutex_lock(&vm.lock);
    vm.end = TRUE;
    g_cond_broadcast(&vm.changed);
    g_mutex_unlock(&vm.lock);
    g_thread_join(writer);
    return 0;
}
