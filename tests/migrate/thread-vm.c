/*
 * thread-vm: a VMM whose guest is threads of its own, with a QMP server in it; it can be moved.
 *
 *     thread-vm --qmp unix:PATH [--incoming URI|defer] [--size 64M] [--memory anon|thp|memfd|hugetlb…] [--rate N]
 *               [--populate F] [--hot F] [--prefill] [--threads 1..4] [--batch 64] [--regions 1] [--align N]
 *               [--silence MS] [--serial FILE] [--journal FILE] [--verify] [--peek PAGES] [--ready MS]
 *               [--snapshot-dir DIR] [--name N]
 *
 * Happy path: map, run (unless the guest is to come), serve until quit or SIGTERM. --serial gets the lines of
 * guest.bin (../guest/README.md), --journal when it ran (journal.h). Sizes and fractions are those of memguest.
 *
 *     --regions, --align   list the memory as so many, which meet at multiples of --align (its granule)
 *     --verify             check all memory of a guest that has arrived before it runs
 *     --peek               look at so many pages as the state is loaded
 *     --ready              take so long to get ready for a pause
 *     --silence            after which a migration's connection is lost
 *
 * Failure modes: exit 1 when the guest has found a wrong word, or the one to come cannot come any more; 2 usage or
 * no memory; 77 when the machine has not got the huge pages.
 */
#include "thread-guest.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#define EXIT_USAGE 2
#define EXIT_MISSING 77
#define NS_PER_SECOND UINT64_C(1000000000)

typedef struct {
    char *qmp, *incoming, *size, *memory, *align, *populate, *hot, *serial, *journal, *snapshot_dir, *name;
    double rate;
    int threads, batch, regions, peek, ready, silence;
    gboolean prefill, verify;
} Options;

typedef struct {
    ThreadGuest guest;
    int quit_fd;
    bool failed; /* atomic, relaxed: the guest did not come */
} Vm;

static void options_clear(Options *options) {
    char *texts[] = {options->qmp,     options->incoming,     options->size, options->memory,
                     options->align,   options->populate,     options->hot,  options->serial,
                     options->journal, options->snapshot_dir, options->name};
    for (size_t i = 0; i < G_N_ELEMENTS(texts); i++)
        g_free(texts[i]);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Options, options_clear)

/* ---- the command line ------------------------------------------------------------------------------------ */

static _Noreturn void usage(const char *what) {
    fprintf(stderr, "thread-vm: %s\n", what);
    exit(EXIT_USAGE);
}

static uint64_t parse_size(const char *text) {
    static const char suffixes[] = "KMG";
    char *end;
    uint64_t value = strtoull(text, &end, 0);
    const char *suffix = *end ? strchr(suffixes, *end) : NULL;

    if (end == text || (*end && (!suffix || end[1])))
        usage("--size is not a size");
    return suffix ? value << (10 * (suffix - suffixes + 1)) : value;
}

/* A fraction, per cent, or above 1 a number of pages. */
static uint32_t parse_pages(const char *text, uint32_t pages) {
    char *end;
    double value = strtod(text, &end);

    if (*end == '%' && !end[1])
        value /= 100;
    else if (end == text || *end || !(value >= 0))
        usage("not a number of pages");
    value = value <= 1 ? value * pages : value;
    return value < 1 ? 1 : value > pages ? pages : (uint32_t)value;
}

static void set_default(char **text, const char *value) {
    if (!*text)
        *text = g_strdup(value);
}

static void set_defaults(Options *options) {
    set_default(&options->size, "64M");
    set_default(&options->memory, "anon");
    set_default(&options->populate, "1");
    set_default(&options->hot, "1");
    set_default(&options->name, "vm");
}

