/*
 * The multiboot guest: writes the known sequence into physical memory, checks it, and reports on COM1.
 *
 * Happy path: serial port and clock → arena from the memory map and the command line → the other processors →
 * "ready …" → batches of writes, by turns → "N=… errors=… rate=… stall-us=…" about once a second.
 *
 * Failure modes: "FATAL …" and a halt when the arena cannot be laid out. A wrong word is counted, the first ones
 * are printed as "ERROR …", and the guest goes on. After a restore it goes on where the snapshot was taken; the
 * time stamp counter may have jumped then, which is no stall if it jumped back.
 *
 * Invariant: only the processor whose turn it is touches the arena, the cursor and the serial port.
 */
#include "kernel.h"

#define MULTIBOOT_LOADED 0x2badb002u
#define ERRORS_PRINTED 8u
#define EXIT_PORT 0xf4 /* of QEMU's isa-debug-exit, where there is one */

static SeqLayout layout;
static SeqHeader *header;
static Config config;
static uint32_t cpus = 1;
static uint32_t running; /* atomic: the others may take turns */
static uint32_t turn;    /* atomic: whose it is */

/* The processor whose turn it is only. */
static SeqCursor cursor;
static uint64_t last;     /* end of the last write, as are all times in counter cycles */
static uint64_t due;      /* when the next write should be */
static uint64_t period;   /* 0: as fast as it goes */
static uint64_t stall;    /* the longest write since the last report */
static uint64_t reported; /* when that was */
static uint64_t reported_n;
static uint64_t second;
static uint64_t errors_printed;

/* ---- reporting -------------------------------------------------------------------------------------------- */

static uint64_t microseconds(uint64_t cycles) {
    return cycles * 1000 / clock_khz;
}

static void print_ready(void) {
    serial_hex("ready arena=", ARENA_ADDRESS);
    serial_number(" pages=", layout.pages);
    serial_number(" page-size=", layout.page_bytes);
    serial_number(" touched=", layout.touched);
    serial_number(" hot=", layout.hot);
    serial_number(" stride=", layout.stride);
    serial_number(" cpus=", cpus);
    serial_number(" batch=", config.batch);
    serial_number(" khz=", clock_khz);
    serial_end_line();
}

static void print_error(void) {
    serial_number("ERROR N=", header->counter);
    serial_number(" errors=", header->errors);
    serial_number(" page=", header->error_page);
    serial_number(" slot=", header->error_slot);
    serial_hex(" found=", header->error_found);
    serial_hex(" expected=", header->error_expected);
    serial_end_line();
}

static void print_report(uint64_t now) {
    uint64_t ms = (now - reported) / clock_khz;
    uint64_t writes = cursor.n - reported_n;

    serial_number("N=", cursor.n - 1);
    serial_number(" errors=", header->errors);
    serial_number(" rate=", ms ? writes * 1000 / ms : 0);
    serial_number(" stall-us=", microseconds(stall));
    serial_end_line();
}

static void report(void) {
    if (header->errors != errors_printed && errors_printed < ERRORS_PRINTED) {
        print_error();
        errors_printed = header->errors;
    }
    if ((int64_t)(last - reported) < 0) /* the clock was set back */
        reported = last;
    if (last - reported < second)
        return;
    print_report(last);
    stall = 0;
    reported_n = cursor.n;
    reported = last = clock_now(); /* printing is no stall */
}

/* ---- writing ---------------------------------------------------------------------------------------------- */

static void pace(void) {
    due += period;
    if ((int64_t)(last - due - second) > 0) /* far behind, or the clock jumped: no making up */
        due = last;
    while ((int64_t)(clock_now() - due) < 0)
        __builtin_ia32_pause();
    last = due;
}

static void write_batch(void) {
    for (uint32_t i = 0; i < config.batch; i++) {
        uint64_t now;
        if (period)
            pace();
        seq_write(&layout, &cursor, header);
        now = clock_now();
        if (now - last > stall && (int64_t)(now - last) > 0)
            stall = now - last;
        last = now;
    }
}

