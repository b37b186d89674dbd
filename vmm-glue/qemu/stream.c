/*
 * The composer.
 *
 * The stream, all numbers big-endian:
 *
 *     [4]   "QEVM"           [4] 3, the version
 *     [1]   7                [4] length, machine type                            configuration
 *     [1]   1  [4] section  [1] 3 "ram" [4] 0, instance  [4] 4, version          start of "ram"
 *     [8]   sum of the blocks' lengths | 4
 *           for each block: [1] length, name  [8] used length
 *     [8]   0x10, end of this part      [1] 0x7e [4] section, footer
 *     [1]   3  [4] section                                                       end of "ram": all pages
 *           for each page: [8] offset | flags, [1] length, name unless 0x20 is set, then
 *               0x02: [1] 0, the page is zero         0x08: the page
 *     [8]   0x10             [1] 0x7e [4] section
 *           the device state from its 9th byte on; it ends in 0, end of stream
 *     [1]   6                [4] length, JSON that describes nothing
 *
 * Zero pages: a fresh QEMU's RAM is zero, except its ROMs, and except RAM from a file that was used before. The
 * stream for anyone (export) therefore carries them, nine bytes each, as QEMU's own does; a restore, which knows
 * what the RAM is made of, leaves them out, which saves QEMU from looking at each (STREAM_DATA).
 *
 * Failure modes: QEMU believes a stream that lacks blocks or pages, and the guest crashes much later. So what is
 * not in the image is found out here, before the first byte.
 */
#include "stream.h"

#include "qemu.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#define FLAG_ZERO 0x02u
#define FLAG_SIZES 0x04u
#define FLAG_PAGE 0x08u
#define FLAG_END 0x10u
#define FLAG_SAME_BLOCK 0x20u

#define SECTION_RAM 0x40000000u /* no device has as many sections before it */

#define FLUSH_BYTES (1u << 20)
#define READ_BYTES (1u << 20)

static const uint8_t magic[] = {'Q', 'E', 'V', 'M', 0, 0, 0, 3};

typedef struct {
    const SnapImage *image;
    GByteArray *output;
    uint8_t *pages; /* READ_BYTES */
    StreamWrite write;
    void *opaque;
    SnapProgressFunc progress;
    void *progress_opaque;
    uint64_t done_bytes, total_bytes;
} Composer;

/* ---- encoding ---- */

static void put_u8(GByteArray *output, uint8_t value) {
    g_byte_array_append(output, &value, sizeof(value));
}

static void put_u32(GByteArray *output, uint32_t value) {
    value = GUINT32_TO_BE(value);
    g_byte_array_append(output, (const uint8_t *)&value, sizeof(value));
}

static void put_u64(GByteArray *output, uint64_t value) {
    value = GUINT64_TO_BE(value);
    g_byte_array_append(output, (const uint8_t *)&value, sizeof(value));
}

static void put_name(GByteArray *output, const char *name) {
    put_u8(output, (uint8_t)strlen(name));
    g_byte_array_append(output, (const uint8_t *)name, (guint)strlen(name));
}

static void put_end_of_part(GByteArray *output) {
    put_u64(output, FLAG_END);
    put_u8(output, 0x7e);
    put_u32(output, SECTION_RAM);
}

static void put_head(GByteArray *output, const QemuDescription *description) {
    uint64_t sum = 0;
    g_byte_array_append(output, magic, sizeof(magic));
    put_u8(output, 7);
    put_u32(output, (uint32_t)strlen(description->machine));
    g_byte_array_append(output, (const uint8_t *)description->machine, (guint)strlen(description->machine));
    put_u8(output, 1);
    put_u32(output, SECTION_RAM);
    put_name(output, "ram");
    put_u32(output, 0);
    put_u32(output, 4);
    for (guint i = 0; i < description->blocks->len; i++)
        sum += ((const RamBlock *)g_ptr_array_index(description->blocks, i))->used_bytes;
    put_u64(output, sum | FLAG_SIZES);
    for (guint i = 0; i < description->blocks->len; i++) {
        const RamBlock *block = g_ptr_array_index(description->blocks, i);
        put_name(output, block->name);
        put_u64(output, block->used_bytes);
    }
    put_end_of_part(output);
    put_u8(output, 3);
    put_u32(output, SECTION_RAM);
}

static void put_tail(GByteArray *output, uint64_t page_bytes) {
    g_autofree char *nothing = g_strdup_printf("{\"page_size\":%" G_GUINT64_FORMAT ",\"devices\":[]}", page_bytes);
    put_u8(output, 6);
    put_u32(output, (uint32_t)strlen(nothing));
    g_byte_array_append(output, (const uint8_t *)nothing, (guint)strlen(nothing));
}

