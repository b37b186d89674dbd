/*
 * The files inside an image directory: how they are called, and reading, writing and checksumming them whole.
 *
 * All functions here return 0 or -errno and set no GError.
 */
#pragma once

#include <glib.h>
#include <stdint.h>
#include <sys/types.h>

#define SNAP_FILE_MANIFEST "manifest.json"
#define SNAP_FILE_MANIFEST_NEW "manifest.json.new" /* until it is renamed */
#define SNAP_DIR_RAM "ram"
#define SNAP_DIR_STATE "state"
#define SNAP_SUFFIX_DATA ".img"
#define SNAP_SUFFIX_INDEX ".idx"

/*
 * The base name of the files of a region or state blob called @name: bytes other than A-Z a-z 0-9 . _ @ + : -
 * and a leading dot become %XX. Two names never give the same base name: what would be longer than 200 bytes is
 * cut, and ends in '~' and the checksum of the whole name; '~' does not occur otherwise.
 */
char *snap_file_base_name(const char *name);

/* TRUE when @base could come from snap_file_base_name(): safe to be put after a directory's name. */
gboolean snap_file_base_name_ok(const char *base);

int snap_file_write(int fd, const void *data, size_t length_bytes, uint64_t offset);

/* Exactly @length_bytes from @offset; -ENODATA when the file ends before. */
int snap_file_read(int fd, void *ret_data, size_t length_bytes, uint64_t offset);

/* XXH3-64 and length of a whole file. Holes are hashed as zeros, without reading them. */
int snap_file_hash(int fd, uint64_t *ret_xxh3, uint64_t *ret_length_bytes);

/*
 * From where on there is data at or behind @from: *@ret_start; or -ENXIO when there is none up to the end. A file
 * system that cannot tell says data is everywhere.
 */
int snap_file_seek_data(int fd, uint64_t from, uint64_t *ret_start);
/* Where the data that @from lies in ends. */
int snap_file_seek_hole(int fd, uint64_t from, uint64_t *ret_end);
