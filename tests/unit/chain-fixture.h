/*
 * Chains for tests: images that are each other's parents, and what they must read as, by a model that knows only
 * the rule: a page that an image does not hold is its parent's, in the region of the same name, or zeros.
 */
#pragma once

#include "image-fixture.h"

#define CHAIN_MAX_PAGES 300u /* four chunks and a part of one */
#define CHAIN_MAX_REGIONS 4u
#define CHAIN_MAX_LEVELS 8u

enum { CHAIN_ABSENT = -1, CHAIN_ZERO = 0 }; /* a page of an image; otherwise a number that its bytes come from */

typedef struct {
    char name[32];
    uint64_t host_address;
    uint64_t n_pages;
    int64_t pages[CHAIN_MAX_PAGES];
} ChainRegion;

typedef struct {
    char *dir;
    guint n_regions;
    ChainRegion regions[CHAIN_MAX_REGIONS];
} ChainLevel;

typedef struct {
    guint n_levels;
    ChainLevel levels[CHAIN_MAX_LEVELS];
    GRand *chance;
    int64_t last; /* the last number that a page was made from */
} Chain;

static G_GNUC_UNUSED void chain_fill(int64_t number, uint8_t ret_page[static FIX_PAGE]) {
    uint64_t word = (uint64_t)number * 0x9E3779B97F4A7C15u;
    for (guint i = 0; i < FIX_PAGE; i += (guint)sizeof word) {
        memcpy(ret_page + i, &word, sizeof word);
        word = word * 6364136223846793005u + (number != 0);
    }
}

static G_GNUC_UNUSED const ChainRegion *chain_region(const ChainLevel *level, const char *name) {
    for (guint i = 0; i < level->n_regions; i++) {
        if (strcmp(level->regions[i].name, name) == 0)
            return &level->regions[i];
    }
    return NULL;
}

/* What page @page of the region called @name of level @level is: a number, or CHAIN_ZERO. */
static G_GNUC_UNUSED int64_t chain_expect(const Chain *chain, guint level, const char *name, uint64_t page) {
    for (guint i = level + 1; i > 0; i--) {
        const ChainRegion *region = chain_region(&chain->levels[i - 1], name);
        if (!region || page >= region->n_pages)
            return CHAIN_ZERO;
        if (region->pages[page] != CHAIN_ABSENT)
            return region->pages[page];
    }
    return CHAIN_ZERO;
}

/* ---- writing --------------------------------------------------------------------------------------------- */

static G_GNUC_UNUSED gboolean chain_put_region(SnapImageWriter *writer, guint i, const ChainRegion *region,
                                               GError **error) {
    for (uint64_t first = 0; first < region->n_pages; first += SNAP_CHUNK_PAGES) {
        SnapChunk *chunk = snap_image_writer_get(writer, -1, error);
        if (!chunk)
            return FALSE;
        uint64_t zero = 0;
        chunk->region = i;
        chunk->index = first / SNAP_CHUNK_PAGES;
        for (uint64_t page = first; page < MIN(first + SNAP_CHUNK_PAGES, region->n_pages); page++) {
            int64_t number = region->pages[page];
            uint64_t bit = UINT64_C(1) << (page - first);
            chain_fill(MAX(number, 0), chunk->data + (page - first) * FIX_PAGE);
            chunk->present |= number == CHAIN_ABSENT ? 0 : bit;
            zero |= number == CHAIN_ZERO ? bit : 0;
        }
        /* Nothing but zeros: by either way there is. */
        gboolean only_zero = chunk->present != 0 && chunk->present == zero && first % 2 == 0;
        uint64_t mask = chunk->present;
        chunk->present = only_zero ? 0 : mask;
        if (!snap_image_writer_put(writer, chunk, error) ||
            (only_zero && !snap_image_writer_put_zero(writer, i, first / SNAP_CHUNK_PAGES, mask, error)))
            return FALSE;
    }
    return TRUE;
}

