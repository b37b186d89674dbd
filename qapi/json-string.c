/*
 * JSON strings: see json-string.h.
 *
 * Both directions copy runs of plain characters as they are, and look closely at the rest: escapes, and bytes from
 * 0x80 on.
 *
 * Failure modes: none of memory; what is no string is said in QEMU's words. What is a character is as in QEMU:
 * neither surrogates nor the noncharacters of Unicode are, and no encoding that is longer than it need be but
 * C0 80. A broken sequence is as long as the continuation bytes behind its first byte, as far as that byte asks
 * for them.
 */
#include "json-string.h"

#include <string.h>

#define FOREIGN (-1) /* in place of a character: what is none */
#define SURROGATES_BEGIN 0xD800
#define SURROGATES_LOW 0xDC00
#define SURROGATES_END 0xE000

static gboolean is_character(gint32 c) {
    if (c < 0 || c > 0x10FFFF)
        return FALSE;
    if (c >= SURROGATES_BEGIN && c < SURROGATES_END)
        return FALSE;
    return (c & 0xFFFE) != 0xFFFE && !(c >= 0xFDD0 && c <= 0xFDEF);
}

/* ---- UTF-8 ----------------------------------------------------------------------------------------------- */

/* The character at @at, which is before @end, or FOREIGN; @at moves behind it. */
static gint32 next_character(const char **at, const char *end) {
    static const gint32 least[] = {0, 0x80, 0x800, 0x10000, 0x200000, 0x4000000}; /* by continuation bytes */
    guint8 first = (guint8)(*at)[0];
    (*at)++;
    if (first < 0x80)
        return first;
    if (first < 0xC0 || first >= 0xFE)
        return FOREIGN;
    guint more = (guint)__builtin_clz((guint32)(guint8)~first << 24) - 1;
    gint32 c = first & (0x3F >> more);
    for (guint i = 0; i < more; i++, (*at)++) {
        if (*at == end || (**at & 0xC0) != 0x80)
            return FOREIGN;
        c = c << 6 | (**at & 0x3F);
    }
    gboolean too_long = c < least[more] && !(c == 0 && more == 1);
    return is_character(c) && !too_long ? c : FOREIGN;
}

static void append_utf8(GString *out, gint32 c) {
    if (c == 0)
        g_string_append_len(out, "\xC0\x80", 2);
    else
        g_string_append_unichar(out, (gunichar)c);
}

static void append_u(GString *out, gint32 c) {
    static const char hex[] = "0123456789ABCDEF";
    const char text[] = {'\\', 'u', hex[c >> 12 & 15], hex[c >> 8 & 15], hex[c >> 4 & 15], hex[c & 15]};
    g_string_append_len(out, text, sizeof(text));
}

/* ---- reading --------------------------------------------------------------------------------------------- */

static gboolean is_plain(char c) {
    guint8 byte = (guint8)c;
    return byte >= 0x20 && byte < 0x80 && byte != '"' && byte != '\\';
}

/* @c: a character. */
static void append_for_json_c(GString *out, gint32 c) {
    if (c >= 0x80 || c == 0) {
        append_utf8(out, c);
    } else if (c < 0x20) {
        append_u(out, c);
    } else {
        if (!is_plain((char)c))
            g_string_append_c(out, '\\');
        g_string_append_c(out, (char)c);
    }
}

/* Four hexadecimal digits, or FOREIGN. What follows the digits of a token is its closing mark at the latest. */
static gint32 read_hex(const char *digits) {
    gint32 c = 0;
    for (int i = 0; i < 4; i++) {
        if (!g_ascii_isxdigit(digits[i]))
            return FOREIGN;
        c = c << 4 | g_ascii_xdigit_value(digits[i]);
    }
    return c;
}

/* From the backslash at @at on. The complaint shows what stands in place of digits, be it the closing mark. */
static char *read_hex_escape(const char **at, GString *out) {
    const char *begin = *at;
    int length = 6;
    gint32 c = read_hex(begin + 2);
    gboolean first_of_pair = c >= SURROGATES_BEGIN && c < SURROGATES_LOW;
    if (first_of_pair && begin[6] == '\\' && begin[7] == 'u') {
        gint32 low = read_hex(begin + 8);
        if (low >= SURROGATES_LOW && low < SURROGATES_END) {
            c = 0x10000 + ((c - SURROGATES_BEGIN) << 10) + (low - SURROGATES_LOW);
            length = 12;
        }
    }
    if (!is_character(c))
        return g_strdup_printf("%.*s is not a valid Unicode character", length, begin);
    append_for_json_c(out, c);
    *at += length;
    return NULL;
}

static char *read_escape(const char **at, GString *out) {
    static const char letters[] = "\"'\\/bfnrt";
    static const char meant[] = "\"'\\/\b\f\n\r\t";
    char letter = (*at)[1];
    if (letter == 'u')
        return read_hex_escape(at, out);
    const char *found = strchr(letters, letter); /* no zero byte comes this far */
    if (!found)
        return g_strdup("invalid escape sequence in string");
    append_for_json_c(out, meant[found - letters]);
    *at += 2;
    return NULL;
}

static char *read_character(const char **at, const char *end, GString *out) {
    gint32 c = next_character(at, end);
    if (c == FOREIGN)
        return g_strdup("invalid UTF-8 sequence in string");
    append_for_json_c(out, c);
    return NULL;
}

char *qapi_string_read(const char *token, gsize length_bytes, GString *out) {
    const char *at = token + 1;
    const char *mark = token + length_bytes - 1;
    g_string_append_c(out, '"');
    while (at < mark) {
        const char *plain = at;
        while (at < mark && is_plain(*at))
            at++;
        g_string_append_len(out, plain, at - plain);
        if (at == mark)
            break;
        char *wrong = *at == '\\' ? read_escape(&at, out) : read_character(&at, mark, out);
        if (wrong)
            return wrong;
    }
    g_string_append_c(out, '"');
    return NULL;
}

/* ---- writing --------------------------------------------------------------------------------------------- */

static void write_character(GString *out, gint32 c) {
    static const char meant[] = "\"\\\b\f\n\r\t";
    static const char letters[] = "\"\\bfnrt";
    const char *found = c > 0 && c < 0x80 ? strchr(meant, c) : NULL;
    if (found) {
        g_string_append_c(out, '\\');
        g_string_append_c(out, letters[found - meant]);
    } else if (c > 0xFFFF) {
        append_u(out, SURROGATES_BEGIN + ((c - 0x10000) >> 10));
        append_u(out, SURROGATES_LOW + (c & 0x3FF));
    } else {
        append_u(out, c == FOREIGN ? 0xFFFD : c);
    }
}

void qapi_string_write(const char *text, gsize length_bytes, GString *out) {
    const char *at = text;
    const char *end = text + length_bytes;
    g_string_append_c(out, '"');
    while (at < end) {
        const char *plain = at;
        while (at < end && is_plain(*at) && *at != 0x7F)
            at++;
        g_string_append_len(out, plain, at - plain);
        if (at < end)
            write_character(out, next_character(&at, end));
    }
    g_string_append_c(out, '"');
}
