/*
 * Chunk: the unit that memory is captured, checked and stored in. Pure: masks, zero check, checksum, and the
 * bytes of an .idx file, all on buffers.
 *
 * A mask word has bit i for page i of the chunk. present: the image has the page; zero (a part of present): it
 * is all zeros and takes no room; stored = present and not zero: its bytes are in the data file. The last chunk
 * of a region may have fewer pages than SNAP_CHUNK_PAGES.
 */
#pragma once

#include "image-write.h"

#define SNAP_INDEX_HEADER_BYTES 64u
#define SNAP_INDEX_RECORD_BYTES 40u
#define SNAP_INDEX_VERSION 1u
#define SNAP_PAGE_MIN_BYTES 512u       /* the least that O_DIRECT can be aligned to */
#define SNAP_PAGE_MAX_BYTES (1u << 25) /* a chunk's length still fits 32 bits */

typedef enum {
    SNAP_CODEC_RAW, /* each page at its own offset in the data file */
    SNAP_CODEC_MAX
} SnapCodec;

/* One chunk as the index describes it. All zero: the image has no page of it. */
typedef struct {
    uint64_t present;
    uint64_t zero;
    uint64_t offset;       /* in the data file; RAW: of the chunk's page 0 */
    uint32_t length_bytes; /* bytes stored */
    uint32_t codec;
    uint64_t xxh3; /* XXH3-64 of the stored pages, in page order */
} SnapChunkRecord;

/* What the head of an index says. */
typedef struct {
    uint64_t page_bytes;
    uint64_t n_chunks;
    uint64_t region_bytes;
} SnapIndexHeader;

/* TRUE for a power of two that a region may have as its page size. */
gboolean snap_page_bytes_ok(uint64_t page_bytes);

/* Chunks in a region, the last partial one counted. */
uint64_t snap_chunk_count(uint64_t region_bytes, uint64_t page_bytes);

/* The mask of all pages that chunk @index of a region has. */
uint64_t snap_chunk_pages(uint64_t region_bytes, uint64_t page_bytes, uint64_t index);

gboolean snap_bytes_are_zero(const void *data, size_t length_bytes);

/* Which of the @present pages are all zeros. */
uint64_t snap_chunk_find_zero(const uint8_t *data, uint64_t page_bytes, uint64_t present);

/* XXH3-64 over the @stored pages in page order. */
uint64_t snap_chunk_hash(const uint8_t *data, uint64_t page_bytes, uint64_t stored);

/* Take the lowest run of set bits out of *@mask. FALSE when there is none. */
gboolean snap_chunk_take_run(uint64_t *mask, unsigned *ret_first, unsigned *ret_count);

/* The record of chunk @index of a raw data file; of 40 zero bytes where nothing is present. */
SnapChunkRecord snap_chunk_record_make(uint64_t index, uint64_t page_bytes, uint64_t present, uint64_t zero,
                                       uint64_t xxh3);

void snap_chunk_record_encode(const SnapChunkRecord *record, uint8_t ret_bytes[static SNAP_INDEX_RECORD_BYTES]);
void snap_chunk_record_decode(const uint8_t bytes[static SNAP_INDEX_RECORD_BYTES], SnapChunkRecord *ret_record);

/* What is wrong with the record of chunk @index, for people; NULL when nothing is. */
const char *snap_chunk_record_check(const SnapChunkRecord *record, const SnapIndexHeader *header, uint64_t index);

void snap_index_header_encode(const SnapIndexHeader *header, uint8_t ret_bytes[static SNAP_INDEX_HEADER_BYTES]);

/* What is wrong with the head of an index that should say @expected, for people; NULL when nothing is. */
const char *snap_index_header_check(const uint8_t bytes[static SNAP_INDEX_HEADER_BYTES],
                                    const SnapIndexHeader *expected);
