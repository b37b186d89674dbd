/*
 * microvm: a small virtual machine that can be saved, moved away and moved in; the program around
 * vmm-glue/microvm, and the example of a VMM that embeds libsnap-qmp.
 *
 * Happy path: options; a machine that stands; a QMP server in a thread of its own; the guest runs, or waits to be
 * moved here; then the main loop, until the command quit, SIGTERM, SIGINT, or the guest's own end. A guest that
 * was moved away leaves the program running: it is asked how that went until somebody says quit.
 *
 * Failure modes: no KVM, no memory, no kernel, a guest that does not come: one line on standard error, status 1.
 *
 * Threads other than the main one (the processor's, the server's) only put an End into the main loop; the first
 * one counts.
 */
#include "microvm/microvm.h"
#include "qapi/libsnap-qmp.h"
#include "units.h"

#include <errno.h>
#include <fcntl.h>
#include <glib-unix.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { STATUS_DONE = 0, STATUS_FAILED = 1, STATUS_USAGE = 2 };

#define DEFAULT_SIZE "128M"

typedef struct {
    char *qmp;
    char *kernel;
    char *words;
    char *size;
    char *memory;
    gboolean huge_pages;
    char *serial;
    char *incoming;
    char *snapshot_dir;
    char *name;
    gboolean version;
} Options;

typedef struct {
    GMainLoop *loop;
    Microvm *vm;
    gboolean ended;
    int status;
} Program;

static int complain(int status, const char *format, ...) G_GNUC_PRINTF(2, 3);
static int complain(int status, const char *format, ...) {
    va_list args;
    va_start(args, format);
    g_autofree char *text = g_strdup_vprintf(format, args);
    va_end(args);
    fprintf(stderr, "microvm: %s%s\n", text, status == STATUS_USAGE ? " (see microvm --help)" : "");
    return status;
}

static int complain_of(const GError *error) {
    return complain(g_error_matches(error, SNAP_ERROR, SNAP_ERROR_USAGE) ? STATUS_USAGE : STATUS_FAILED, "%s",
                    error->message);
}

/* ---- the end --------------------------------------------------------------------------------------------- */

typedef struct {
    Program *program;
    int status;
    char *why; /* (nullable) to be complained of */
} End;

static gboolean end_program(gpointer opaque) {
    const End *end = opaque;
    Program *program = end->program;
    if (program->ended)
        return G_SOURCE_REMOVE;
    program->ended = TRUE;
    program->status = end->why ? complain(STATUS_FAILED, "%s", end->why) : end->status;
    g_main_loop_quit(program->loop);
    return G_SOURCE_REMOVE;
}

static void free_end(gpointer opaque) {
    End *end = opaque;
    g_free(end->why);
    g_free(end);
}

/* In any thread. */
static void end_soon(Program *program, int status, const char *why) {
    End *end = g_new(End, 1);
    *end = (End){.program = program, .status = status, .why = g_strdup(why)};
    g_idle_add_full(G_PRIORITY_DEFAULT, end_program, end, free_end);
}

static void on_guest_end(int status, const char *why, void *opaque) {
    end_soon(opaque, status, why);
}

/* After the answer to the command. */
static void on_quit(void *opaque) {
    end_soon(opaque, STATUS_DONE, NULL);
}

static void on_incoming_failed(const char *why, void *opaque) {
    end_soon(opaque, STATUS_FAILED, why);
}

static gboolean on_signal(gpointer opaque) {
    end_soon(opaque, STATUS_DONE, NULL);
    return G_SOURCE_CONTINUE;
}

/* ---- what clients say ------------------------------------------------------------------------------------ */

static gboolean stop(void *opaque, GError **error) {
    const Program *program = opaque;
    return microvm_stop(program->vm, error);
}

static gboolean cont(void *opaque, GError **error) {
    const Program *program = opaque;
    return microvm_cont(program->vm, error);
}

static gboolean is_running(void *opaque) {
    const Program *program = opaque;
    return microvm_is_running(program->vm);
}

static const SnapQmpVm vm_verbs = {.stop = stop, .cont = cont, .is_running = is_running};

/* ---- options --------------------------------------------------------------------------------------------- */

