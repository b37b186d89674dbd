/* See save-control-fixture.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "save-control-fixture.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { AFTER = 0x22 };

const Kind kinds[N_KINDS] = {
    {"anon", SNAP_MEMORY_ANON},
    {"memfd", SNAP_MEMORY_SHMEM},
    {"hugetlb", SNAP_MEMORY_HUGETLB},
};

/* ---- the guest ------------------------------------------------------------------------------------------- */

static gboolean list_regions(void *opaque, gboolean paused, GPtrArray *regions, GError **error) {
    const Rig *rig = opaque;
    const Backing *b = &rig->backing;
    (void)paused;
    (void)error;
    SnapRegion *region = snap_region_new("arena", rig->kind->memory, (uintptr_t)b->arena, b->length_bytes);
    region->granule_bytes = rig->kind->memory == SNAP_MEMORY_HUGETLB ? b->granule_bytes : b->page_bytes;
    region->fd = b->fd >= 0 ? fcntl(b->fd, F_DUPFD_CLOEXEC, 0) : -1;
    g_ptr_array_add(regions, region);
    return TRUE;
}

static gboolean pause_guest(void *opaque, SnapPauseStep step, GError **error) {
    Rig *rig = opaque;
    (void)error;
    if (step == SNAP_PAUSE_STOP && rig->writers.threads > 0) {
        writers_stop(&rig->writers);
        rig->at = ((SeqHeader *)rig->backing.arena)->counter;
    }
    SnapSave *save = NULL;
    while (step == SNAP_PAUSE_STOP && rig->pause && !save) {
        save = __atomic_load_n(&rig->save, __ATOMIC_ACQUIRE); /* the job may be here before its starter has it */
    }
    if (save) {
        snap_save_pause(save);
    }
    return TRUE;
}

static gboolean resume_guest(void *opaque, uint64_t *ret_pause_ns, GError **error) {
    Rig *rig = opaque;
    (void)error;
    *ret_pause_ns = 1;
    rig->writers.stop = false;
    return rig->writers.threads == 0 || writers_start(&rig->writers) == 0;
}

static const SnapGuestOps ops = {
    .list_regions = list_regions,
    .pause = pause_guest,
    .resume = resume_guest,
};

/* ---- the rig --------------------------------------------------------------------------------------------- */

void rig_init(Rig *rig, const Kind *kind) {
    memset(rig, 0, sizeof *rig);
    rig->kind = kind;
    if (backing_map(kind->name, ARENA_BYTES, "/dev/shm", &rig->backing) < 0) {
        print_message("%s: cannot be mapped here\n", kind->name);
        skip();
    }
    memset(rig->backing.arena, BEFORE, rig->backing.length_bytes);
    rig->guest = snap_guest_new("test", 0, &ops, rig);
    strcpy(rig->folder, "save-control-XXXXXX");
    assert_non_null(mkdtemp(rig->folder));
    rig->image = g_build_filename(rig->folder, "image", NULL);
}

void rig_clear(Rig *rig) {
    snap_save_free(rig->save);
    snap_guest_free(rig->guest);
    munmap(rig->backing.arena, rig->backing.length_bytes);
    if (rig->backing.fd >= 0) {
        close(rig->backing.fd);
    }
    (void)snap_image_delete(rig->image, NULL);
    g_free(rig->image);
    assert_int_equal(rmdir(rig->folder), 0);
}

void rig_begin_with(Rig *rig, SnapSaveOptions options) {
    g_autoptr(GError) error = NULL;
    options.dir = rig->image;
    options.buffer_bytes = BUFFER_BYTES;
    SnapSave *save = snap_save_start(rig->guest, &options, &error);
    fail_on(error);
    __atomic_store_n(&rig->save, save, __ATOMIC_RELEASE);
}

void rig_begin(Rig *rig, uint64_t max_bandwidth_bytes) {
    rig_begin_with(rig, (SnapSaveOptions){.max_bandwidth_bytes = max_bandwidth_bytes});
}

SnapSaveStats rig_stats(Rig *rig) {
    SnapSaveStats stats;
    snap_save_get_stats(rig->save, &stats);
    return stats;
}

SnapSaveStats rig_await_sweep(Rig *rig) {
    SnapSaveStats stats = rig_stats(rig);
    while (stats.phase < SNAP_SAVE_SWEEPING) {
        g_usleep(1000);
        stats = rig_stats(rig);
    }
    assert_int_equal(stats.phase, SNAP_SAVE_SWEEPING);
    return stats;
}

void rig_begin_paused_with(Rig *rig, SnapSaveOptions options) {
    rig->pause = true;
    rig_begin_with(rig, options);
    SnapSaveStats stats = rig_await_sweep(rig);
    rig->pause = false;
    assert_true(stats.paused && snap_save_is_paused(rig->save));
    assert_int_equal(stats.buffer_cap_bytes, BUFFER_BYTES);
}

void rig_begin_paused(Rig *rig) {
    rig_begin_paused_with(rig, (SnapSaveOptions){0});
}

uint64_t rig_settled(Rig *rig) {
    uint64_t before = UINT64_MAX, now = rig_stats(rig).pages_done;
    for (int i = 0; i < 50 && now != before; i++) {
        before = now;
        g_usleep(100000);
        now = rig_stats(rig).pages_done;
    }
    assert_int_equal(now, before);
    return now;
}

void rig_end(Rig *rig) {
    g_autoptr(GError) error = NULL;
    snap_save_wait(rig->save, 60000, &error);
    fail_on(error);
    SnapSaveStats stats = rig_stats(rig);
    assert_int_equal(stats.phase, SNAP_SAVE_DONE);
    assert_int_equal(stats.pages_done, stats.pages_total);
    assert_true(stats.buffer_bytes == 0 && stats.bytes_per_second == 0 && !stats.paused);
    assert_true(stats.peak_buffer_bytes > 0 && stats.peak_buffer_bytes <= BUFFER_BYTES);
}

uint8_t *rig_read_image(const Rig *rig) {
    g_autoptr(GError) error = NULL;
    g_autoptr(SnapImage) image = snap_image_open(rig->image, &error);
    fail_on(error);
    snap_image_verify(image, NULL, NULL, &error); /* of its parent as well */
    fail_on(error);
    uint8_t *copy = g_malloc(rig->backing.length_bytes);
    snap_image_read(image, 0, 0, copy, rig->backing.length_bytes, &error);
    fail_on(error);
    return copy;
}

void rig_check_image_is_before(const Rig *rig) {
    g_autofree uint8_t *copy = rig_read_image(rig);
    for (uint64_t i = 0; i < rig->backing.length_bytes; i++) {
        if (copy[i] != BEFORE) {
            fail_msg("byte %lu of the image is 0x%x", i, copy[i]);
        }
    }
}

/* One page, by this thread. */
static void write_page(Rig *rig, uint64_t offset) {
    uint64_t start_ns = clock_ns();
    memset((uint8_t *)rig->backing.arena + offset, AFTER, rig->backing.page_bytes);
    rig->longest_ns = MAX(rig->longest_ns, clock_ns() - start_ns);
}

void rig_write_pages(Rig *rig, uint64_t start, uint64_t end) {
    for (; start < end; start += rig->backing.page_bytes) {
        write_page(rig, start);
    }
}
