/* See incoming-fixture.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "expect.h"
#include "incoming-fixture.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* ---- the guest ------------------------------------------------------------------------------------------- */

static gboolean list_regions(void *opaque, gboolean paused, GPtrArray *regions, GError **error) {
    const Rig *rig = opaque;
    (void)paused, (void)error;
    for (unsigned i = 0; i < rig->n_regions; i++) {
        const RigRegion *from = &rig->regions[i];
        SnapRegion *region = snap_region_new(from->name, from->memory, (uintptr_t)from->data, from->length_bytes);
        region->guest_address = from->guest_address;
        region->granule_bytes = from->granule_pages * rig->page;
        region->fd = from->fd >= 0 ? dup(from->fd) : -1;
        g_ptr_array_add(regions, region);
    }
    return TRUE;
}

static gboolean load_state(void *opaque, GPtrArray *states, GError **error) {
    Rig *rig = opaque;
    __atomic_add_fetch(&rig->loads, 1, __ATOMIC_SEQ_CST);
    for (guint i = 0; i < states->len; i++) {
        const SnapState *state = g_ptr_array_index(states, i);
        g_ptr_array_add(rig->states, snap_state_new(state->name, g_bytes_ref(state->data)));
    }
    if (rig->on_load)
        rig->on_load(rig);
    if (rig->no_load)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "no such device");
    return !rig->no_load;
}

static gboolean start(void *opaque, GError **error) {
    Rig *rig = opaque;
    __atomic_add_fetch(&rig->starts, 1, __ATOMIC_SEQ_CST);
    if (rig->no_start)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "no processor");
    return !rig->no_start;
}

static const SnapGuestOps ops = {.list_regions = list_regions};
static const SnapMoveOps move_ops = {.load_state = load_state, .start = start};

/* ---- the rig --------------------------------------------------------------------------------------------- */

static uint64_t huge_page_bytes(void) {
    gsize kib = 0;
    g_autofree char *text = NULL;
    assert_true(g_file_get_contents("/proc/meminfo", &text, NULL, NULL));
    const char *line = strstr(text, "Hugepagesize:");
    assert_true(line && sscanf(line, "Hugepagesize: %zu", &kib) == 1);
    return MAX(kib, 1) << 10;
}

static void map_region(const Rig *rig, RigRegion *region, SnapMemory kind, uint64_t n_pages) {
    static const char *const names[RIG_REGIONS] = {"ram", "video", "more"};
    unsigned number = (unsigned)(region - rig->regions);
    bool huge = kind == SNAP_MEMORY_HUGETLB;
    uint64_t granule = huge ? huge_page_bytes() / rig->page : 1;
    n_pages = (n_pages + granule - 1) / granule * granule;
    *region = (RigRegion){.name = names[number],
                          .memory = kind,
                          .length_bytes = n_pages * rig->page,
                          .n_pages = n_pages,
                          .granule_pages = granule,
                          .guest_address = UINT64_C(0x100000000) * number,
                          .fd = -1,
                          .sent = g_new0(unsigned, n_pages)};
    if (kind != SNAP_MEMORY_ANON) {
        region->fd = memfd_create("guest", MFD_CLOEXEC | (huge ? MFD_HUGETLB : 0));
        assert_true(region->fd >= 0);
        assert_int_equal(ftruncate(region->fd, (off_t)region->length_bytes), 0);
    }
    int flags = kind == SNAP_MEMORY_ANON ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
    region->data = mmap(NULL, region->length_bytes, PROT_READ | PROT_WRITE, flags, region->fd, 0);
    if (region->data == MAP_FAILED && huge) {
        print_message("skip: no free huge pages: sysctl vm.nr_hugepages=64\n");
        skip();
    }
    assert_true(region->data != MAP_FAILED);
}

int rig_new(void **state) {
    static const SnapWireId id = {{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}};
    Rig *rig = *state = g_new0(Rig, 1);
    rig->page = (uint64_t)sysconf(_SC_PAGESIZE);
    strcpy(rig->dir, "/tmp/snap-incoming-XXXXXX");
    assert_non_null(g_mkdtemp(rig->dir));
    g_snprintf(rig->uri, sizeof rig->uri, "unix:%s/socket", rig->dir);
    rig->states = g_ptr_array_new_with_free_func((GDestroyNotify)snap_state_free);
    rig->hello = (SnapWireHello){.id = id,
                                 .version = SNAP_WIRE_VERSION,
                                 .n_channels = 1,
                                 .purpose = SNAP_WIRE_MOVE,
                                 .page_bytes = rig->page,
                                 .silence_ms = RIG_SILENCE_MS,
                                 .driver = "test",
                                 .driver_bytes = 4};
    rig->guest = snap_guest_new("test", 0, &ops, rig);
    snap_guest_set_move_ops(rig->guest, &move_ops);
    return 0;
}