/* @parent: (nullable) directory. @created_us: as of snap_image_writer_commit(). */
static G_GNUC_UNUSED gboolean chain_write(const ChainLevel *level, const char *parent, int64_t created_us,
                                          GError **error) {
    g_autoptr(SnapImageWriter) writer = snap_image_writer_new(level->dir, "test", FIX_PAGE, 3, error);
    g_autoptr(SnapImage) image = writer && parent ? snap_image_open(parent, error) : NULL;
    if (!writer || (parent && (!image || !snap_image_writer_set_parent(writer, image, error))))
        return FALSE;
    g_clear_pointer(&image, snap_image_free); /* it is borrowed only while it is set */
    for (guint i = 0; i < level->n_regions; i++) {
        const ChainRegion *region = &level->regions[i];
        g_autoptr(SnapRegion) added = fix_region(region->name, region->host_address, region->n_pages, FIX_PAGE);
        if (!snap_image_writer_add_region(writer, added, error))
            return FALSE;
    }
    for (guint i = 0; i < level->n_regions; i++) {
        if (!chain_put_region(writer, i, &level->regions[i], error))
            return FALSE;
    }
    g_autofree char *text = g_path_get_basename(level->dir);
    g_autoptr(SnapState) blob = snap_state_new("name", g_bytes_new(text, strlen(text)));
    const SnapStatistic statistics[] = {{"pause-us", 812}};
    return snap_image_writer_add_state(writer, blob, error) &&
           snap_image_writer_commit(writer, created_us, statistics, 1, error);
}

/* ---- a random chain -------------------------------------------------------------------------------------- */

/* Runs of pages of one kind, of any length from one page to more than a chunk. */
static G_GNUC_UNUSED void chain_random_pages(Chain *chain, ChainRegion *region, gboolean whole) {
    for (uint64_t page = 0; page < region->n_pages;) {
        int kind = g_rand_int_range(chain->chance, whole ? 3 : 0, 10);
        int longest = g_rand_boolean(chain->chance) ? 4 : 100;
        for (int run = g_rand_int_range(chain->chance, 1, longest); run > 0 && page < region->n_pages; run--)
            region->pages[page++] = kind < 6 && !whole ? CHAIN_ABSENT : kind < 7 ? CHAIN_ZERO : ++chain->last;
    }
}

/* A level whose regions partly are those of the one below, of the same length or another. */
static G_GNUC_UNUSED void chain_random_level(Chain *chain, guint i) {
    static const char *const names[] = {"pc.ram", "/rom@etc/acpi", "[heap]", "vga"};
    ChainLevel *level = &chain->levels[i];
    for (guint k = 0; k < G_N_ELEMENTS(names); k++) {
        const ChainRegion *below = i > 0 ? chain_region(&chain->levels[i - 1], names[k]) : NULL;
        if (k > 0 && g_rand_int_range(chain->chance, 0, 4) == 0)
            continue;
        ChainRegion *region = &level->regions[level->n_regions++];
        g_strlcpy(region->name, names[k], sizeof region->name);
        region->host_address = (k + 1) * UINT64_C(0x100000000);
        region->n_pages = below && g_rand_boolean(chain->chance)
                              ? below->n_pages
                              : (uint64_t)g_rand_int_range(chain->chance, 1, CHAIN_MAX_PAGES + 1);
        chain_random_pages(chain, region, i == 0);
    }
}

static G_GNUC_UNUSED Chain *chain_new(guint32 seed) {
    Chain *chain = g_new0(Chain, 1);
    chain->chance = g_rand_new_with_seed(seed);
    return chain;
}

static G_GNUC_UNUSED void chain_free(Chain *chain) {
    for (guint i = 0; i < CHAIN_MAX_LEVELS; i++)
        g_free(chain->levels[i].dir);
    g_rand_free(chain->chance);
    g_free(chain);
}
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Chain, chain_free)

/* One more level, NAME/0, NAME/1 and so on, that nothing is in yet. */
static G_GNUC_UNUSED ChainLevel *chain_add(Chain *chain, const char *folder) {
    guint i = chain->n_levels++;
    assert_true(i < CHAIN_MAX_LEVELS);
    chain->levels[i].dir = g_strdup_printf("%s/%u", folder, i);
    return &chain->levels[i];
}

/* Write the level that was added last, a microsecond after the one before. */
static G_GNUC_UNUSED void chain_write_last(const Chain *chain) {
    GError *error = NULL;
    guint i = chain->n_levels - 1;
    const char *parent = i > 0 ? chain->levels[i - 1].dir : NULL;
    expect_ok(chain_write(&chain->levels[i], parent, G_GINT64_CONSTANT(1714979289000000) + i, &error), error);
}

/* Write one more random level. */
static G_GNUC_UNUSED void chain_grow(Chain *chain, const char *folder) {
    chain_add(chain, folder);
    chain_random_level(chain, chain->n_levels - 1);
    chain_write_last(chain);
}