static const char description[] =
    "The guest is a multiboot image with load addresses in its header; it has one processor, and COM1 to print\n"
    "to. What it writes to port 0xf4 is the exit status. A guest that is saved, and then moved:\n"
    "  microvm --kernel guest.bin --serial stdio --qmp unix:/tmp/a.sock &\n"
    "  vmsnap --connect /tmp/a.sock save --pid $! /var/tmp/snap\n"
    "  microvm --incoming unix:/tmp/move --serial stdio --qmp unix:/tmp/b.sock &\n"
    "then, to the first one's QMP socket: {\"execute\": \"migrate\", \"arguments\": {\"uri\": "
    "\"unix:/tmp/move\"}}\n\n"
    "Both machines are given the same --size; --memory may differ. SIZE accepts K, M and G.\n"
    "Exit status: what the guest said, 0 ended as asked, 1 failed, 2 wrong usage.";

static gboolean parse(int argc, char **argv, Options *options, int *ret_status) {
    const GOptionEntry entries[] = {
        {"qmp", 0, 0, G_OPTION_ARG_FILENAME, &options->qmp,
         "Speak QMP to clients at a socket that is made there: save, migrate, stop …", "unix:PATH"},
        {"kernel", 0, 0, G_OPTION_ARG_FILENAME, &options->kernel, "The multiboot image to run", "FILE"},
        {"append", 0, 0, G_OPTION_ARG_STRING, &options->words, "Its command line", "WORDS"},
        {"size", 'm', 0, G_OPTION_ARG_STRING, &options->size, "How much memory it has (" DEFAULT_SIZE ")", "SIZE"},
        {"memory", 0, 0, G_OPTION_ARG_STRING, &options->memory, "What memory: anon, memfd or hugetlb (anon)",
         "KIND"},
        {"thp", 0, 0, G_OPTION_ARG_NONE, &options->huge_pages, "Ask the kernel for transparent huge pages", NULL},
        {"serial", 0, 0, G_OPTION_ARG_FILENAME, &options->serial,
         "Where COM1 prints to: a file, stdio or none (none)", "FILE"},
        {"incoming", 0, 0, G_OPTION_ARG_STRING, &options->incoming,
         "Wait for a guest to be moved here, and run no kernel; defer: until migrate-incoming says where",
         "URI|defer"},
        {"snapshot-dir", 0, 0, G_OPTION_ARG_FILENAME, &options->snapshot_dir,
         "Where relative paths of clients begin (the current directory)", "DIR"},
        {"name", 0, 0, G_OPTION_ARG_STRING, &options->name, "What query-name answers", "NAME"},
        {"version", 0, 0, G_OPTION_ARG_NONE, &options->version, "Show the version", NULL},
        G_OPTION_ENTRY_NULL,
    };
    g_autoptr(GOptionContext) context = g_option_context_new(NULL);
    g_option_context_add_main_entries(context, entries, NULL);
    g_option_context_set_summary(context,
                                 "A small virtual machine (KVM) that can be saved and moved while it runs.");
    g_option_context_set_description(context, description);
    g_autoptr(GError) error = NULL;
    *ret_status = STATUS_DONE;
    if (!g_option_context_parse(context, &argc, &argv, &error))
        *ret_status = complain(STATUS_USAGE, "%s", error->message);
    else if (argc > 1)
        *ret_status = complain(STATUS_USAGE, "what is '%s' for?", argv[1]);
    else if (options->version)
        puts("microvm " VMSNAP_VERSION);
    else
        return TRUE;
    return FALSE;
}

/* Return: RAM_MAX when there is none such. */
static RamKind ram_kind(const char *name, gboolean huge_pages) {
    static const struct {
        const char *name;
        RamKind kind, huge;
    } kinds[] = {{"anon", RAM_ANON, RAM_ANON_HUGE},
                 {"memfd", RAM_MEMFD, RAM_MEMFD_HUGE},
                 {"hugetlb", RAM_HUGETLB, RAM_HUGETLB}};
    for (gsize i = 0; i < G_N_ELEMENTS(kinds); i++)
        if (g_str_equal(kinds[i].name, name))
            return huge_pages ? kinds[i].huge : kinds[i].kind;
    return RAM_MAX;
}

/* -1 in @ret_fd: nowhere. */
static gboolean open_serial(const char *where, int *ret_fd) {
    *ret_fd = -1;
    if (!where || g_str_equal(where, "none"))
        return TRUE;
    *ret_fd = g_str_equal(where, "stdio") ? fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 0)
                                          : open(where, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0666);
    return *ret_fd >= 0;
}