static void parse_options(int argc, char **argv, Options *options) {
    GOptionEntry entries[] = {{"qmp", 0, 0, G_OPTION_ARG_STRING, &options->qmp, NULL, NULL},
                              {"incoming", 0, 0, G_OPTION_ARG_STRING, &options->incoming, NULL, NULL},
                              {"size", 0, 0, G_OPTION_ARG_STRING, &options->size, NULL, NULL},
                              {"memory", 0, 0, G_OPTION_ARG_STRING, &options->memory, NULL, NULL},
                              {"rate", 0, 0, G_OPTION_ARG_DOUBLE, &options->rate, NULL, NULL},
                              {"populate", 0, 0, G_OPTION_ARG_STRING, &options->populate, NULL, NULL},
                              {"hot", 0, 0, G_OPTION_ARG_STRING, &options->hot, NULL, NULL},
                              {"prefill", 0, 0, G_OPTION_ARG_NONE, &options->prefill, NULL, NULL},
                              {"threads", 0, 0, G_OPTION_ARG_INT, &options->threads, NULL, NULL},
                              {"batch", 0, 0, G_OPTION_ARG_INT, &options->batch, NULL, NULL},
                              {"regions", 0, 0, G_OPTION_ARG_INT, &options->regions, NULL, NULL},
                              {"align", 0, 0, G_OPTION_ARG_STRING, &options->align, NULL, NULL},
                              {"peek", 0, 0, G_OPTION_ARG_INT, &options->peek, NULL, NULL},
                              {"ready", 0, 0, G_OPTION_ARG_INT, &options->ready, NULL, NULL},
                              {"silence", 0, 0, G_OPTION_ARG_INT, &options->silence, NULL, NULL},
                              {"serial", 0, 0, G_OPTION_ARG_FILENAME, &options->serial, NULL, NULL},
                              {"journal", 0, 0, G_OPTION_ARG_FILENAME, &options->journal, NULL, NULL},
                              {"verify", 0, 0, G_OPTION_ARG_NONE, &options->verify, NULL, NULL},
                              {"snapshot-dir", 0, 0, G_OPTION_ARG_FILENAME, &options->snapshot_dir, NULL, NULL},
                              {"name", 0, 0, G_OPTION_ARG_STRING, &options->name, NULL, NULL},
                              {0}};
    g_autoptr(GError) error = NULL;
    g_autoptr(GOptionContext) context = g_option_context_new(NULL);

    g_option_context_add_main_entries(context, entries, NULL);
    if (!g_option_context_parse(context, &argc, &argv, &error))
        usage(error->message);
    if (argc != 1 || !options->qmp || !g_str_has_prefix(options->qmp, "unix:"))
        usage("--qmp unix:PATH is needed, and nothing that is no option");
    if (options->threads < 1 || options->threads > (int)SEQ_THREADS_MAX || options->batch < 1 ||
        options->regions < 1 || options->peek < 0 || options->ready < 0 || options->silence < 0)
        usage("a number is out of range");
    set_defaults(options);
}

/* ---- setting up ------------------------------------------------------------------------------------------ */

static const struct {
    const char *kind;
    SnapMemory memory;
} memories[] = {
    {"anon", SNAP_MEMORY_ANON},       {"thp", SNAP_MEMORY_ANON},
    {"memfd", SNAP_MEMORY_SHMEM},     {"memfd-private", SNAP_MEMORY_SHMEM_PRIVATE},
    {"hugetlb", SNAP_MEMORY_HUGETLB}, {"hugetlb-private", SNAP_MEMORY_HUGETLB_PRIVATE},
};

static SnapMemory find_memory(const char *kind) {
    for (size_t i = 0; i < G_N_ELEMENTS(memories); i++)
        if (strcmp(memories[i].kind, kind) == 0)
            return memories[i].memory;
    usage("--memory is none of anon, thp, memfd, memfd-private, hugetlb, hugetlb-private");
}

static void map_memory(const Options *options, ThreadGuest *guest) {
    guest->memory = find_memory(options->memory);
    int result = backing_map(options->memory, parse_size(options->size), NULL, &guest->backing);
    bool huge = g_str_has_prefix(options->memory, "hugetlb");

    if (result < 0) {
        fprintf(stderr, "thread-vm: cannot map %s of %s memory: %s%s\n", options->size, options->memory,
                strerror(-result), huge ? "; raise vm.nr_hugepages" : "");
        exit(huge ? EXIT_MISSING : EXIT_USAGE);
    }
    guest->unit_bytes = options->align ? parse_size(options->align) : guest->backing.granule_bytes;
    if (!guest->unit_bytes || guest->unit_bytes % guest->backing.granule_bytes)
        usage("--align is not a multiple of what the memory is mapped in");
}

static void lay_out(const Options *options, ThreadGuest *guest) {
    uint64_t pages = guest->backing.length_bytes / guest->backing.page_bytes - 1;
    SeqLayout layout = {.pages = (uint32_t)pages, .page_bytes = (uint32_t)guest->backing.page_bytes};

    layout.touched = parse_pages(options->populate, layout.pages);
    layout.hot = parse_pages(options->hot, layout.touched);
    layout.stride = seq_scatter_stride(layout.pages);
    guest_lay_out(guest, &layout, (unsigned)options->threads, (uint32_t)options->batch);
    guest->writers.period_ns = options->rate > 0 ? (uint64_t)((double)NS_PER_SECOND / options->rate) : 0;
    if (options->prefill && !options->incoming)
        writers_prefill(&guest->writers);
}