void rig_map(Rig *rig, unsigned n_regions, const SnapMemory *kinds, uint64_t n_pages) {
    for (unsigned i = 0; i < n_regions; i++) {
        rig->n_regions++;
        map_region(rig, &rig->regions[i], kinds[i], n_pages);
    }
    rig->hello.n_regions = n_regions;
}

void rig_listen(Rig *rig) {
    g_autoptr(GError) error = NULL;
    const SnapIncomingOptions options = {.uri = rig->uri, .image_dir = *rig->images ? rig->images : NULL};
    rig->incoming = snap_incoming_start(*rig->images ? NULL : rig->guest, &options, NULL, NULL, &error);
    fail_on(error);
}

Rig *rig_mapped(void **state) {
    static const SnapMemory both[] = {SNAP_MEMORY_ANON, SNAP_MEMORY_SHMEM};
    rig_map(*state, G_N_ELEMENTS(both), both, RIG_PAGES);
    return *state;
}

Rig *rig_listening(void **state, uint32_t n_channels) {
    Rig *rig = rig_mapped(state);
    rig->hello.n_channels = n_channels;
    rig_listen(rig);
    return rig;
}

void rig_close(Rig *rig) {
    for (unsigned i = 0; i < G_N_ELEMENTS(rig->channels); i++)
        hand_close(&rig->channels[i]);
    hand_close(&rig->urgent);
    hand_close(&rig->stranger);
}

/* Where a test that has failed has left a thread in memory that does not come, it waits there for good. */
static void unmap_region(const Rig *rig, RigRegion *region) {
    if (region->data != MAP_FAILED && rig->n_touching == 0)
        munmap(region->data, region->length_bytes);
    if (region->fd >= 0)
        close(region->fd);
    g_free(region->sent);
    g_free(region->in_force);
}

int rig_free(void **state) {
    Rig *rig = g_steal_pointer((Rig **)state);
    char *rm[] = {"rm", "-rf", rig->dir, NULL};
    rig_close(rig);
    snap_incoming_free(rig->incoming);
    snap_guest_free(rig->guest);
    for (unsigned i = 0; i < rig->n_regions; i++)
        unmap_region(rig, &rig->regions[i]);
    g_ptr_array_unref(rig->states);
    assert_true(g_spawn_sync(NULL, rm, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL, NULL, NULL, NULL, NULL));
    int starts = rig->starts, due = rig->starts_due;
    g_free(rig);
    assert_int_equal(starts, due);
    return 0;
}

void rig_again(void **state) {
    rig_free(state);
    rig_new(state);
}

/* ---- the destination, seen by its owner ------------------------------------------------------------------ */

SnapMigrationStats rig_stats(const Rig *rig) {
    SnapMigrationStats stats;
    snap_incoming_get_stats(rig->incoming, &stats);
    return stats;
}

static SnapMigrationPhase where_is(const void *rig) {
    return rig_stats(rig).phase;
}

void rig_expect_phase(Rig *rig, SnapMigrationPhase phase) {
    expect_phase(where_is, rig, phase, HAND_PATIENCE_MS);
}

void rig_expect_completed(Rig *rig) {
    g_autoptr(GError) error = NULL;
    assert_int_equal(snap_incoming_wait(rig->incoming, HAND_PATIENCE_MS, &error), error == NULL);
    fail_on(error);
    assert_int_equal(rig_stats(rig).phase, SNAP_MIGRATION_COMPLETED);
    rig->starts_due = 1;
    assert_int_equal(rig->starts, 1);
}

void rig_expect_ended(Rig *rig, int code, const char *part) {
    g_autoptr(GError) error = NULL;
    assert_false(snap_incoming_wait(rig->incoming, HAND_PATIENCE_MS, &error));
    if (!strstr(error->message, part) || error->code != code)
        fail_msg("%d and \"%s\" instead of %d and \"%s\"", error->code, error->message, code, part);
    assert_int_equal(rig_stats(rig).phase,
                     code == SNAP_ERROR_CANCELLED ? SNAP_MIGRATION_CANCELLED : SNAP_MIGRATION_FAILED);
}

void rig_expect_failed(Rig *rig, int code, const char *part) {
    hand_expect_failed(&rig->main, part);
    rig_close(rig);
    rig_expect_ended(rig, code, part);
}

