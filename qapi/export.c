/* Command family image, export: see export.h. */
#include "export.h"

#include "export-raw.h"
#include "output.h"
#include "process/process.h"
#include "qemu/qemu.h"

static const char *const formats[] = {
    [QAPI_EXPORT_RAW] = "raw",
    [QAPI_EXPORT_ELF] = "elf",
    [QAPI_EXPORT_QEMU] = "qemu",
};
G_STATIC_ASSERT(G_N_ELEMENTS(formats) == QAPI_EXPORT_MAX);

QapiExportFormat qapi_export_format(const char *name) {
    QapiExportFormat format = QAPI_EXPORT_RAW;
    while (format < QAPI_EXPORT_MAX && !g_str_equal(formats[format], name))
        format++;
    return format;
}

static gboolean write_format(const SnapImage *image, const QapiExportOptions *options, QapiOutput *output,
                             SnapProgressFunc progress, void *opaque, GError **error) {
    switch (options->format) {
    case QAPI_EXPORT_RAW:
        return qapi_export_raw(image, &options->range, output, progress, opaque, error);
    case QAPI_EXPORT_ELF:
        return process_export_core(image, output->path ? output->path : output->name, progress, opaque, error);
    case QAPI_EXPORT_QEMU:
        return qemu_export_stream(image, output->fd, NULL, progress, opaque, error);
    case QAPI_EXPORT_MAX:
        break;
    }
    g_assert_not_reached();
}

json_object *qapi_export(const QapiExportOptions *options, SnapProgressFunc progress, void *opaque,
                         GError **error) {
    g_autoptr(SnapImage) image = snap_image_open(options->dir, error);
    if (!image)
        return NULL;
    g_autoptr(QapiOutput) output = qapi_output_open(options->out, error);
    if (!output || !write_format(image, options, output, progress, opaque, error) ||
        !qapi_output_commit(output, error))
        return NULL;
    json_object *result = json_object_new_object();
    qapi_json_add_string(result, "file", options->out);
    qapi_json_add_string(result, "format", formats[options->format]);
    return result;
}
