/*
 * RAM blocks as `info ramblock` prints them.
 *
 *       Block Name    PSize              Offset               Used              Total                HVA  RO
 *           pc.ram    4 KiB  0x000000000…       0x00000001…        0x000000010…       0x00007f5e4…  rw
 *
 * The last two columns are there since QEMU 8. A name may be longer than its column, or empty, so a line is taken
 * apart from its right end; what is left of the page size is the name.
 */
#include "ramblock.h"

#include <string.h>

void ramblock_free(RamBlock *block) {
    if (!block)
        return;
    g_free(block->name);
    g_free(block->backend);
    g_free(block);
}

/* Cut the last word off @line. NULL when there is none. */
static char *cut_last_word(char *line) {
    g_strchomp(line);
    char *end = line + strlen(line);
    char *word = end;
    while (word > line && !g_ascii_isspace(word[-1]))
        word--;
    if (word == end)
        return NULL;
    if (word > line)
        word[-1] = '\0'; /* the blank before it: `word` itself stays whole */
    return word;
}

static gboolean cut_hex(char *line, uint64_t *ret_value) {
    const char *word = cut_last_word(line);
    return word && g_str_has_prefix(word, "0x") &&
           g_ascii_string_to_unsigned(word + 2, 16, 0, UINT64_MAX, ret_value, NULL);
}

/* "4 KiB": two words. */
static gboolean cut_size(char *line, uint64_t *ret_bytes) {
    static const char *const units[] = {"B", "KiB", "MiB", "GiB"};
    const char *unit = cut_last_word(line);
    const char *count = unit ? cut_last_word(line) : NULL;
    uint64_t value;
    if (!count || !g_ascii_string_to_unsigned(count, 10, 1, 4096, &value, NULL))
        return FALSE;
    for (guint i = 0; i < G_N_ELEMENTS(units); i++) {
        if (g_str_equal(unit, units[i])) {
            *ret_bytes = value << (10 * i);
            return TRUE;
        }
    }
    return FALSE;
}

static RamBlock *parse_line(const char *text, gboolean has_address) {
    g_autofree char *line = g_strdup(text);
    g_autoptr(RamBlock) block = g_new0(RamBlock, 1);
    block->guest_address = SNAP_NO_ADDRESS;
    if (has_address && (!cut_last_word(line) || !cut_hex(line, &block->host_address)))
        return NULL;
    if (!cut_hex(line, &block->max_bytes) || !cut_hex(line, &block->used_bytes) ||
        !cut_hex(line, &block->offset) || !cut_size(line, &block->page_bytes))
        return NULL;
    block->name = g_strdup(g_strstrip(line));
    block->migratable = *block->name != '\0';
    return g_steal_pointer(&block);
}

GPtrArray *ramblock_parse(const char *text, GError **error) {
    g_autoptr(GPtrArray) blocks = g_ptr_array_new_with_free_func((GDestroyNotify)ramblock_free);
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    const char *head = lines[0] ? lines[0] : "";
    gboolean known = strstr(head, "Block Name") && strstr(head, "PSize") && strstr(head, "Total");
    gboolean has_address = strstr(head, "HVA") != NULL;
    for (guint i = 1; known && lines[i]; i++) {
        g_strchomp(lines[i]);
        if (!*lines[i])
            continue;
        RamBlock *block = parse_line(lines[i], has_address);
        if (block)
            g_ptr_array_add(blocks, block);
        known = block != NULL;
    }
    if (!known || blocks->len == 0) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_PROTOCOL, "QEMU's `info ramblock` reads differently here");
        return NULL;
    }
    return g_steal_pointer(&blocks);
}