/* ---- pages ---- */

static gboolean flush(Composer *composer, GError **error) {
    GByteArray *output = composer->output;
    if (composer->progress &&
        !composer->progress(composer->done_bytes, composer->total_bytes, composer->progress_opaque)) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_CANCELLED, "cancelled");
        return FALSE;
    }
    gboolean ok = output->len == 0 || composer->write(output->data, output->len, composer->opaque, error);
    g_byte_array_set_size(output, 0);
    return ok;
}

static gboolean flush_when_full(Composer *composer, GError **error) {
    return composer->output->len < FLUSH_BYTES || flush(composer, error);
}

/* The head of a page's record. The block is named in its first page only: *name becomes NULL. */
static void put_page_head(GByteArray *output, uint64_t offset, uint64_t flag, const char **name) {
    put_u64(output, offset | flag | (*name ? 0 : FLAG_SAME_BLOCK));
    if (*name)
        put_name(output, *name);
    *name = NULL;
}

static gboolean put_zero_run(Composer *composer, uint64_t start, uint64_t end, uint64_t page_bytes,
                             const char **name, GError **error) {
    for (uint64_t at = start; at < end; at += page_bytes) {
        put_page_head(composer->output, at, FLAG_ZERO, name);
        put_u8(composer->output, 0);
        if (!flush_when_full(composer, error))
            return FALSE;
    }
    composer->done_bytes += end - start;
    return TRUE;
}

static gboolean put_data_run(Composer *composer, guint region, uint64_t start, uint64_t end, uint64_t page_bytes,
                             const char **name, GError **error) {
    while (start < end) {
        uint64_t length = MIN(end - start, READ_BYTES);
        if (!snap_image_read(composer->image, region, start, composer->pages, length, error))
            return FALSE;
        for (uint64_t at = 0; at < length; at += page_bytes) {
            put_page_head(composer->output, start + at, FLAG_PAGE, name);
            g_byte_array_append(composer->output, composer->pages + at, (guint)page_bytes);
        }
        start += length;
        composer->done_bytes += length;
        if (!flush_when_full(composer, error))
            return FALSE;
    }
    return TRUE;
}

static gboolean put_block(Composer *composer, const RamBlock *block, StreamContent content, GError **error) {
    guint index = (guint)snap_image_find_region(composer->image, block->name);
    const SnapImageRegion *region = snap_image_region(composer->image, index);
    const char *name = block->name;
    uint64_t at = 0, start, end;
    if (content == STREAM_NOTHING)
        return TRUE;
    while (at < block->used_bytes) {
        if (!snap_image_next_data(composer->image, index, at, &start, &end))
            start = end = block->used_bytes;
        start = MIN(start, block->used_bytes);
        end = MIN(end, block->used_bytes);
        if (content == STREAM_ALL && !put_zero_run(composer, at, start, region->page_bytes, &name, error))
            return FALSE;
        if (!put_data_run(composer, index, start, end, region->page_bytes, &name, error)) {
            g_prefix_error(error, "RAM block %s: ", block->name);
            return FALSE;
        }
        at = end;
    }
    return TRUE;
}

/* ---- the whole ---- */

static gboolean check_block(const SnapImage *image, const RamBlock *block, GError **error) {
    int index = snap_image_find_region(image, block->name);
    const SnapImageRegion *region = index < 0 ? NULL : snap_image_region(image, (guint)index);
    if (!region) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_INCOMPLETE,
                    "RAM block %s is not in the image (was it left out by --region?)", block->name);
        return FALSE;
    }
    if (region->length_bytes < block->used_bytes || block->used_bytes % region->page_bytes != 0) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_CORRUPT,
                    "RAM block %s: QEMU uses %" G_GUINT64_FORMAT " bytes of it, the image has %" G_GUINT64_FORMAT,
                    block->name, block->used_bytes, region->length_bytes);
        return FALSE;
    }
    return TRUE;
}

/* The device state must be a stream of its own: head, sections, end. */
static GBytes *read_devices(const SnapImage *image, GError **error) {
    g_autoptr(GBytes) devices = snap_image_state(image, QEMU_STATE_DEVICES, error);
    if (!devices)
        return NULL;
    size_t length;
    const uint8_t *data = g_bytes_get_data(devices, &length);
    if (length <= sizeof(magic) || memcmp(data, magic, sizeof(magic)) != 0 || data[length - 1] != 0) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_CORRUPT, "state blob %s is not a QEMU device state",
                    QEMU_STATE_DEVICES);
        return NULL;
    }
    return g_bytes_new_from_bytes(devices, sizeof(magic), length - sizeof(magic));
}

