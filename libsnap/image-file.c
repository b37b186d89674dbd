/* Names, whole-file reads and writes, checksums. See image-file.h. */
#include "image-file.h"

#include "hash.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define NAME_MAX_BYTES 200u /* leaves room for a suffix within the 255 bytes that file systems allow */
#define NAME_HASH_BYTES 17u /* '~' and 16 digits */
#define BLOCK_BYTES (64u * 1024)

static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._@+:-";

static gboolean is_plain(char c) {
    return c != '\0' && strchr(plain, c) != NULL;
}

char *snap_file_base_name(const char *name) {
    GString *base = g_string_new(NULL);
    for (const char *at = name; *at; at++) {
        if (is_plain(*at) && !(at == name && *at == '.'))
            g_string_append_c(base, *at);
        else
            g_string_append_printf(base, "%%%02X", (unsigned char)*at);
    }
    if (base->len > NAME_MAX_BYTES) {
        g_string_truncate(base, NAME_MAX_BYTES - NAME_HASH_BYTES);
        g_string_append_printf(base, "~%016" G_GINT64_MODIFIER "x", (guint64)XXH3_64bits(name, strlen(name)));
    }
    return g_string_free(base, FALSE);
}

gboolean snap_file_base_name_ok(const char *base) {
    size_t length = strlen(base);
    if (length == 0 || length > NAME_MAX_BYTES || base[0] == '.')
        return FALSE;
    for (const char *at = base; *at; at++) {
        if (!is_plain(*at) && *at != '%' && *at != '~')
            return FALSE;
    }
    return TRUE;
}

int snap_file_write(int fd, const void *data, size_t length_bytes, uint64_t offset) {
    const uint8_t *at = data;
    while (length_bytes > 0) {
        ssize_t result = pwrite(fd, at, length_bytes, (off_t)offset);
        if (result < 0 && errno == EINTR)
            continue;
        if (result <= 0)
            return result < 0 ? -errno : -ENOSPC;
        at += result;
        offset += (uint64_t)result;
        length_bytes -= (size_t)result;
    }
    return 0;
}

int snap_file_read(int fd, void *ret_data, size_t length_bytes, uint64_t offset) {
    uint8_t *at = ret_data;
    while (length_bytes > 0) {
        ssize_t result = pread(fd, at, length_bytes, (off_t)offset);
        if (result < 0 && errno == EINTR)
            continue;
        if (result <= 0)
            return result < 0 ? -errno : -ENODATA;
        at += result;
        offset += (uint64_t)result;
        length_bytes -= (size_t)result;
    }
    return 0;
}

int snap_file_seek_data(int fd, uint64_t from, uint64_t *ret_start) {
    off_t start = lseek(fd, (off_t)from, SEEK_DATA);
    if (start < 0 && errno != EINVAL && errno != EOPNOTSUPP)
        return -errno;
    *ret_start = start < 0 ? from : (uint64_t)start;
    return 0;
}

int snap_file_seek_hole(int fd, uint64_t from, uint64_t *ret_end) {
    off_t end = lseek(fd, (off_t)from, SEEK_HOLE);
    if (end < 0 && (errno == EINVAL || errno == EOPNOTSUPP))
        end = lseek(fd, 0, SEEK_END);
    if (end < 0)
        return -errno;
    *ret_end = (uint64_t)end;
    return 0;
}

static void hash_zeros(SnapHash *hash, uint64_t length_bytes) {
    static const uint8_t zeros[BLOCK_BYTES];
    for (; length_bytes > BLOCK_BYTES; length_bytes -= BLOCK_BYTES)
        XXH3_64bits_update(hash, zeros, BLOCK_BYTES);
    XXH3_64bits_update(hash, zeros, length_bytes);
}

/* Hash from *@at to @end. */
static int hash_data(int fd, SnapHash *hash, uint8_t *block, uint64_t at, uint64_t end) {
    while (at < end) {
        size_t now = (size_t)MIN(end - at, BLOCK_BYTES);
        int result = snap_file_read(fd, block, now, at);
        if (result < 0)
            return result;
        XXH3_64bits_update(hash, block, now);
        at += now;
    }
    return 0;
}

int snap_file_hash(int fd, uint64_t *ret_xxh3, uint64_t *ret_length_bytes) {
    off_t length = lseek(fd, 0, SEEK_END);
    if (length < 0)
        return -errno;
    g_autofree uint8_t *block = g_malloc(BLOCK_BYTES);
    g_autoptr(SnapHash) hash = snap_hash_new();
    for (uint64_t at = 0, end = (uint64_t)length; at < end;) {
        uint64_t start = end, stop = end;
        int result = snap_file_seek_data(fd, at, &start);
        if (result == 0)
            result = snap_file_seek_hole(fd, start, &stop);
        if (result < 0 && result != -ENXIO)
            return result;
        start = MIN(start, end);
        stop = MIN(stop, end);
        hash_zeros(hash, start - at);
        result = hash_data(fd, hash, block, start, stop);
        if (result < 0)
            return result;
        at = stop;
    }
    *ret_xxh3 = XXH3_64bits_digest(hash);
    *ret_length_bytes = (uint64_t)length;
    return 0;
}
