/*
 * See vmm.h. Happy path: map, start writers, serve; a snapshot's pause and a client's stop park the writers.
 *
 * The loop knows nothing of GLib: it polls what snap_qmp_get_fd() gives, and counts how often that was ready.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "vmm.h"

#include "../lib/own-process.h"

#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

/* ---- this machine ---------------------------------------------------------------------------------------- */

bool vmm_can_run(void) {
    int fd = snap_uffd_open();
    if (fd < 0)
        puts("skip: userfaultfd is not permitted here");
    else
        close(fd);
    return fd >= 0;
}

bool vmm_has_async(void) {
    uint64_t features = 0;
    return snap_uffd_probe(&features) == 0 && features & UFFD_FEATURE_WP_ASYNC;
}

/* ---- running and standing -------------------------------------------------------------------------------- */

static bool settle_locked(Vmm *vmm) {
    bool run = !vmm->stopped && !vmm->paused;
    if (run && !vmm->writing) {
        vmm->writers.stop = false;
        vmm->writing = writers_start(&vmm->writers) == 0;
    } else if (!run && vmm->writing) {
        writers_stop(&vmm->writers);
        vmm->writing = false;
    }
    return vmm->writing == run;
}

static gboolean set(Vmm *vmm, bool *flag, bool value) {
    pthread_mutex_lock(&vmm->lock);
    *flag = value;
    bool ok = settle_locked(vmm);
    pthread_mutex_unlock(&vmm->lock);
    return ok;
}

uint64_t vmm_written(const Vmm *vmm) {
    return __atomic_load_n(&((SeqHeader *)vmm->backing.arena)->counter, __ATOMIC_ACQUIRE);
}

void vmm_await_writes(const Vmm *vmm, uint64_t n) {
    uint64_t until = vmm_written(vmm) + n;
    for (int i = 0; i < 10000 && vmm_written(vmm) < until; i++)
        g_usleep(1000);
    assert_true(vmm_written(vmm) >= until);
}

/* ---- the guest of snapshots ------------------------------------------------------------------------------ */

static gboolean list_regions(void *opaque, gboolean paused, GPtrArray *regions, GError **error) {
    const Vmm *vmm = opaque;
    const Backing *b = &vmm->backing;
    (void)paused, (void)error;
    SnapRegion *region = snap_region_new("ram", vmm->memory, (uintptr_t)b->arena, b->length_bytes);
    region->fd = b->fd >= 0 ? fcntl(b->fd, F_DUPFD_CLOEXEC, 0) : -1;
    g_ptr_array_add(regions, region);
    return TRUE;
}

static gboolean pause_guest(void *opaque, SnapPauseStep step, GError **error) {
    Vmm *vmm = opaque;
    (void)error;
    if (step == SNAP_PAUSE_READY)
        return TRUE;
    set(vmm, &vmm->paused, true);
    vmm->at = vmm_written(vmm);
    return TRUE;
}

static gboolean resume_guest(void *opaque, uint64_t *ret_pause_ns, GError **error) {
    Vmm *vmm = opaque;
    (void)error;
    *ret_pause_ns = 1;
    return set(vmm, &vmm->paused, false);
}

static gboolean get_state(void *opaque, GPtrArray *states, GError **error) {
    Vmm *vmm = opaque;
    (void)error;
    g_ptr_array_add(states, snap_state_new("at", g_bytes_new(&vmm->at, sizeof(vmm->at))));
    return TRUE;
}

static const SnapGuestOps guest_ops = {
    .list_regions = list_regions,
    .pause = pause_guest,
    .resume = resume_guest,
    .get_state = get_state,
};

/* ---- the VM of the commands ------------------------------------------------------------------------------ */

static gboolean run_or_stop(Vmm *vmm, bool stop, GError **error) {
    g_usleep(vmm->slow_ms * 1000);
    if (!vmm->fails)
        return set(vmm, &vmm->stopped, stop);
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "the lid is open");
    return FALSE;
}

static gboolean stop(void *opaque, GError **error) {
    return run_or_stop(opaque, true, error);
}

static gboolean cont(void *opaque, GError **error) {
    return run_or_stop(opaque, false, error);
}

static gboolean is_running(void *opaque) {
    Vmm *vmm = opaque;
    pthread_mutex_lock(&vmm->lock);
    bool running = !vmm->stopped;
    pthread_mutex_unlock(&vmm->lock);
    return running;
}

static const SnapQmpVm vm = {.stop = stop, .cont = cont, .is_running = is_running};

static void on_quit(void *opaque) {
    Vmm *vmm = opaque;
    pthread_mutex_lock(&vmm->lock);
    vmm->quits++;
    pthread_mutex_unlock(&vmm->lock);
}

/* ---- its loop -------------------------------------------------------------------------------------------- */

static void process(Vmm *vmm) {
    uint64_t start_ns = clock_ns();
    snap_qmp_process(vmm->qmp);
    uint64_t took_ns = clock_ns() - start_ns;
    if (took_ns > vmm->longest_ns)
        __atomic_store_n(&vmm->longest_ns, took_ns, __ATOMIC_RELAXED);
    __atomic_add_fetch(&vmm->busy_ns, took_ns, __ATOMIC_RELAXED);
    __atomic_add_fetch(&vmm->wakeups, 1, __ATOMIC_RELAXED);
}

