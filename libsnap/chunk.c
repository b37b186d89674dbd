/*
 * Chunk masks, zero check, checksums, and the encoding of an .idx file. See chunk.h; nothing here allocates,
 * blocks or fails: decoders take any bytes, the checks say what is wrong with them.
 */
#include "chunk.h"

#include "bytes.h"
#include "hash.h"

static const char magic[8] = {'s', 'n', 'a', 'p', '-', 'i', 'd', 'x'};

/* Bits 0 to n - 1, n <= 64. */
static uint64_t low_bits(uint64_t n) {
    return n >= SNAP_CHUNK_PAGES ? UINT64_MAX : (UINT64_C(1) << n) - 1;
}

gboolean snap_page_bytes_ok(uint64_t page_bytes) {
    return page_bytes >= SNAP_PAGE_MIN_BYTES && page_bytes <= SNAP_PAGE_MAX_BYTES &&
           (page_bytes & (page_bytes - 1)) == 0;
}

uint64_t snap_chunk_count(uint64_t region_bytes, uint64_t page_bytes) {
    uint64_t pages = region_bytes / page_bytes;
    return pages / SNAP_CHUNK_PAGES + (pages % SNAP_CHUNK_PAGES != 0);
}

uint64_t snap_chunk_pages(uint64_t region_bytes, uint64_t page_bytes, uint64_t index) {
    return low_bits(region_bytes / page_bytes - index * SNAP_CHUNK_PAGES);
}

/*
 * Blocks of eight words are or-ed together, which compilers turn into wide loads; memory that is not zero mostly
 * shows it in the first block, so the early exit costs nothing there.
 */
gboolean snap_bytes_are_zero(const void *data, size_t length_bytes) {
    const uint8_t *at = data;
    uint64_t block[8];
    for (; length_bytes >= sizeof block; at += sizeof block, length_bytes -= sizeof block) {
        memcpy(block, at, sizeof block);
        if ((block[0] | block[1] | block[2] | block[3] | block[4] | block[5] | block[6] | block[7]) != 0)
            return FALSE;
    }
    for (; length_bytes > 0; at++, length_bytes--) {
        if (*at != 0)
            return FALSE;
    }
    return TRUE;
}

uint64_t snap_chunk_find_zero(const uint8_t *data, uint64_t page_bytes, uint64_t present) {
    uint64_t zero = 0;
    for (uint64_t left = present; left != 0; left &= left - 1) {
        int page = __builtin_ctzll(left);
        if (snap_bytes_are_zero(data + (uint64_t)page * page_bytes, page_bytes))
            zero |= UINT64_C(1) << page;
    }
    return zero;
}

gboolean snap_chunk_take_run(uint64_t *mask, unsigned *ret_first, unsigned *ret_count) {
    if (*mask == 0)
        return FALSE;
    unsigned first = (unsigned)__builtin_ctzll(*mask);
    uint64_t rest = ~(*mask >> first);
    unsigned count = rest == 0 ? SNAP_CHUNK_PAGES : (unsigned)__builtin_ctzll(rest);
    *mask &= ~(low_bits(count) << first);
    *ret_first = first;
    *ret_count = count;
    return TRUE;
}

uint64_t snap_chunk_hash(const uint8_t *data, uint64_t page_bytes, uint64_t stored) {
    unsigned first = 0, count = 0;
    uint64_t mask = stored;
    gboolean any = snap_chunk_take_run(&mask, &first, &count);
    if (!any || mask == 0)
        return XXH3_64bits(data + first * page_bytes, count * page_bytes);
    g_autoptr(SnapHash) hash = snap_hash_new();
    do
        XXH3_64bits_update(hash, data + first * page_bytes, count * page_bytes);
    while (snap_chunk_take_run(&mask, &first, &count));
    return XXH3_64bits_digest(hash);
}

SnapChunkRecord snap_chunk_record_make(uint64_t index, uint64_t page_bytes, uint64_t present, uint64_t zero,
                                       uint64_t xxh3) {
    if (present == 0)
        return (SnapChunkRecord){0};
    return (SnapChunkRecord){
        .present = present,
        .zero = zero,
        .offset = index * SNAP_CHUNK_PAGES * page_bytes,
        .length_bytes = (uint32_t)((uint64_t)__builtin_popcountll(present & ~zero) * page_bytes),
        .codec = SNAP_CODEC_RAW,
        .xxh3 = xxh3,
    };
}