void rig_expect_lost(Rig *rig, SnapMigrationPhase since) {
    assert_false(snap_incoming_wait(rig->incoming, HAND_PATIENCE_MS, NULL));
    SnapMigrationStats stats = rig_stats(rig);
    assert_string_equal(snap_migration_phase_name(stats.phase), "unconnected");
    assert_string_equal(snap_migration_phase_name(stats.since), snap_migration_phase_name(since));
}

void rig_promote(Rig *rig) {
    g_autoptr(GError) error = NULL;
    snap_incoming_promote(rig->incoming, TRUE, &error);
    fail_on(error);
    rig_expect_completed(rig);
}

void rig_recover(Rig *rig) {
    g_autoptr(GError) error = NULL;
    snap_incoming_recover(rig->incoming, rig->uri, &error);
    fail_on(error);
}

/* ---- memory ---------------------------------------------------------------------------------------------- */

void rig_page(const Rig *rig, unsigned region, uint64_t page, unsigned generation, uint8_t *ret_data) {
    uint64_t word = (UINT64_C(1) << 63) + ((uint64_t)region << 56) + ((uint64_t)generation << 40) + page;
    for (uint64_t i = 0; i < rig->page / sizeof word; i++) {
        uint64_t mixed = generation ? word * UINT64_C(0x9e3779b97f4a7c15) + i / 64 : 0; /* packs well */
        memcpy(ret_data + i * sizeof word, &mixed, sizeof word);
    }
}

bool rig_is(const Rig *rig, unsigned region, uint64_t page, unsigned generation) {
    g_autofree uint8_t *expected = g_malloc(rig->page);
    rig_page(rig, region, page, generation, expected);
    return memcmp(expected, rig->regions[region].data + page * rig->page, rig->page) == 0;
}

void rig_check(const Rig *rig) {
    for (unsigned i = 0; i < rig->n_regions; i++) {
        const RigRegion *region = &rig->regions[i];
        const unsigned *due = region->in_force ? region->in_force : region->sent;
        for (uint64_t page = 0; page < region->n_pages; page++) {
            if (!rig_is(rig, i, page, due[page]))
                fail_msg("page %u of \"%s\" is not of generation %u", (unsigned)page, region->name, due[page]);
        }
    }
}

void rig_note(Rig *rig, unsigned region, uint64_t page, uint64_t n, unsigned generation) {
    for (uint64_t i = page; i < page + n; i++)
        rig->regions[region].sent[i] = generation;
}

void rig_put_in_force(Rig *rig) {
    for (unsigned i = 0; i < rig->n_regions; i++) {
        RigRegion *region = &rig->regions[i];
        g_free(region->in_force);
        region->in_force = g_memdup2(region->sent, region->n_pages * sizeof *region->sent);
    }
}

void rig_check_state(const Rig *rig, guint number, const char *name, const void *data, size_t length_bytes) {
    assert_true(number < rig->states->len);
    const SnapState *state = g_ptr_array_index(rig->states, number);
    assert_string_equal(state->name, name);
    assert_int_equal(g_bytes_get_size(state->data), length_bytes);
    if (length_bytes > 0)
        assert_memory_equal(g_bytes_get_data(state->data, NULL), data, length_bytes);
}

/* ---- images --------------------------------------------------------------------------------------------- */

Rig *rig_for_images(void **state, uint32_t n_channels) {
    Rig *rig = *state;
    g_snprintf(rig->images, sizeof rig->images, "%s/images", rig->dir);
    rig->hello.purpose = SNAP_WIRE_REPLICATE;
    return rig_listening(state, n_channels);
}

Rig *rig_into_images(void **state, uint32_t n_channels) {
    Rig *rig = rig_for_images(state, n_channels);
    rig_greet(rig);
    rig_join_all(rig);
    return rig;
}

SnapImage *rig_open_image(const Rig *rig, unsigned number) {
    g_autoptr(GError) error = NULL;
    g_autofree char *dir = g_strdup_printf("%s/%06u", rig->images, number);
    SnapImage *image = snap_image_open(dir, &error);
    fail_on(error);
    snap_image_verify(image, NULL, NULL, &error);
    fail_on(error);
    return image;
}

void rig_check_image(const Rig *rig, const SnapImage *image, unsigned at, unsigned region, uint64_t page,
                     unsigned generation) {
    g_autoptr(GError) error = NULL;
    g_autofree uint8_t *read = g_malloc(rig->page), *expected = g_malloc(rig->page);
    snap_image_read(image, at, page * rig->page, read, rig->page, &error);
    fail_on(error);
    rig_page(rig, region, page, generation, expected);
    assert_memory_equal(read, expected, rig->page);
}
