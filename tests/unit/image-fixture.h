/*
 * What the image tests share: a directory of their own, a guest whose every page is a pure function of its
 * number, and an image of it.
 */
#pragma once

#include "image-write.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

/* 512-byte pages: an image that is small, and holes finer than a file system's blocks. */
#define FIX_PAGE 512u
#define FIX_CHUNK (SNAP_CHUNK_PAGES * FIX_PAGE)
#define FIX_RAM_PAGES 150u /* two chunks and a part of one */
#define FIX_ROM_PAGES 3u
#define FIX_STATE "registers of vCPU 0"

static G_GNUC_UNUSED void expect_ok_(gboolean good, GError **error) {
    if (!good || *error) {
        fail_msg("unexpected error: %s", *error ? (*error)->message : "(none set)");
        g_assert_not_reached(); /* fail_msg() does not say of itself that it does not return */
    }
}
/* A macro: @error is looked at only after @good, which sets it, has been evaluated. */
#define expect_ok(good, error) expect_ok_(good, &(error))

/* @error has @code, and its text has @text. Frees it. */
static G_GNUC_UNUSED void expect_error(GError **error, SnapErrorCode code, const char *text) {
    if (!*error) {
        fail_msg("no error where \"%s\" was expected", text);
        g_assert_not_reached();
    }
    if ((*error)->domain != SNAP_ERROR || (*error)->code != (int)code || !strstr((*error)->message, text))
        fail_msg("error %d \"%s\" where %d \"…%s…\" was expected", (*error)->code, (*error)->message, (int)code,
                 text);
    if (strchr((*error)->message, '\n'))
        fail_msg("more than one line: %s", (*error)->message);
    g_clear_error(error);
}

static int fix_remove_one(const char *path, const struct stat *status, int type, struct FTW *place) {
    (void)status;
    (void)type;
    (void)place;
    return remove(path);
}

