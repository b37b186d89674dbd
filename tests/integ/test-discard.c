/*
 * Memory that the guest discards, in a chain of snapshots: a chain must neither bring back what has gone nor miss
 * what is written there afterwards.
 *
 * What is under MADV_FREE the kernel takes away when it likes, without telling anybody, and with it goes its
 * protection; MADV_PAGEOUT makes it do so at once. The guest is this process.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../lib/own-process.h"

#define N_PAGES 256u

typedef struct {
    uint8_t *arena;
    size_t page_bytes;
    SnapGuest *guest;
    char folder[64];
    guint n_images;
} Rig;

static gboolean list_regions(void *opaque, gboolean paused, GPtrArray *regions, GError **error) {
    const Rig *rig = opaque;
    (void)paused, (void)error;
    g_ptr_array_add(regions,
                    snap_region_new("arena", SNAP_MEMORY_ANON, (uintptr_t)rig->arena, N_PAGES * rig->page_bytes));
    return TRUE;
}

static gboolean pause_guest(void *opaque, SnapPauseStep step, GError **error) {
    (void)opaque, (void)step, (void)error;
    return TRUE;
}

static gboolean resume_guest(void *opaque, uint64_t *ret_pause_ns, GError **error) {
    (void)opaque, (void)error;
    *ret_pause_ns = 1;
    return TRUE;
}

static const SnapGuestOps ops = {
    .list_regions = list_regions,
    .pause = pause_guest,
    .resume = resume_guest,
};

static void fill(Rig *rig, uint8_t value) {
    for (unsigned i = 0; i < N_PAGES; i++)
        memset(rig->arena + i * rig->page_bytes, value + (int)(i % 16), rig->page_bytes);
}

static void rig_init(Rig *rig) {
    memset(rig, 0, sizeof *rig);
    rig->page_bytes = (size_t)sysconf(_SC_PAGESIZE);
    rig->arena = mmap(NULL, N_PAGES * rig->page_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(rig->arena != MAP_FAILED);
    madvise(rig->arena, N_PAGES * rig->page_bytes, MADV_NOHUGEPAGE);
    rig->guest = snap_guest_new("test", 0, &ops, rig);
    strcpy(rig->folder, "discard-XXXXXX");
    assert_non_null(mkdtemp(rig->folder));
    fill(rig, 1);
}

static char *image_dir(const Rig *rig, guint number) {
    return g_strdup_printf("%s/%u", rig->folder, number);
}

static void rig_clear(Rig *rig) {
    snap_guest_free(rig->guest);
    for (guint i = rig->n_images; i > 0; i--) {
        g_autofree char *dir = image_dir(rig, i);
        snap_image_delete(dir, NULL);
    }
    rmdir(rig->folder);
    munmap(rig->arena, N_PAGES * rig->page_bytes);
}

static void save_with(Rig *rig, gboolean keep_log) {
    g_autoptr(GError) error = NULL;
    g_autofree char *parent = rig->n_images ? image_dir(rig, rig->n_images) : NULL;
    g_autofree char *dir = image_dir(rig, ++rig->n_images);
    const SnapSaveOptions options = {.dir = dir, .parent_dir = parent, .keep_log = keep_log};
    g_autoptr(SnapSave) job = snap_save_start(rig->guest, &options, &error);
    fail_on(error);
    snap_save_wait(job, -1, &error);
    fail_on(error);
}

static void save(Rig *rig) {
    save_with(rig, TRUE);
}

/* The newest image is what is there now. */
static void check(Rig *rig) {
    g_autoptr(GError) error = NULL;
    g_autofree char *dir = image_dir(rig, rig->n_images);
    g_autofree uint8_t *page = g_malloc(rig->page_bytes);
    g_autoptr(SnapImage) image = snap_image_open(dir, &error);
    fail_on(error);
    for (unsigned i = 0; i < N_PAGES; i++) {
        snap_image_read(image, 0, i * rig->page_bytes, page, rig->page_bytes, &error);
        fail_on(error);
        if (memcmp(page, rig->arena + i * rig->page_bytes, rig->page_bytes) != 0)
            fail_msg("image %u, page %u: %d, and not %d", rig->n_images, i, page[0],
                     rig->arena[i * rig->page_bytes]);
    }
}

