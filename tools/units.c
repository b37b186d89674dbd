/* Sizes, times and numbers: see units.h. */
#include "units.h"

#include <errno.h>
#include <string.h>

/* The number at the start of @text, which must be a digit: no sign, no space. @ret_end: what follows. */
static gboolean parse_digits(const char *text, uint64_t *ret_number, const char **ret_end) {
    gboolean hex = g_str_has_prefix(text, "0x") || g_str_has_prefix(text, "0X");
    const char *digits = hex ? text + 2 : text;
    if (!(hex ? g_ascii_isxdigit(*digits) : g_ascii_isdigit(*digits)))
        return FALSE;
    char *end = NULL;
    errno = 0;
    *ret_number = g_ascii_strtoull(digits, &end, hex ? 16 : 10);
    *ret_end = end;
    return errno == 0;
}

gboolean units_parse_number(const char *text, uint64_t *ret_number) {
    uint64_t number = 0;
    const char *end = NULL;
    if (!parse_digits(text, &number, &end) || *end)
        return FALSE;
    *ret_number = number;
    return TRUE;
}

gboolean units_parse_size(const char *text, uint64_t *ret_bytes) {
    static const char suffixes[] = "KMGT";
    uint64_t number = 0;
    const char *end = NULL;
    if (!parse_digits(text, &number, &end))
        return FALSE;
    unsigned shift = 0;
    if (*end) {
        const char *suffix = strchr(suffixes, g_ascii_toupper(*end));
        if (!suffix || end[1])
            return FALSE;
        shift = 10 * (unsigned)(suffix - suffixes + 1);
    }
    if (number > UINT64_MAX >> shift)
        return FALSE;
    *ret_bytes = number << shift;
    return TRUE;
}

gboolean units_parse_duration(const char *text, uint64_t *ret_us) {
    static const struct {
        const char *name;
        uint64_t us;
    } units[] = {{"", 1000000}, {"s", 1000000}, {"ms", 1000}, {"m", 60000000}, {"h", 3600000000}};
    uint64_t number = 0;
    const char *end = NULL;
    if (!parse_digits(text, &number, &end) || number == 0)
        return FALSE;
    for (guint i = 0; i < G_N_ELEMENTS(units); i++) {
        if (g_str_equal(end, units[i].name) && number <= G_MAXINT64 / units[i].us) {
            *ret_us = number * units[i].us;
            return TRUE;
        }
    }
    return FALSE;
}

/* Three significant digits, without a decimal point from 100 on. */
static char *format_scaled(double value, const char *unit) {
    int decimals = value < 10 ? 2 : value < 100 ? 1 : 0;
    return g_strdup_printf("%.*f %s", decimals, value, unit);
}

char *units_format_size(uint64_t bytes) {
    static const char *const units[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    if (bytes < 1024)
        return g_strdup_printf("%" G_GUINT64_FORMAT " bytes", bytes);
    double value = (double)bytes / 1024;
    guint i = 0;
    for (; value >= 1024 && i + 1 < G_N_ELEMENTS(units); i++)
        value /= 1024;
    return format_scaled(value, units[i]);
}

char *units_format_us(double us) {
    if (us <= 0)
        return g_strdup("0 µs");
    if (us < 1e3)
        return format_scaled(us, "µs");
    return us < 1e6 ? format_scaled(us / 1e3, "ms") : format_scaled(us / 1e6, "s");
}

char *units_format_text(const char *text) {
    char *safe = g_strdup(text);
    for (char *c = safe; *c; c++)
        if (g_ascii_iscntrl(*c))
            *c = '?';
    return safe;
}