static G_GNUC_UNUSED void fix_remove(const char *path) {
    nftw(path, fix_remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* A new directory where the test runs, which is the build directory: a real file system, unlike some /tmp. */
static G_GNUC_UNUSED int fix_setup(void **state) {
    char *here = g_get_current_dir();
    *state = g_strconcat(here, "/test-image-XXXXXX", NULL);
    g_free(here);
    return g_mkdtemp(*state) ? 0 : -1;
}

static G_GNUC_UNUSED int fix_teardown(void **state) {
    fix_remove(*state);
    g_free(*state);
    return 0;
}

#define FIX_TEST(name) cmocka_unit_test_setup_teardown(name, fix_setup, fix_teardown)

static G_GNUC_UNUSED char *fix_path(void **state, const char *name) {
    return g_strconcat(*state, "/", name, NULL);
}

/* ---- the guest ------------------------------------------------------------------------------------------- */

typedef enum { PAGE_DATA, PAGE_ZERO, PAGE_ABSENT } FixKind;

static G_GNUC_UNUSED FixKind fix_kind(guint region, uint64_t page) {
    if (region == 1)
        return PAGE_DATA;
    return page % 7 == 3 ? PAGE_ABSENT : page % 5 == 0 ? PAGE_ZERO : PAGE_DATA;
}

/* What page @page of @region reads as. */
static G_GNUC_UNUSED void fix_fill(guint region, uint64_t page, uint64_t page_bytes, uint8_t *ret_data) {
    uint64_t word = fix_kind(region, page) == PAGE_DATA ? (page + 1) * 0x9E3779B97F4A7C15u + region : 0;
    for (uint64_t i = 0; i < page_bytes; i += sizeof word) {
        memcpy(ret_data + i, &word, sizeof word);
        word = word * 6364136223846793005u + (word != 0);
    }
}

static G_GNUC_UNUSED SnapRegion *fix_region(const char *name, uint64_t address, uint64_t pages,
                                            uint64_t page_bytes) {
    SnapRegion *region = snap_region_new(name, SNAP_MEMORY_ANON, address, pages * page_bytes);
    region->page_bytes = region->granule_bytes = page_bytes;
    return region;
}

/* Put every chunk of a region, as a job would. FALSE: with *error. */
static G_GNUC_UNUSED gboolean fix_put_region(SnapImageWriter *writer, guint region, uint64_t n_pages,
                                             uint64_t page_bytes, GError **error) {
    for (uint64_t chunk_index = 0; chunk_index * SNAP_CHUNK_PAGES < n_pages; chunk_index++) {
        SnapChunk *chunk = snap_image_writer_get(writer, -1, error);
        if (!chunk)
            return FALSE;
        chunk->region = region;
        chunk->index = chunk_index;
        for (unsigned i = 0; i < SNAP_CHUNK_PAGES && chunk_index * SNAP_CHUNK_PAGES + i < n_pages; i++) {
            uint64_t page = chunk_index * SNAP_CHUNK_PAGES + i;
            fix_fill(region, page, page_bytes, chunk->data + i * page_bytes);
            if (fix_kind(region, page) != PAGE_ABSENT)
                chunk->present |= UINT64_C(1) << i;
        }
        if (!snap_image_writer_put(writer, chunk, error))
            return FALSE;
    }
    return TRUE;
}

/* Everything up to the commit. */
static G_GNUC_UNUSED gboolean fix_put_all(SnapImageWriter *writer, GError **error) {
    g_autoptr(SnapRegion) ram = fix_region("pc.ram", 0x7f0000000000, FIX_RAM_PAGES, FIX_PAGE);
    g_autoptr(SnapRegion) rom = fix_region("/rom@etc/acpi", 0x7f1000000000, FIX_ROM_PAGES, FIX_PAGE);
    g_autoptr(SnapState) blob = snap_state_new("vcpu", g_bytes_new_static(FIX_STATE, strlen(FIX_STATE)));
    ram->guest_address = 0;
    return snap_image_writer_add_region(writer, ram, error) && snap_image_writer_add_region(writer, rom, error) &&
           fix_put_region(writer, 0, FIX_RAM_PAGES, FIX_PAGE, error) &&
           fix_put_region(writer, 1, FIX_ROM_PAGES, FIX_PAGE, error) &&
           snap_image_writer_add_state(writer, blob, error);
}

static G_GNUC_UNUSED gboolean fix_commit(SnapImageWriter *writer, GError **error) {
    const SnapStatistic statistics[] = {{"pause-us", 812}, {"faults", 0}};
    return snap_image_writer_commit(writer, G_GINT64_CONSTANT(1714979289123456), statistics, 2, error);
}

static G_GNUC_UNUSED gboolean fix_write_image(const char *dir, GError **error) {
    g_autoptr(SnapImageWriter) writer = snap_image_writer_new(dir, "test", FIX_PAGE, 3, error);
    return writer && fix_put_all(writer, error) && fix_commit(writer, error);
}

/* Open and read everything there is to read. */
static G_GNUC_UNUSED gboolean fix_check_image(const char *dir, GError **error) {
    g_autoptr(SnapImage) image = snap_image_open(dir, error);
    return image && snap_image_verify(image, NULL, NULL, error);
}

/* What long work has told of its progress: only forwards, and never more than all. */
typedef struct {
    uint64_t last, total;
    guint calls, cancel_at;
} FixProgress;

static G_GNUC_UNUSED gboolean fix_note_progress(uint64_t done, uint64_t total, void *opaque) {
    FixProgress *progress = opaque;
    assert_true(done >= progress->last && done <= total);
    progress->last = done;
    progress->total = total;
    return ++progress->calls != progress->cancel_at;
}

/* Names in a directory except . and ..; -1 when there is no such directory. */
static G_GNUC_UNUSED int fix_count_entries(const char *path) {
    GDir *dir = g_dir_open(path, 0, NULL);
    int n = 0;
    if (!dir)
        return -1;
    while (g_dir_read_name(dir))
        n++;
    g_dir_close(dir);
    return n;
}
