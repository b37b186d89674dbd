/* vmsnap export: an image in the form that another program reads. */
#include "command.h"
#include "interrupt.h"
#include "progress.h"
#include "qapi/export.h"
#include "units.h"

#include <stdio.h>

typedef struct {
    char *format;
    char *out;
    char *region;
    char *address;
    char *length;
} Options;

static void options_clear(Options *options) {
    g_free(options->format);
    g_free(options->out);
    g_free(options->region);
    g_free(options->address);
    g_free(options->length);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Options, options_clear)

static gboolean parse_format(const Invocation *invocation, const Options *options, QapiExportFormat *ret_format,
                             int *ret_status) {
    if (!options->format) {
        *ret_status = invocation_usage(invocation, "--format raw, elf or qemu is missing");
        return FALSE;
    }
    if (g_str_equal(options->format, "libvirt")) {
        *ret_status = invocation_usage(invocation, "--format libvirt: not built yet; qemu is");
        return FALSE;
    }
    QapiExportFormat format = qapi_export_format(options->format);
    if (format == QAPI_EXPORT_MAX) {
        *ret_status = invocation_usage(invocation, "--format %s: raw, elf or qemu", options->format);
        return FALSE;
    }
    *ret_format = format;
    return TRUE;
}

static gboolean parse_range(const Invocation *invocation, const Options *options, QapiRange *ret_range,
                            int *ret_status) {
    gboolean by_address = options->address || options->length;
    if (options->region && by_address) {
        *ret_status = invocation_usage(invocation, "--region or --address with --length, not both");
        return FALSE;
    }
    if (!options->address != !options->length) {
        *ret_status = invocation_usage(invocation, "--address and --length go together");
        return FALSE;
    }
    if (options->region) {
        *ret_range = (QapiRange){.kind = QAPI_RANGE_REGION, .region = options->region};
        return TRUE;
    }
    QapiRange range = {.kind = by_address ? QAPI_RANGE_ADDRESS : QAPI_RANGE_ONLY};
    if (options->address && !units_parse_number(options->address, &range.address)) {
        *ret_status = invocation_usage(invocation, "--address %s: not a number; 0x7f0000000000 or decimal",
                                       options->address);
        return FALSE;
    }
    if (options->length && !units_parse_size(options->length, &range.length_bytes)) {
        *ret_status =
            invocation_usage(invocation, "--length %s: not a size; 65536, 0x10000 or 64K", options->length);
        return FALSE;
    }
    *ret_range = range;
    return TRUE;
}

static gboolean parse(Invocation *invocation, Options *options, QapiExportOptions *ret_export, int *ret_status) {
    const GOptionEntry entries[] = {
        {"format", 0, 0, G_OPTION_ARG_FILENAME, &options->format, "raw, elf or qemu", "FORMAT"},
        {"output", 'o', 0, G_OPTION_ARG_FILENAME, &options->out, "Where to write it; - is standard output",
         "FILE"},
        {"region", 0, 0, G_OPTION_ARG_FILENAME, &options->region,
         "raw: this region, or the only one that a pattern with * and ? matches", "NAME"},
        {"address", 0, 0, G_OPTION_ARG_FILENAME, &options->address, "raw: from this host address", "HVA"},
        {"length", 0, 0, G_OPTION_ARG_FILENAME, &options->length, "raw: this many bytes", "N"},
        G_OPTION_ENTRY_NULL,
    };
    if (!invocation_parse(invocation, entries, 1, 1, ret_status))
        return FALSE;
    QapiExportOptions export = {.dir = invocation->argv[0], .out = options->out};
    if (!parse_format(invocation, options, &export.format, ret_status) ||
        !parse_range(invocation, options, &export.range, ret_status))
        return FALSE;
    if (export.format != QAPI_EXPORT_RAW && export.range.kind != QAPI_RANGE_ONLY) {
        *ret_status = invocation_usage(invocation, "--region, --address and --length are for --format raw");
        return FALSE;
    }
    if (!options->out) {
        *ret_status = invocation_usage(invocation, "-o FILE is missing; -o - is standard output");
        return FALSE;
    }
    *ret_export = export;
    return TRUE;
}

static void print_exported(json_object *result) {
    printf("%s: written\n", result_string(result, "file"));
}

/* Standard output is the export then, and nothing else: no job of a helper has it. */
static int export_to_stdout(const Invocation *invocation, const QapiExportOptions *export) {
    if (invocation->connect)
        return invocation_usage(invocation,
                                "-o -: a helper cannot write to it; name a file, or leave --connect out");
    interrupt_catch();
    Progress progress;
    progress_init(&progress, "exporting");
    g_autoptr(GError) error = NULL;
    g_autoptr(json_object) result = qapi_export(export, progress_of_bytes, &progress, &error);
    progress_clear(&progress);
    return result ? STATUS_DONE : invocation_fail(invocation, error);
}

static json_object *job_arguments(const Client *client, const Options *options, const QapiExportOptions *export) {
    json_object *arguments = json_object_new_object();
    client_add_path(client, arguments, "path", export->dir);
    client_add_path(client, arguments, "out", export->out);
    qapi_json_add_string(arguments, "format", options->format);
    if (export->range.kind == QAPI_RANGE_REGION)
        qapi_json_add_string(arguments, "region", export->range.region);
    if (export->range.kind == QAPI_RANGE_ADDRESS) {
        qapi_json_add_uint(arguments, "address", export->range.address);
        qapi_json_add_uint(arguments, "length", export->range.length_bytes);
    }
    return arguments;
}

static int run(Invocation *invocation) {
    int status = STATUS_DONE;
    g_auto(Options) options = {0};
    QapiExportOptions export;
    if (!parse(invocation, &options, &export, &status))
        return status;
    if (g_str_equal(export.out, "-"))
        return export_to_stdout(invocation, &export);
    g_autoptr(Client) client = invocation_connect(invocation, &status);
    if (!client)
        return status;
    return invocation_run_job(invocation, client, "exporting", "snapshot-export",
                              job_arguments(client, &options, &export), print_exported);
}

const Command command_export = {
    .name = "export",
    .operands = "DIR",
    .summary = "Write an image in the form that another program reads.",
    .description = "Formats:\n"
                   "  raw   the bytes of one region or of a range of host addresses; zero pages are holes\n"
                   "  elf   a core dump of a process, for gdb\n"
                   "  qemu  a migration stream: qemu-system-x86_64 … -incoming 'exec:cat FILE' loads it\n"
                   "The file appears when it is complete, and not before.\n\n"
                   "Examples:\n"
                   "  vmsnap export snap --format elf -o core && gdb PROGRAM core\n"
                   "  vmsnap export snap --format raw --region pc.ram -o ram.img\n"
                   "  vmsnap export snap --format raw --address 0x7f0000000000 --length 64K -o - | xxd | less",
    .run = run,
};
