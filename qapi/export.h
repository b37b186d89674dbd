/* Command family image, export: an image in the form that another program reads. */
#pragma once

#include "json.h"
#include "libsnap.h"

typedef enum {
    QAPI_EXPORT_RAW,  /* the bytes of one region, or of a range of host addresses */
    QAPI_EXPORT_ELF,  /* a core dump */
    QAPI_EXPORT_QEMU, /* a migration stream */
    QAPI_EXPORT_MAX
} QapiExportFormat;

/* What of an image is exported raw. */
typedef enum {
    QAPI_RANGE_ONLY,    /* the only region there is */
    QAPI_RANGE_REGION,  /* one region by name */
    QAPI_RANGE_ADDRESS, /* a range of host addresses */
} QapiRangeKind;

typedef struct {
    QapiRangeKind kind;
    const char *region;    /* REGION: its name, or a pattern with * and ? that only it matches */
    uint64_t address;      /* ADDRESS */
    uint64_t length_bytes; /* ADDRESS */
} QapiRange;

typedef struct {
    const char *dir;
    const char *out; /* file name, or "-" for standard output */
    QapiExportFormat format;
    QapiRange range; /* RAW */
} QapiExportOptions;

/** qapi_export_format: the format called @name, or QAPI_EXPORT_MAX. */
QapiExportFormat qapi_export_format(const char *name);

/**
 * qapi_export: write an image out. The file is there when it is complete, and not before.
 * @progress: (nullable) called in this thread; returning FALSE cancels.
 * Errors: USAGE, a range is needed; NOT_FOUND, a region or address that the image does not have; REFUSED, a
 *   pattern that several regions match; CORRUPT; IO; NO_SPACE; CANCELLED; those of the format's own.
 * Return: (out) {file, format}
 */
json_object *qapi_export(const QapiExportOptions *options, SnapProgressFunc progress, void *opaque,
                         GError **error);