static gboolean compose(Composer *composer, const QemuDescription *description, const StreamContent *contents,
                        GBytes *devices, GError **error) {
    put_head(composer->output, description);
    for (guint i = 0; i < description->blocks->len; i++)
        if (!put_block(composer, g_ptr_array_index(description->blocks, i), contents ? contents[i] : STREAM_ALL,
                       error))
            return FALSE;
    put_end_of_part(composer->output);
    g_byte_array_append(composer->output, g_bytes_get_data(devices, NULL), (guint)g_bytes_get_size(devices));
    put_tail(composer->output, snap_image_info(composer->image)->page_bytes);
    composer->done_bytes = composer->total_bytes;
    return flush(composer, error);
}

gboolean stream_compose(const SnapImage *image, const QemuDescription *description, const StreamContent *contents,
                        StreamWrite write_func, void *opaque, SnapProgressFunc progress, void *progress_opaque,
                        GError **error) {
    g_autoptr(GBytes) devices = read_devices(image, error);
    Composer composer = {.image = image,
                         .write = write_func,
                         .opaque = opaque,
                         .progress = progress,
                         .progress_opaque = progress_opaque};
    if (!devices)
        return FALSE;
    for (guint i = 0; i < description->blocks->len; i++) {
        const RamBlock *block = g_ptr_array_index(description->blocks, i);
        if (!check_block(image, block, error))
            return FALSE;
        composer.total_bytes += contents && contents[i] == STREAM_NOTHING ? 0 : block->used_bytes;
    }
    g_autoptr(GByteArray) output = g_byte_array_sized_new(2 * FLUSH_BYTES);
    g_autofree uint8_t *pages = g_malloc(READ_BYTES);
    composer.output = output;
    composer.pages = pages;
    return compose(&composer, description, contents, devices, error);
}

/* ---- to a descriptor ---- */

#define LOOK_MS 100 /* at the progress function, while a reader does not read */

typedef struct {
    int fd;
    uint64_t *sent_bytes;
    SnapProgressFunc progress; /* (nullable) */
    void *opaque;
    uint64_t done_bytes, total_bytes; /* as last told */
} FdWriter;

static gboolean note_progress(uint64_t done_bytes, uint64_t total_bytes, void *opaque) {
    FdWriter *writer = opaque;
    writer->done_bytes = done_bytes;
    writer->total_bytes = total_bytes;
    return !writer->progress || writer->progress(done_bytes, total_bytes, writer->opaque);
}

static gboolean wait_for_reader(FdWriter *writer, GError **error) {
    struct pollfd ready = {.fd = writer->fd, .events = POLLOUT};
    while (poll(&ready, 1, LOOK_MS) <= 0) {
        if (!note_progress(writer->done_bytes, writer->total_bytes, writer)) {
            g_set_error(error, SNAP_ERROR, SNAP_ERROR_CANCELLED, "cancelled");
            return FALSE;
        }
    }
    return TRUE;
}

static gboolean write_to_fd(const void *data, size_t length, void *opaque, GError **error) {
    FdWriter *writer = opaque;
    const char *at = data;
    while (length > 0) {
        ssize_t n = write(writer->fd, at, length);
        if (n < 0 && errno == EAGAIN) {
            if (!wait_for_reader(writer, error))
                return FALSE;
        } else if (n < 0 && errno != EINTR) {
            snap_set_errno(error, errno, "writing the migration stream");
            return FALSE;
        }
        at += MAX(n, 0);
        length -= (size_t)MAX(n, 0);
        *writer->sent_bytes += (uint64_t)MAX(n, 0);
    }
    return TRUE;
}

gboolean qemu_export_stream(const SnapImage *image, int out_fd, uint64_t *ret_sent_bytes,
                            SnapProgressFunc progress, void *opaque, GError **error) {
    uint64_t sent_bytes = 0;
    FdWriter writer = {.fd = out_fd,
                       .sent_bytes = ret_sent_bytes ? ret_sent_bytes : &sent_bytes,
                       .progress = progress,
                       .opaque = opaque};
    g_autoptr(QemuDescription) description = description_of_image(image, error);
    return description &&
           stream_compose(image, description, NULL, write_to_fd, &writer, note_progress, &writer, error);
}