static void *run_loop(void *opaque) {
    Vmm *vmm = opaque;
    struct pollfd fds[] = {{.fd = snap_qmp_get_fd(vmm->qmp), .events = snap_qmp_get_events(vmm->qmp)},
                           {.fd = vmm->wake_fd, .events = POLLIN}};
    while (!__atomic_load_n(&vmm->end, __ATOMIC_RELAXED)) {
        poll(fds, G_N_ELEMENTS(fds), -1);
        if (fds[0].revents)
            process(vmm);
    }
    return NULL;
}

static void end_loop(Vmm *vmm) {
    __atomic_store_n(&vmm->end, true, __ATOMIC_RELAXED);
    assert_int_equal(eventfd_write(vmm->wake_fd, 1), 0);
    pthread_join(vmm->loop, NULL);
    close(vmm->wake_fd);
    vmm->end = false;
}

/* ---- life ------------------------------------------------------------------------------------------------ */

void vmm_begin_server(Vmm *vmm) {
    g_autoptr(GError) error = NULL;
    SnapQmpOptions options = {.name = "vm0",
                              .snapshot_dir = vmm->folder,
                              .vm = &vm,
                              .vm_opaque = vmm,
                              .on_quit = on_quit,
                              .quit_opaque = vmm};
    vmm->serving = VMM_NOBODY;
    vmm->qmp = snap_qmp_new(snap_guest_new("embedded", 0, &guest_ops, vmm), &options, &error);
    fail_on(error);
    snap_qmp_listen(vmm->qmp, vmm->socket, &error);
    fail_on(error);
}

void vmm_serve(Vmm *vmm, VmmServing serving) {
    vmm->serving = serving;
    vmm->wakeups = vmm->longest_ns = vmm->busy_ns = 0;
    if (serving == VMM_THREAD)
        snap_qmp_start_thread(vmm->qmp);
    if (serving != VMM_OWN_LOOP)
        return;
    vmm->wake_fd = eventfd(0, EFD_CLOEXEC);
    assert_int_equal(pthread_create(&vmm->loop, NULL, run_loop, vmm), 0);
}

void vmm_end_server(Vmm *vmm) {
    if (vmm->serving == VMM_OWN_LOOP)
        end_loop(vmm);
    g_clear_pointer(&vmm->qmp, snap_qmp_free);
}

static void start_writers(Vmm *vmm) {
    uint32_t pages = (uint32_t)(vmm->backing.length_bytes / vmm->backing.page_bytes - 1);
    SeqLayout layout = {.pages = pages,
                        .page_bytes = (uint32_t)vmm->backing.page_bytes,
                        .touched = pages,
                        .hot = pages,
                        .stride = seq_scatter_stride(pages)};
    vmm->writers = (Writers){.layout = layout, .arena = vmm->backing.arena, .threads = 2, .batch = 64};
    seq_header_init(vmm->backing.arena, &layout, 2, 64);
    seq_start(&layout, &vmm->writers.cursor);
    writers_prefill(&vmm->writers);
    assert_true(settle_locked(vmm));
}

void vmm_init(Vmm *vmm, const char *kind, VmmServing serving) {
    memset(vmm, 0, sizeof(*vmm));
    if (backing_map(kind, VMM_BYTES, NULL, &vmm->backing) < 0)
        fail_msg("%s: cannot be mapped", kind);
    vmm->memory = vmm->backing.fd >= 0 ? SNAP_MEMORY_SHMEM : SNAP_MEMORY_ANON;
    pthread_mutex_init(&vmm->lock, NULL);
    strcpy(vmm->folder, "embedded-XXXXXX");
    assert_non_null(mkdtemp(vmm->folder));
    vmm->socket = g_build_filename(vmm->folder, VMM_SOCKET, NULL);
    start_writers(vmm);
    vmm_begin_server(vmm);
    vmm_serve(vmm, serving);
}

void vmm_clear(Vmm *vmm) {
    vmm_end_server(vmm);
    set(vmm, &vmm->stopped, true);
    assert_int_equal(((SeqHeader *)vmm->backing.arena)->errors, 0);
    munmap(vmm->backing.arena, vmm->backing.length_bytes);
    if (vmm->backing.fd >= 0)
        close(vmm->backing.fd);
    assert_int_equal(rmdir(vmm->folder), 0); /* whatever was made there has gone */
    pthread_mutex_destroy(&vmm->lock);
    g_free(vmm->socket);
}

/* ---- memory ---------------------------------------------------------------------------------------------- */

void vmm_touch(Vmm *vmm, uint64_t page) {
    uint64_t *word = (uint64_t *)((char *)vmm->backing.arena + page * vmm->backing.page_bytes);
    __atomic_fetch_add(word, 0, __ATOMIC_RELAXED);
}

void vmm_check_image(Vmm *vmm, const char *name) {
    g_autoptr(GError) error = NULL;
    g_autofree char *dir = g_build_filename(vmm->folder, name, NULL);
    g_autoptr(SnapImage) image = snap_image_open(dir, &error);
    fail_on(error);
    g_autofree uint8_t *copy = g_malloc(vmm->backing.length_bytes);
    snap_image_read(image, 0, 0, copy, vmm->backing.length_bytes, &error);
    fail_on(error);
    SeqReport report;
    if (!seq_check(copy, vmm->backing.length_bytes, &vmm->writers.layout, &report)) {
        seq_print_report(stderr, &report);
        fail_msg("%s is not the memory at one write", name);
    }
    assert_int_equal(report.n, vmm->at);
    g_clear_pointer(&image, snap_image_free);
    snap_image_delete(dir, &error);
    fail_on(error);
}
