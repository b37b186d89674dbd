/* Sizes, times and numbers as people write and read them. */
#pragma once

#include <glib.h>
#include <stdint.h>

/**
 * units_parse_size: "65536", "64K", "1G", "0x10000"; suffixes K M G T are binary, in either case; nothing else
 *   may stand before or after.
 * Return: FALSE when it is not a size or does not fit; @ret_bytes is untouched then.
 */
gboolean units_parse_size(const char *text, uint64_t *ret_bytes);

/** units_parse_number: decimal or 0x…, no suffix; otherwise as above. */
gboolean units_parse_number(const char *text, uint64_t *ret_number);

/** units_parse_duration: "5s", "500ms", "2m", "1h"; a number alone is seconds; not 0. As above. */
gboolean units_parse_duration(const char *text, uint64_t *ret_us);

/* "1.5 GiB", "812 µs": at most four digits and a unit. Free with g_free(). */
char *units_format_size(uint64_t bytes);
char *units_format_us(double us);

/* A name that a guest may have chosen, without what a terminal would obey. Free with g_free(). */
char *units_format_text(const char *text);