static void end_if_asked(void) {
    if (!config.writes || cursor.n <= config.writes)
        return;
    print_report(last);
    out8(EXIT_PORT, header->errors ? 1 : 0);
    config.writes = 0;
}

static _Noreturn void take_turns(uint32_t cpu) {
    uint32_t next = cpu + 1 == cpus ? 0 : cpu + 1;

    for (;;) {
        smp_wait(&turn, cpu);
        write_batch();
        report();
        end_if_asked();
        if (next == cpu)
            continue;
        __atomic_store_n(&turn, next, __ATOMIC_RELEASE);
        smp_wake(next);
    }
}

/* ---- setting up ------------------------------------------------------------------------------------------- */

static _Noreturn void fatal(const char *why) {
    serial_text("FATAL ");
    serial_text(why);
    serial_end_line();
    for (;;)
        __builtin_ia32_pause();
}

static uint32_t count_pages(uint32_t wanted, bool percent, uint32_t pages) {
    uint64_t count = percent ? (uint64_t)pages * wanted / 100 : wanted;
    return count < 1 ? 1 : count > pages ? pages : (uint32_t)count;
}

static void lay_out(uint32_t memory_end) {
    uint32_t size = memory_end - ARENA_ADDRESS - FIRMWARE_BYTES;

    if (memory_end <= ARENA_ADDRESS + FIRMWARE_BYTES)
        fatal("there is too little memory");
    if (config.size_bytes && config.size_bytes < size)
        size = config.size_bytes;
    if (!config.page_bytes || size / config.page_bytes < 2)
        fatal("the arena is smaller than two pages");
    layout.page_bytes = config.page_bytes;
    layout.pages = size / config.page_bytes - 1;
    layout.touched = count_pages(config.populate, config.populate_percent, layout.pages);
    layout.hot = count_pages(config.hot, config.hot_percent, layout.touched);
    layout.stride = config.linear ? 1 : seq_scatter_stride(layout.pages);
    if (!seq_layout_valid(&layout) || !config.batch)
        fatal("the command line asks for an impossible arena");
}

/* After a reset the arena is still there: start from zeros again. Otherwise untouched pages stay untouched. */
static void clear_arena(void) {
    static const char magic[8] = SEQ_MAGIC;
    bool same = true;

    for (uint32_t i = 0; i < sizeof(magic); i++)
        same &= header->magic[i] == magic[i];
    if (same)
        memset(header, 0, (layout.pages + 1) * layout.page_bytes);
}

static void start_clock(void) {
    second = (uint64_t)clock_khz * 1000;
    period = config.rate ? second / config.rate : 0;
    last = due = reported = clock_now();
    reported_n = cursor.n;
}

void kernel_main(uint32_t magic, const void *multiboot_info) {
    serial_init();
    clock_calibrate();
    if (magic != MULTIBOOT_LOADED)
        fatal("not loaded by a multiboot loader");
    config_parse(&config, multiboot_info);
    lay_out(config_memory_end(multiboot_info)); /* the last use of what the loader left in low memory */
    header = (SeqHeader *)ARENA_ADDRESS;
    clear_arena();
    cpus = smp_start(config.cpus);
    seq_header_init(header, &layout, cpus, config.batch);
    seq_start(&layout, &cursor);
    print_ready();
    start_clock();
    __atomic_store_n(&running, 1, __ATOMIC_RELEASE);
    for (uint32_t cpu = 1; cpu < cpus; cpu++)
        smp_wake(cpu);
    take_turns(0);
}

void cpu_main(uint32_t cpu) {
    smp_join(cpu);
    smp_wait(&running, 1);
    if (cpu >= cpus)
        smp_wait(&running, UINT32_MAX); /* which never comes */
    take_turns(cpu);
}

/* The compiler may call these for what the code above does not spell out. */
void *memset(void *place, int byte, size_t count) {
    void *start = place;
    __asm__ volatile("rep stosb" : "+D"(place), "+c"(count) : "a"(byte) : "memory");
    return start;
}

void *memcpy(void *place, const void *source, size_t count) {
    void *start = place;
    __asm__ volatile("rep movsb" : "+D"(place), "+S"(source), "+c"(count) : : "memory");
    return start;
}
