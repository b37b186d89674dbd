/*
 * imagecheck DIR ARENA: is an image of memguest the guest's memory at exactly one write?
 *
 * Reads the arena (at guest-process address ARENA, in hex) and the areas of the guest's misbehaving thread out of
 * the image, and checks both as of one instant. Prints "ok N=…" or what is wrong; exit status 0, 1, or 2 when the
 * image cannot be read.
 */
#include <glib.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../guest/seqcheck.h"
#include "libsnap.h"

/* The region that @address is in, and the offset there; -1 when there is none. */
static int find(const SnapImage *image, uint64_t address, uint64_t *ret_offset, uint64_t *ret_room) {
    for (guint i = 0; i < snap_image_info(image)->n_regions; i++) {
        const SnapImageRegion *region = snap_image_region(image, i);
        if (address >= region->host_address && address - region->host_address < region->length_bytes) {
            *ret_offset = address - region->host_address;
            *ret_room = region->length_bytes - *ret_offset;
            return (int)i;
        }
    }
    return -1;
}

/* A SeqReadFunc over an image: any address, any length, over neighbouring regions. */
static int read_memory(void *opaque, uint64_t address, void *ret_data, size_t length) {
    const SnapImage *image = opaque;
    uint8_t *out = ret_data;
    while (length > 0) {
        uint64_t offset, room;
        int region = find(image, address, &offset, &room);
        if (region < 0) {
            return 1;
        }
        uint64_t page_bytes = snap_image_region(image, (guint)region)->page_bytes;
        uint64_t skip = offset % page_bytes;
        size_t n = MIN(length, room);
        size_t span = (skip + n + page_bytes - 1) / page_bytes * page_bytes;
        g_autofree uint8_t *pages = g_malloc(span);
        g_autoptr(GError) error = NULL;
        if (!snap_image_read(image, (guint)region, offset - skip, pages, span, &error)) {
            fprintf(stderr, "imagecheck: %s\n", error->message);
            return -1;
        }
        memcpy(out, pages + skip, n);
        out += n;
        address += n;
        length -= n;
    }
    return 0;
}

static uint8_t *read_arena(SnapImage *image, uint64_t address, uint64_t *ret_length) {
    SeqHeader header;
    SeqLayout layout;
    if (read_memory(image, address, &header, sizeof header) != 0) {
        fprintf(stderr, "imagecheck: no region holds 0x%lx\n", address);
        return NULL;
    }
    /* A header alone is enough to say how long the arena has to be. */
    *ret_length = (header.pages + 1) * header.page_bytes;
    g_autofree uint8_t *arena = *ret_length < UINT64_C(1) << 40 ? g_try_malloc(*ret_length) : NULL;
    if (!arena || read_memory(image, address, arena, *ret_length) != 0 ||
        !seq_read_layout(arena, *ret_length, &layout)) {
        fprintf(stderr, "imagecheck: no arena of %lu bytes at 0x%lx\n", *ret_length, address);
        return NULL;
    }
    return g_steal_pointer(&arena);
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fputs("usage: imagecheck DIR ARENA\n", stderr);
        return 2;
    }
    g_autoptr(GError) error = NULL;
    g_autoptr(SnapImage) image = snap_image_open(argv[1], &error);
    if (!image) {
        fprintf(stderr, "imagecheck: %s\n", error->message);
        return 2;
    }
    uint64_t length;
    g_autofree uint8_t *arena = read_arena(image, strtoull(argv[2], NULL, 16), &length);
    if (!arena) {
        return 2;
    }
    SeqReport report;
    bool right = seq_check(arena, length, NULL, &report);
    seq_print_report(stdout, &report);
    char problem[SEQ_PROBLEM_BYTES] = "";
    if (!seq_check_events(arena, read_memory, image, problem)) {
        printf("events: %s\n", problem);
        right = false;
    }
    return right ? 0 : 1;
}