static void open_files(const Options *options, ThreadGuest *guest) {
    journal_open(&guest->journal, options->journal, options->name);
    if (!options->serial)
        return;
    guest->serial = fopen(options->serial, "ae");
    if (!guest->serial)
        usage("--serial cannot be opened");
}

/* ---- the VM of the commands ------------------------------------------------------------------------------ */

static gboolean stop(void *opaque, GError **error) {
    Vm *vm = opaque;
    (void)error;
    return guest_hold(&vm->guest, HOLD_CLIENT, true);
}

static gboolean cont(void *opaque, GError **error) {
    Vm *vm = opaque;
    if (guest_hold(&vm->guest, HOLD_CLIENT, false))
        return TRUE;
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "the threads do not start");
    return FALSE;
}

static gboolean is_running(void *opaque) {
    Vm *vm = opaque;
    return guest_runs(&vm->guest);
}

static const SnapQmpVm vm_verbs = {.stop = stop, .cont = cont, .is_running = is_running};

static void on_quit(void *opaque) {
    const Vm *vm = opaque;
    eventfd_write(vm->quit_fd, 1);
}

static void on_incoming_failed(const char *why, void *opaque) {
    Vm *vm = opaque;
    fprintf(stderr, "thread-vm: the guest does not come: %s\n", why);
    journal_add(&vm->guest.journal, "incoming-failed %s", why);
    __atomic_store_n(&vm->failed, true, __ATOMIC_RELAXED);
    on_quit(vm);
}

static SnapQmp *begin_server(const Options *options, Vm *vm) {
    g_autoptr(GError) error = NULL;
    SnapQmpOptions server = {.name = options->name,
                             .snapshot_dir = options->snapshot_dir,
                             .vm = &vm_verbs,
                             .vm_opaque = vm,
                             .on_quit = on_quit,
                             .quit_opaque = vm,
                             .incoming = options->incoming,
                             .on_incoming_failed = on_incoming_failed,
                             .migration_silence_ms = (unsigned)options->silence};
    SnapGuest *guest = snap_guest_new("embedded", 0, &thread_guest_ops, &vm->guest);
    snap_guest_set_move_ops(guest, &thread_guest_move_ops);
    SnapQmp *qmp = snap_qmp_new(guest, &server, &error);

    if (!qmp || !snap_qmp_listen(qmp, options->qmp + strlen("unix:"), &error)) {
        fprintf(stderr, "thread-vm: %s\n", error->message);
        exit(EXIT_FAILURE);
    }
    snap_qmp_start_thread(qmp);
    return qmp;
}

/* Blocked before any thread is made, so that only this descriptor takes them. */
static int take_signals(void) {
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    pthread_sigmask(SIG_BLOCK, &signals, NULL);
    return signalfd(-1, &signals, SFD_CLOEXEC);
}

static void wait_end(const Vm *vm, int signal_fd) {
    struct pollfd fds[] = {{.fd = vm->quit_fd, .events = POLLIN}, {.fd = signal_fd, .events = POLLIN}};
    while (!fds[0].revents && !fds[1].revents)
        poll(fds, G_N_ELEMENTS(fds), -1);
}

int main(int argc, char **argv) {
    g_auto(Options) options = {.threads = 1, .batch = 64, .regions = 1};
    Vm vm = {.quit_fd = eventfd(0, EFD_CLOEXEC)};
    ThreadGuest *guest = &vm.guest;
    int signal_fd = take_signals();

    parse_options(argc, argv, &options);
    guest->n_regions = (unsigned)options.regions;
    guest->verify = options.verify;
    guest->n_peeks = (unsigned)options.peek;
    guest->ready_ms = (unsigned)options.ready;
    guest->held = HOLD_PAUSE | (options.incoming ? HOLD_INCOMING : 0u);
    open_files(&options, guest);
    map_memory(&options, guest);
    lay_out(&options, guest);
    guest_start(guest);
    SnapQmp *qmp = begin_server(&options, &vm);
    wait_end(&vm, signal_fd);
    snap_qmp_free(qmp);
    return guest_end(guest) || vm.failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