/*
 * One record of an .idx file, 40 bytes, little endian:
 *
 *     [8] present   bit i: page i of the chunk is in this image
 *     [8] zero      bit i: page i is all zeros and not stored; a part of present
 *     [8] offset    where the chunk is in the data file; raw: index * 64 * page size
 *     [4] length    bytes stored; raw: pages in (present and not zero) * page size
 *     [4] codec     0 raw
 *     [8] XXH3-64   of the stored pages' bytes, in page order (of no bytes where none is stored)
 *
 * A chunk of which no page is in the image has a record of 40 zero bytes.
 */
void snap_chunk_record_encode(const SnapChunkRecord *record, uint8_t ret_bytes[static SNAP_INDEX_RECORD_BYTES]) {
    uint8_t *at = put64(ret_bytes, record->present);
    at = put64(at, record->zero);
    at = put64(at, record->offset);
    at = put32(at, record->length_bytes);
    at = put32(at, record->codec);
    at = put64(at, record->xxh3);
    g_assert(at == ret_bytes + SNAP_INDEX_RECORD_BYTES);
}

void snap_chunk_record_decode(const uint8_t bytes[static SNAP_INDEX_RECORD_BYTES], SnapChunkRecord *ret_record) {
    ret_record->present = get64(bytes);
    ret_record->zero = get64(bytes + 8);
    ret_record->offset = get64(bytes + 16);
    ret_record->length_bytes = get32(bytes + 24);
    ret_record->codec = get32(bytes + 28);
    ret_record->xxh3 = get64(bytes + 32);
}

const char *snap_chunk_record_check(const SnapChunkRecord *record, const SnapIndexHeader *header, uint64_t index) {
    if (record->present == 0)
        return record->zero == 0 && record->offset == 0 && record->length_bytes == 0 && record->codec == 0 &&
                       record->xxh3 == 0
                   ? NULL
                   : "no page is present, but the record is not empty";
    if ((record->present & ~snap_chunk_pages(header->region_bytes, header->page_bytes, index)) != 0)
        return "pages beyond the end of the region are present";
    if ((record->zero & ~record->present) != 0)
        return "a page is recorded as zero but not as present";
    if (record->codec >= SNAP_CODEC_MAX)
        return "unknown codec";
    uint64_t stored = (uint64_t)__builtin_popcountll(record->present & ~record->zero) * header->page_bytes;
    if (record->length_bytes != stored)
        return "the stored length does not fit the masks";
    if (record->offset != index * SNAP_CHUNK_PAGES * header->page_bytes)
        return "the offset is not the chunk's own";
    return NULL;
}

/*
 * The head of an .idx file, 64 bytes, little endian; record i follows at 64 + 40 * i:
 *
 *     [8]  magic "snap-idx"
 *     [4]  version, 1
 *     [4]  bytes of a record, 40
 *     [8]  page size
 *     [8]  pages in a chunk, 64
 *     [8]  number of chunks = number of records
 *     [8]  length of the region in bytes
 *     [16] reserved, zero
 */
void snap_index_header_encode(const SnapIndexHeader *header, uint8_t ret_bytes[static SNAP_INDEX_HEADER_BYTES]) {
    memset(ret_bytes, 0, SNAP_INDEX_HEADER_BYTES);
    uint8_t *at = (uint8_t *)memcpy(ret_bytes, magic, sizeof magic) + sizeof magic;
    at = put32(at, SNAP_INDEX_VERSION);
    at = put32(at, SNAP_INDEX_RECORD_BYTES);
    at = put64(at, header->page_bytes);
    at = put64(at, SNAP_CHUNK_PAGES);
    at = put64(at, header->n_chunks);
    put64(at, header->region_bytes);
}

const char *snap_index_header_check(const uint8_t bytes[static SNAP_INDEX_HEADER_BYTES],
                                    const SnapIndexHeader *expected) {
    if (memcmp(bytes, magic, sizeof magic) != 0)
        return "it does not begin as an index does";
    if (get32(bytes + 8) != SNAP_INDEX_VERSION || get32(bytes + 12) != SNAP_INDEX_RECORD_BYTES)
        return "unknown version of the index";
    if (get64(bytes + 16) != expected->page_bytes || get64(bytes + 24) != SNAP_CHUNK_PAGES)
        return "page size or chunk size differ from the manifest's";
    if (get64(bytes + 32) != expected->n_chunks || get64(bytes + 40) != expected->region_bytes)
        return "number of chunks or length differ from the manifest's";
    if (!snap_bytes_are_zero(bytes + 48, 16))
        return "reserved bytes are not zero";
    return NULL;
}
