/*
 * What the multiboot guest is told: its command line (NAME=VALUE words; unknown ones are passed over) and the
 * memory map.
 */
#include "kernel.h"

/* The parts of the multiboot information that are used. */
typedef struct {
    uint32_t flags;
    uint32_t lower_kib;
    uint32_t upper_kib;
    uint32_t boot_device;
    uint32_t command_line;
    uint32_t modules[2];
    uint32_t symbols[4];
    uint32_t map_length;
    uint32_t map_address;
} Info;

#define INFO_COMMAND_LINE (1u << 2)
#define INFO_MAP (1u << 6)

typedef struct {
    uint32_t size; /* of what follows */
    uint64_t address;
    uint64_t length;
    uint32_t type;
} __attribute__((packed)) MapEntry;

#define MAP_USABLE 1u

/* ---- the command line ------------------------------------------------------------------------------------- */

/* If @text starts with @name: what follows it; otherwise NULL. */
static const char *after(const char *text, const char *name) {
    while (*name)
        if (*text++ != *name++)
            return NULL;
    return text;
}

/* A decimal number with an optional K, M or G. @ret_percent: (nullable) whether '%' follows. */
static uint32_t number(const char *text, bool *ret_percent) {
    uint32_t value = 0;

    while (*text >= '0' && *text <= '9')
        value = value * 10 + (uint32_t)(*text++ - '0');
    if (*text == 'K')
        value <<= 10;
    if (*text == 'M')
        value <<= 20;
    if (*text == 'G')
        value <<= 30;
    if (ret_percent)
        *ret_percent = *text == '%';
    return value;
}

static void parse_word(Config *config, const char *word) {
    const char *value;

    if ((value = after(word, "size=")))
        config->size_bytes = number(value, NULL);
    if ((value = after(word, "page=")))
        config->page_bytes = number(value, NULL);
    if ((value = after(word, "populate=")))
        config->populate = number(value, &config->populate_percent);
    if ((value = after(word, "hot=")))
        config->hot = number(value, &config->hot_percent);
    if ((value = after(word, "batch=")))
        config->batch = number(value, NULL);
    if ((value = after(word, "rate=")))
        config->rate = number(value, NULL);
    if ((value = after(word, "cpus=")))
        config->cpus = number(value, NULL);
    if ((value = after(word, "writes=")))
        config->writes = number(value, NULL);
    if (after(word, "spread=linear"))
        config->linear = true;
}

void config_parse(Config *config, const void *multiboot_info) {
    const Info *info = multiboot_info;
    const char *text = info->flags & INFO_COMMAND_LINE ? (const char *)(uintptr_t)info->command_line : "";

    *config = (Config){.page_bytes = X86_PAGE_BYTES,
                       .populate = 100,
                       .populate_percent = true,
                       .hot = 100,
                       .hot_percent = true,
                       .batch = 64,
                       .cpus = CPUS_MAX};
    while (*text) {
        parse_word(config, text);
        while (*text && *text != ' ')
            text++;
        while (*text == ' ')
            text++;
    }
}

/* ---- the memory map --------------------------------------------------------------------------------------- */

uint32_t config_memory_end(const void *multiboot_info) {
    const Info *info = multiboot_info;
    uint32_t entry_address = info->map_address, end = info->map_address + info->map_length;

    if (!(info->flags & INFO_MAP))
        return 0;
    while (entry_address < end) {
        const MapEntry *entry = (const MapEntry *)(uintptr_t)entry_address;
        uint64_t entry_end = entry->address + entry->length;
        if (entry->type == MAP_USABLE && entry->address <= ARENA_ADDRESS && entry_end > ARENA_ADDRESS)
            return entry_end < ARENA_END_MAX ? (uint32_t)entry_end : ARENA_END_MAX;
        entry_address += entry->size + (uint32_t)sizeof(entry->size);
    }
    return 0;
}