static void advise(Rig *rig, int advice) {
    if (madvise(rig->arena, N_PAGES * rig->page_bytes, advice) < 0) {
        print_message("madvise(%d): %s\n", advice, strerror(errno));
        skip();
    }
}

/* Before the kernel takes them the pages are what they were; whether it does is up to it. */
static gboolean is_taken(const Rig *rig) {
    unsigned char in_core[N_PAGES];
    unsigned n = 0;
    assert_int_equal(mincore(rig->arena, N_PAGES * rig->page_bytes, in_core), 0);
    for (unsigned i = 0; i < N_PAGES; i++)
        n += in_core[i] & 1;
    return n == 0;
}

static void take_away(Rig *rig) {
    advise(rig, MADV_PAGEOUT);
    if (!is_taken(rig)) {
        print_message("this kernel does not take free pages at once\n");
        skip();
    }
}

/* ---- cases ----------------------------------------------------------------------------------------------- */

static void free_memory_taken_after_a_snapshot_does_not_come_back(void **state) {
    (void)state;
    Rig rig;
    rig_init(&rig);
    save(&rig);
    advise(&rig, MADV_FREE);
    save(&rig);
    take_away(&rig);
    save(&rig);
    check(&rig);
    rig_clear(&rig);
}

static void writes_to_memory_that_was_taken_are_not_missed(void **state) {
    (void)state;
    Rig rig;
    rig_init(&rig);
    save(&rig);
    advise(&rig, MADV_FREE);
    save(&rig);
    take_away(&rig);
    fill(&rig, 101);
    save(&rig);
    check(&rig);
    fill(&rig, 51);
    save(&rig);
    check(&rig);
    rig_clear(&rig);
}

static void free_memory_is_followed_for_as_long_as_it_is_free(void **state) {
    (void)state;
    Rig rig;
    rig_init(&rig);
    save(&rig);
    advise(&rig, MADV_FREE);
    for (int i = 0; i < 4; i++)
        save(&rig);
    take_away(&rig);
    save(&rig);
    check(&rig);
    rig_clear(&rig);
}

static void memory_written_again_is_no_longer_followed(void **state) {
    (void)state;
    Rig rig;
    rig_init(&rig);
    save(&rig);
    advise(&rig, MADV_FREE);
    save(&rig);
    fill(&rig, 77);
    save(&rig);
    check(&rig);
    save(&rig);
    g_autofree char *dir = image_dir(&rig, rig.n_images);
    g_autoptr(SnapImage) image = snap_image_open(dir, NULL);
    assert_int_equal(snap_image_info(image)->pages_held, 0);
    g_clear_pointer(&image, snap_image_free);
    rig_clear(&rig);
}

/* Without a log everything is compared; what is not there is not, and has to be hidden where the parent has it. */
static void memory_dropped_without_a_log_is_hidden(void **state) {
    (void)state;
    Rig rig;
    rig_init(&rig);
    /* Several runs in one chunk, as the parent has them. */
    for (unsigned i = 0; i < N_PAGES; i += 7)
        memset(rig.arena + i * rig.page_bytes, 0, rig.page_bytes);
    save_with(&rig, FALSE);
    advise(&rig, MADV_DONTNEED);
    save_with(&rig, FALSE);
    check(&rig);
    rig_clear(&rig);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(free_memory_taken_after_a_snapshot_does_not_come_back),
        cmocka_unit_test(writes_to_memory_that_was_taken_are_not_missed),
        cmocka_unit_test(free_memory_is_followed_for_as_long_as_it_is_free),
        cmocka_unit_test(memory_written_again_is_no_longer_followed),
        cmocka_unit_test(memory_dropped_without_a_log_is_hidden),
    };
    return cmocka_run_group_tests_name("discard", tests, NULL, NULL);
}