/* ---- running --------------------------------------------------------------------------------------------- */

static gboolean serve(SnapQmp *qmp, const Options *options, GError **error) {
    if (options->qmp && !snap_qmp_listen(qmp, options->qmp + strlen("unix:"), error))
        return FALSE;
    snap_qmp_start_thread(qmp);
    return TRUE;
}

/* From the first client to the end. */
static int run_machine(Program *program, const Options *options) {
    const SnapQmpOptions qmp_options = {.name = options->name,
                                        .snapshot_dir = options->snapshot_dir,
                                        .vm = &vm_verbs,
                                        .vm_opaque = program,
                                        .on_quit = on_quit,
                                        .quit_opaque = program,
                                        .incoming = options->incoming,
                                        .on_incoming_failed = on_incoming_failed};
    g_autoptr(GError) error = NULL;
    g_autoptr(SnapQmp) qmp = snap_qmp_new(microvm_guest(program->vm), &qmp_options, &error);
    if (!qmp || !serve(qmp, options, &error) || (!options->incoming && !microvm_cont(program->vm, &error)))
        return complain_of(error);
    guint sigterm = g_unix_signal_add(SIGTERM, on_signal, program);
    guint sigint = g_unix_signal_add(SIGINT, on_signal, program);
    g_main_loop_run(program->loop);
    g_source_remove(sigterm);
    g_source_remove(sigint);
    return program->status;
}

/* What came too late. */
static void drop_ends(void) {
    while (g_main_context_iteration(NULL, FALSE))
        continue;
}

static int run_with(const Options *options, RamKind memory, uint64_t ram_bytes, int serial_fd) {
    Program program = {.loop = g_main_loop_new(NULL, FALSE)};
    const MicrovmOptions vm_options = {.memory = memory,
                                       .ram_bytes = ram_bytes,
                                       .serial_fd = serial_fd,
                                       .begin = options->incoming ? MICROVM_INCOMING : MICROVM_BOOT,
                                       .kernel = options->kernel,
                                       .words = options->words,
                                       .on_end = on_guest_end,
                                       .opaque = &program};
    g_autoptr(GError) error = NULL;
    program.vm = microvm_new(&vm_options, &error);
    int status = program.vm ? run_machine(&program, options) : complain_of(error);
    microvm_free(program.vm);
    drop_ends();
    g_main_loop_unref(program.loop);
    return status;
}

static int run(const Options *options) {
    RamKind memory = ram_kind(options->memory ? options->memory : "anon", options->huge_pages);
    uint64_t ram_bytes = 0;
    int serial_fd = -1;
    if (!options->kernel && !options->incoming)
        return complain(STATUS_USAGE, "--kernel or --incoming: what is to run here?");
    if (options->qmp && (!g_str_has_prefix(options->qmp, "unix:") || !options->qmp[strlen("unix:")]))
        return complain(STATUS_USAGE, "--qmp %s: unix:PATH", options->qmp);
    if (memory == RAM_MAX)
        return complain(STATUS_USAGE, "--memory %s: anon, memfd or hugetlb", options->memory);
    if (!units_parse_size(options->size ? options->size : DEFAULT_SIZE, &ram_bytes))
        return complain(STATUS_USAGE, "--size %s: it is no size", options->size);
    if (options->snapshot_dir && !g_file_test(options->snapshot_dir, G_FILE_TEST_IS_DIR))
        return complain(STATUS_FAILED, "--snapshot-dir %s: no such directory", options->snapshot_dir);
    if (!open_serial(options->serial, &serial_fd))
        return complain(STATUS_FAILED, "--serial %s: %s", options->serial, g_strerror(errno));
    int status = run_with(options, memory, ram_bytes, serial_fd);
    if (serial_fd >= 0)
        close(serial_fd);
    return status;
}

static void clear_options(Options *options) {
    char *texts[] = {options->qmp,    options->kernel,   options->words,        options->size, options->memory,
                     options->serial, options->incoming, options->snapshot_dir, options->name};
    for (gsize i = 0; i < G_N_ELEMENTS(texts); i++)
        g_free(texts[i]);
}

int main(int argc, char **argv) {
    /* A reader that goes away and a file that may not grow are errors like others. */
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
    g_set_prgname("microvm");
    Options options = {0};
    int status = STATUS_DONE;
    if (parse(argc, argv, &options, &status))
        status = run(&options);
    clear_options(&options);
    return status;
}
