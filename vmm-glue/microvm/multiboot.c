/*
 * See multiboot.h. Where things are put:
 *
 *     INFO_ADDRESS    the information structure: command line and memory map are valid
 *     MAP_ADDRESS     two usable ranges: below 640 KiB, and from 1 MiB to the end
 *     WORDS_ADDRESS   the command line
 *
 * A guest that wants low memory for something else has read them before.
 */
#include "multiboot.h"

#include <string.h>

#define HEADER_MAGIC 0x1badb002u
#define HEADER_WITHIN 8192u /* it begins in so many bytes, at a multiple of four */
#define HAS_ADDRESSES 0x10000u
#define CANNOT 0xfffcu /* requirements: of these only the memory map and aligned modules are known */
#define INFO_WORDS (1u << 2)
#define INFO_MAP (1u << 6)
#define USABLE 1u

#define INFO_ADDRESS 0x1000u
#define MAP_ADDRESS 0x1100u
#define WORDS_ADDRESS 0x2000u
#define WORDS_BYTES 0x1000u
#define LOW_END 0xa0000u
#define HIGH_START 0x100000u

typedef struct {
    uint32_t magic, flags, checksum;
    uint32_t header_address, load_address, load_end, bss_end, entry;
} Header;

typedef struct {
    uint32_t flags, lower_kib, upper_kib, boot_device, words, modules[2], symbols[4], map_bytes, map;
} Info;

typedef struct {
    uint32_t size; /* of what follows */
    uint64_t address, length;
    uint32_t type;
} __attribute__((packed)) Range;

static gboolean refuse(GError **error, const char *why) {
    g_set_error_literal(error, SNAP_ERROR, SNAP_ERROR_REFUSED, why);
    return FALSE;
}

/* Return: where it is in the image; -1 when there is none. */
static gssize find_header(const uint8_t *image, size_t image_bytes, Header *ret_header) {
    for (size_t at = 0; at + sizeof(*ret_header) <= image_bytes && at < HEADER_WITHIN; at += sizeof(uint32_t)) {
        memcpy(ret_header, image + at, sizeof(*ret_header));
        if (ret_header->magic == HEADER_MAGIC && ret_header->flags + ret_header->checksum == -HEADER_MAGIC)
            return (gssize)at;
    }
    return -1;
}

/* All from the load address up to where its zeros end is in memory, and above what the loader needs. */
static gboolean load(const uint8_t *image, size_t image_bytes, size_t header_at, const Header *header,
                     uint8_t *ram, uint64_t ram_bytes, GError **error) {
    if (header->load_address > header->header_address || header->header_address - header->load_address > header_at)
        return refuse(error, "its multiboot header lies about where it is loaded");
    size_t from = header_at - (header->header_address - header->load_address);
    uint64_t end = header->load_end ? header->load_end : header->load_address + (uint64_t)(image_bytes - from);
    uint64_t zeros_end = MAX(header->bss_end, end);
    if (end < header->load_address || end - header->load_address > image_bytes - from)
        return refuse(error, "it is shorter than its multiboot header says");
    if (header->load_address < WORDS_ADDRESS + WORDS_BYTES || zeros_end > ram_bytes)
        return refuse(error, "it does not fit into the guest's memory");
    memcpy(ram + header->load_address, image + from, (size_t)(end - header->load_address));
    return TRUE;
}

static void tell_guest(const char *words, uint8_t *ram, uint64_t ram_bytes) {
    const Range map[] = {{sizeof(Range) - sizeof(uint32_t), 0, LOW_END, USABLE},
                         {sizeof(Range) - sizeof(uint32_t), HIGH_START, ram_bytes - HIGH_START, USABLE}};
    const Info info = {
        .flags = INFO_WORDS | INFO_MAP, .words = WORDS_ADDRESS, .map_bytes = sizeof(map), .map = MAP_ADDRESS};
    memcpy(ram + INFO_ADDRESS, &info, sizeof(info));
    memcpy(ram + MAP_ADDRESS, map, sizeof(map));
    memcpy(ram + WORDS_ADDRESS, words, strlen(words) + 1);
}

gboolean multiboot_load(const uint8_t *image, size_t image_bytes, const char *words, uint8_t *ram,
                        uint64_t ram_bytes, MultibootEntry *ret_entry, GError **error) {
    Header header;
    gssize at = find_header(image, image_bytes, &header);
    words = words ? words : "";
    if (at < 0)
        return refuse(error, "it is no multiboot image");
    if (!(header.flags & HAS_ADDRESSES))
        return refuse(error, "its multiboot header has no load addresses (an ELF file? make it a flat image)");
    if (header.flags & CANNOT)
        return refuse(error, "it requires something of its loader that is not here");
    if (ram_bytes <= HIGH_START)
        return refuse(error, "there is too little memory for it");
    if (strlen(words) >= WORDS_BYTES) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_USAGE, "the command line has more than %u bytes",
                    WORDS_BYTES - 1);
        return FALSE;
    }
    if (!load(image, image_bytes, (size_t)at, &header, ram, ram_bytes, error))
        return FALSE;
    tell_guest(words, ram, ram_bytes);
    *ret_entry = (MultibootEntry){.entry = header.entry, .info = INFO_ADDRESS};
    return TRUE;
}