/* One more level of one region, of pages that are all there in the first one and absent in others. Not written. */
static G_GNUC_UNUSED ChainRegion *chain_add_plain(Chain *chain, const char *folder, guint n_pages) {
    ChainLevel *level = chain_add(chain, folder);
    ChainRegion *region = &level->regions[level->n_regions++];
    *region = (ChainRegion){.name = "pc.ram", .host_address = 0x7f0000000000, .n_pages = n_pages};
    for (int page = 0; page < (int)n_pages; page++)
        region->pages[page] = chain->n_levels == 1 ? page + 1 : CHAIN_ABSENT;
    return region;
}

/* ---- checking -------------------------------------------------------------------------------------------- */

/* Runs of data are those of the model. */
static G_GNUC_UNUSED void chain_check_runs(const Chain *chain, guint level, const SnapImage *image, guint i) {
    const char *name = snap_image_region(image, i)->name;
    uint64_t n_pages = snap_image_region(image, i)->length_bytes / FIX_PAGE;
    for (uint64_t from = 0; from < n_pages; from++) {
        uint64_t start = from, end = 0, found_start = 0, found_end = 0;
        while (start < n_pages && chain_expect(chain, level, name, start) == CHAIN_ZERO)
            start++;
        for (end = start; end < n_pages && chain_expect(chain, level, name, end) != CHAIN_ZERO; end++)
            ;
        gboolean found = snap_image_next_data(image, i, from * FIX_PAGE, &found_start, &found_end);
        assert_int_equal(found, start < n_pages);
        if (found) {
            assert_int_equal(found_start, start * FIX_PAGE);
            assert_int_equal(found_end, end * FIX_PAGE);
        }
    }
}

/* Pages @first to before @end are those of the model. */
static G_GNUC_UNUSED void chain_check_range(const Chain *chain, guint level, const SnapImage *image, guint i,
                                            uint64_t first, uint64_t end) {
    GError *error = NULL;
    uint8_t expected[FIX_PAGE];
    g_autofree uint8_t *found = g_malloc((end - first) * FIX_PAGE);
    memset(found, 0xEE, (end - first) * FIX_PAGE);
    expect_ok(snap_image_read(image, i, first * FIX_PAGE, found, (end - first) * FIX_PAGE, &error), error);
    for (uint64_t page = first; page < end; page++) {
        chain_fill(chain_expect(chain, level, snap_image_region(image, i)->name, page), expected);
        if (memcmp(found + (page - first) * FIX_PAGE, expected, FIX_PAGE) != 0)
            fail_msg("%s: page %" G_GUINT64_FORMAT " of %s is another", snap_image_info(image)->dir, (guint64)page,
                     snap_image_region(image, i)->name);
    }
}

/* Everything @image reads as is what the model says of level @level. */
static G_GNUC_UNUSED void chain_check_image(const Chain *chain, guint level, const SnapImage *image) {
    assert_int_equal(snap_image_info(image)->n_regions, chain->levels[level].n_regions);
    for (guint i = 0; i < snap_image_info(image)->n_regions; i++) {
        const ChainRegion *region = chain_region(&chain->levels[level], snap_image_region(image, i)->name);
        assert_non_null(region);
        assert_int_equal(snap_image_region(image, i)->length_bytes, region->n_pages * FIX_PAGE);
        chain_check_range(chain, level, image, i, 0, region->n_pages);
        for (uint64_t first = 0; first < region->n_pages; first += 1 + first / 5)
            chain_check_range(chain, level, image, i, first, MIN(first + 1 + first * 7 % 90, region->n_pages));
        chain_check_runs(chain, level, image, i);
    }
}

/* The directory @dir holds level @level, state blob included, and verifies. */
static G_GNUC_UNUSED void chain_check_dir(const Chain *chain, guint level, const char *dir) {
    GError *error = NULL;
    g_autoptr(SnapImage) image = snap_image_open(dir, &error);
    expect_ok(image != NULL, error);
    chain_check_image(chain, level, image);
    expect_ok(snap_image_verify(image, NULL, NULL, &error), error);
    g_autoptr(GBytes) blob = snap_image_state(image, "name", &error);
    g_autofree char *name = g_path_get_basename(chain->levels[level].dir);
    expect_ok(blob != NULL, error);
    assert_int_equal(g_bytes_get_size(blob), strlen(name));
    assert_memory_equal(g_bytes_get_data(blob, NULL), name, strlen(name));
}
