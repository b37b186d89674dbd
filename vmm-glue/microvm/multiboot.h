/*
 * Loading a multiboot image (Multiboot Specification 0.6.96) into a guest's memory: one with load addresses in its
 * header. Pure, on buffers.
 *
 * What the loader leaves in low memory, and the guest is told of: the information structure, a memory map, the
 * command line.
 */
#pragma once

#include "libsnap.h"

#define MULTIBOOT_LOADED 0x2badb002u /* in EAX */

/* Where the processor begins: 32-bit protected mode, flat segments, no paging, no interrupts. */
typedef struct {
    uint32_t entry; /* EIP */
    uint32_t info;  /* EBX */
} MultibootEntry;

/**
 * multiboot_load: @image: @image_bytes of the file. @words: (nullable) the command line.
 * @ram: @ram_bytes of zeros from guest address 0 on.
 * Errors: REFUSED, it is no such image, or does not fit; USAGE, the command line is too long.
 */
gboolean multiboot_load(const uint8_t *image, size_t image_bytes, const char *words, uint8_t *ram,
                        uint64_t ram_bytes, MultibootEntry *ret_entry, GError **error);
