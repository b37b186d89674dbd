/*
 * A microvm, called as libsnap calls it: test-microvm GUEST.BIN. Machines of one process take over from each other
 * by what a move is made of, less the connection: memory and a blob of state.
 *
 * The guest checks what it writes and counts errors; what it prints is read from files.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../../libsnap/guest.h"
#include "../../vmm-glue/microvm/microvm.h"
#include "../../vmm-glue/microvm/state.h"
#include "../guest/sequence.h"
#include "../lib/own-process.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define RAM_BYTES (UINT64_C(64) << 20)
#define ARENA 0x1000000
#define PATIENCE_MS 20000
#define BUSY_US                                                                                                   \
    10000000 /* what a busy machine may add to a stall; a clock that is wrong adds hours, or takes away */

static const char *kernel;

typedef struct {
    Microvm *vm;
    SnapGuest *guest;
    SnapRegion *ram;
    int serial_fd;
    int end_status; /* atomic, as `ended` */
    char *end_why;
    int ended;
} Machine;

/* ---- making machines ------------------------------------------------------------------------------------- */

static void on_end(int status, const char *why, void *opaque) {
    Machine *m = opaque;
    m->end_status = status;
    m->end_why = g_strdup(why);
    __atomic_store_n(&m->ended, 1, __ATOMIC_RELEASE);
}

static int open_serial(void) {
    g_autofree char *path = g_strdup("microvm-serial-XXXXXX");
    int fd = mkostemp(path, O_CLOEXEC | O_APPEND);
    assert_true(fd >= 0);
    unlink(path);
    return fd;
}

static void machine_init(Machine *m, MicrovmOptions options) {
    g_autoptr(GError) error = NULL;
    *m = (Machine){.serial_fd = open_serial()};
    options.ram_bytes = options.ram_bytes ? options.ram_bytes : RAM_BYTES;
    options.serial_fd = m->serial_fd;
    options.on_end = on_end;
    options.opaque = m;
    m->vm = microvm_new(&options, &error);
    fail_on(error);
    m->guest = microvm_guest(m->vm);
    g_autoptr(GPtrArray) regions = g_ptr_array_new();
    m->guest->ops->list_regions(m->guest->opaque, FALSE, regions, &error);
    fail_on(error);
    assert_int_equal(regions->len, 1);
    m->ram = g_ptr_array_index(regions, 0);
}

static void machine_clear(Machine *m) {
    snap_region_free(m->ram);
    snap_guest_free(m->guest);
    microvm_free(m->vm);
    close(m->serial_fd);
    g_free(m->end_why);
}

static void machine_boot(Machine *m, const char *words) {
    g_autoptr(GError) error = NULL;
    machine_init(m, (MicrovmOptions){.begin = MICROVM_BOOT, .kernel = kernel, .words = words});
    microvm_cont(m->vm, &error);
    fail_on(error);
}

static void machine_wait_for_guest(Machine *m, RamKind memory) {
    machine_init(m, (MicrovmOptions){.begin = MICROVM_INCOMING, .memory = memory});
}

/* ---- what the guest does --------------------------------------------------------------------------------- */

static const SeqHeader *header_of(const Machine *m) {
    return (const SeqHeader *)(uintptr_t)(m->ram->host_address + ARENA);
}

static uint64_t written(const Machine *m) {
    return __atomic_load_n(&header_of(m)->counter, __ATOMIC_ACQUIRE);
}

static void await_writes(const Machine *m, uint64_t n) {
    uint64_t until = written(m) + n;
    for (int i = 0; i < PATIENCE_MS && written(m) < until; i++)
        g_usleep(1000);
    assert_true(written(m) >= until);
}

static void assert_stands(const Machine *m) {
    uint64_t before = written(m);
    g_usleep(50000);
    assert_int_equal(written(m), before);
}

static char *printed(const Machine *m) {
    char *text = g_malloc0(1 << 16);
    assert_true(pread(m->serial_fd, text, (1 << 16) - 1, 0) >= 0);
    return text;
}

/* The value behind NAME= in the last line of those that begin with "N="; until there is one. */
static uint64_t last_reported(const Machine *m, const char *name) {
    for (int i = 0; i < PATIENCE_MS; i++) {
        g_autofree char *text = printed(m);
        char *line = g_strrstr(text, "N="), *value = line && strchr(line, '\n') ? strstr(line, name) : NULL;
        if (value)
            return g_ascii_strtoull(value + strlen(name), NULL, 10);
        g_usleep(1000);
    }
    fail_msg("the guest does not report");
    return 0;
}

/* ---- what libsnap calls ---------------------------------------------------------------------------------- */

static void pause_guest(Machine *m) {
    g_autoptr(GError) error = NULL;
    m->guest->ops->pause(m->guest->opaque, SNAP_PAUSE_READY, &error);
    fail_on(error);
    m->guest->ops->pause(m->guest->opaque, SNAP_PAUSE_STOP, &error);
    fail_on(error);
}

static uint64_t resume_guest(Machine *m) {
    g_autoptr(GError) error = NULL;
    uint64_t pause_ns = 0;
    m->guest->ops->resume(m->guest->opaque, &pause_ns, &error);
    fail_on(error);
    return pause_ns;
}

static GPtrArray *get_state(Machine *m) {
    g_autoptr(GError) error = NULL;
    GPtrArray *states = g_ptr_array_new_with_free_func((GDestroyNotify)snap_state_free);
    m->guest->ops->get_state(m->guest->opaque, states, &error);
    fail_on(error);
    return states;
}

static gboolean load_state(Machine *m, GPtrArray *states, GError **error) {
    return m->guest->move_ops->load_state(m->guest->opaque, states, error);
}

static void start_guest(Machine *m) {
    g_autoptr(GError) error = NULL;
    m->guest->move_ops->start(m->guest->opaque, &error);
    fail_on(error);
}

static void throttle(Machine *m, unsigned percent) {
    m->guest->move_ops->throttle(m->guest->opaque, percent);
}

/* All but the start. */
static void take_over(Machine *from, Machine *to) {
    g_autoptr(GError) error = NULL;
    pause_guest(from);
    g_autoptr(GPtrArray) states = get_state(from);
    memcpy((void *)(uintptr_t)to->ram->host_address, (const void *)(uintptr_t)from->ram->host_address,
           from->ram->length_bytes);
    load_state(to, states, &error);
    fail_on(error);
    from->guest->move_ops->hand_over(from->guest->opaque);
}

/* ---- running --------------------------------------------------------------------------------------------- */

static void guest_booted_writes_and_reports(void **state) {
    (void)state;
    Machine m;
    machine_boot(&m, "");
    await_writes(&m, 100000);
    last_reported(&m, "N=");
    assert_int_equal(last_reported(&m, "errors="), 0);
    g_autofree char *text = printed(&m);
    assert_true(g_str_has_prefix(text, "ready arena=0x1000000 pages="));
    assert_non_null(strstr(text, " cpus=1 "));
    machine_clear(&m);
}

static void guest_limited_in_rate_keeps_it(void **state) {
    (void)state;
    Machine m;
    machine_boot(&m, "rate=20000 hot=50%");
    last_reported(&m, "N=");
    uint64_t rate = last_reported(&m, "rate=");
    assert_in_range(rate, 5000, 21000);
    machine_clear(&m);
}

static void await_end(const Machine *m) {
    for (int i = 0; i < PATIENCE_MS && !__atomic_load_n(&m->ended, __ATOMIC_ACQUIRE); i++)
        g_usleep(1000);
    assert_true(m->ended);
}

static void guest_that_ends_says_with_what(void **state) {
    (void)state;
    Machine m;
    machine_boot(&m, "writes=20000");
    await_end(&m);
    assert_int_equal(m.end_status, 0);
    assert_null(m.end_why);
    assert_false(microvm_is_running(m.vm));
    assert_stands(&m);
    pause_guest(&m); /* a copy may still be made of it */
    resume_guest(&m);
    machine_clear(&m);
}

/* A kernel of eight bytes. */
static void machine_boot_code(Machine *m, uint32_t code, uint32_t more_code) {
    const uint32_t image[] = {
        0x1badb002, 0x10002, -(0x1badb002 + 0x10002u), 0x100000, 0x100000, 0, 0, 0x100000 + 32, code, more_code};
    char path[] = "microvm-kernel-XXXXXX";
    int fd = mkostemp(path, O_CLOEXEC);
    assert_int_equal(write(fd, image, sizeof(image)), sizeof(image));
    close(fd);
    g_autoptr(GError) error = NULL;
    machine_init(m, (MicrovmOptions){.begin = MICROVM_BOOT, .kernel = path});
    unlink(path);
    microvm_cont(m->vm, &error);
    fail_on(error);
}

/* Without tables for interrupts, ud2 is a triple fault. */
static void guest_that_shuts_down_is_complained_of(void **state) {
    (void)state;
    Machine m;
    machine_boot_code(&m, 0x0b0f0b0f, 0);
    await_end(&m);
    assert_non_null(m.end_why);
    machine_clear(&m);
}

/* ---- who stops it ---------------------------------------------------------------------------------------- */

static void client_stops_and_continues_it(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    Machine m;
    machine_boot(&m, "");
    await_writes(&m, 1000);
    microvm_stop(m.vm, &error);
    fail_on(error);
    assert_stands(&m);
    assert_false(microvm_is_running(m.vm));
    microvm_cont(m.vm, &error);
    fail_on(error);
    assert_true(microvm_is_running(m.vm));
    await_writes(&m, 1000);
    machine_clear(&m);
}

static void copy_pauses_and_resumes_it(void **state) {
    (void)state;
    Machine m;
    machine_boot(&m, "");
    await_writes(&m, 1000);
    for (int i = 0; i < 200; i++) {
        pause_guest(&m);
        uint64_t before = written(&m);
        g_usleep(100);
        assert_true(microvm_is_running(m.vm)); /* as far as a client can tell */
        assert_int_equal(written(&m), before);
        assert_true(resume_guest(&m) > 0);
    }
    pause_guest(&m);
    assert_stands(&m);
    resume_guest(&m);
    await_writes(&m, 1000);
    assert_int_equal(resume_guest(&m), 0); /* it was not paused */
    machine_clear(&m);
}

static void client_and_copy_each_hold_it(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    Machine m;
    machine_boot(&m, "");
    await_writes(&m, 1000);
    pause_guest(&m);
    microvm_stop(m.vm, &error);
    resume_guest(&m);
    assert_stands(&m);
    pause_guest(&m);
    microvm_cont(m.vm, &error);
    assert_stands(&m);
    resume_guest(&m);
    fail_on(error);
    await_writes(&m, 1000);
    machine_clear(&m);
}

static void throttled_guest_runs_less(void **state) {
    (void)state;
    Machine m;
    machine_boot(&m, "");
    await_writes(&m, 100000);
    uint64_t begin = written(&m);
    g_usleep(300000);
    uint64_t free_writes = written(&m) - begin;
    throttle(&m, 95);
    begin = written(&m);
    g_usleep(300000);
    uint64_t few_writes = written(&m) - begin;
    assert_in_range(few_writes, 1, free_writes / 4);
    pause_guest(&m); /* in its sleep as well */
    assert_stands(&m);
    resume_guest(&m);
    throttle(&m, 0);
    begin = written(&m);
    g_usleep(300000);
    assert_true(written(&m) - begin > 2 * few_writes);
    machine_clear(&m);
}

/* ---- moving ---------------------------------------------------------------------------------------------- */

static void guest_moved_goes_on(void **state) {
    (void)state;
    const RamKind kinds[] = {RAM_MEMFD, RAM_ANON, RAM_ANON_HUGE};
    Machine machines[2];
    machine_boot(&machines[0], "");
    await_writes(&machines[0], 100000);
    for (guint i = 0; i < 12; i++) {
        Machine *from = &machines[i % 2], *to = &machines[(i + 1) % 2];
        machine_wait_for_guest(to, kinds[i % G_N_ELEMENTS(kinds)]);
        assert_false(microvm_is_running(to->vm));
        take_over(from, to);
        uint64_t at = written(from);
        assert_stands(to);
        assert_int_equal(written(to), at);
        start_guest(to);
        assert_true(microvm_is_running(to->vm));
        await_writes(to, 100000);
        assert_int_equal(written(from), at);
        assert_int_equal(header_of(to)->errors, 0);
        machine_clear(from);
    }
    await_writes(&machines[0], 1000);
    last_reported(&machines[0], "N=");
    assert_int_equal(last_reported(&machines[0], "errors="), 0);
    machine_clear(&machines[0]);
}

static void assert_same(const char *what, const void *taken, const void *loaded, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (((const uint8_t *)taken)[i] != ((const uint8_t *)loaded)[i])
            fail_msg("%s differs at byte %zu", what, i);
}

static MachineState *decode_state(GPtrArray *states) {
    const SnapState *blob = g_ptr_array_index(states, 0);
    MachineState *state = g_new0(MachineState, 1);
    assert_null(state_decode(blob->data, state));
    return state;
}

/* Nothing has run in between: only clocks may have gone on. */
static void state_loaded_and_taken_again_is_the_same(void **unused) {
    (void)unused;
    g_autoptr(GError) error = NULL;
    Machine from, to;
    machine_boot(&from, "");
    await_writes(&from, 100000);
    machine_wait_for_guest(&to, RAM_ANON);
    pause_guest(&from);
    g_autoptr(GPtrArray) blobs = get_state(&from);
    load_state(&to, blobs, &error);
    fail_on(error);
    pause_guest(&to);
    g_autoptr(GPtrArray) blobs_again = get_state(&to);
    g_autofree MachineState *a = decode_state(blobs), *b = decode_state(blobs_again);
#define SAME(field) assert_same(#field, &a->field, &b->field, sizeof(a->field))
    SAME(serial);
    SAME(config);
    SAME(activity);
    SAME(regs);
    SAME(sregs);
    SAME(xcrs);
    SAME(debugregs);
    SAME(lapic);
    SAME(events);
    SAME(cpuid);
    SAME(msrs);
    SAME(xsave);
    SAME(irqchips);
    assert_in_range(b->time.tsc, a->time.tsc, a->time.tsc + 10 * a->time.tsc_khz * 1000);
    assert_in_range(b->time.kvm_clock.clock, a->time.kvm_clock.clock, a->time.kvm_clock.clock + 10000000000);
    for (int i = 0; i < 3; i++)
        assert_int_equal(b->timer.channels[i].count, a->timer.channels[i].count);
    machine_clear(&from);
    machine_clear(&to);
}

/* Its clock goes on: it sees that it stood, and no more than that. */
static void guest_moved_sees_its_downtime(void **state) {
    (void)state;
    Machine from, to;
    machine_boot(&from, "rate=20000");
    await_writes(&from, 1000);
    machine_wait_for_guest(&to, RAM_ANON);
    gint64 begin_us = g_get_monotonic_time();
    take_over(&from, &to);
    g_usleep(200000);
    start_guest(&to);
    uint64_t downtime_us = (uint64_t)(g_get_monotonic_time() - begin_us);
    uint64_t stall_us = last_reported(&to, "stall-us=");
    assert_in_range(stall_us, 190000, downtime_us + BUSY_US);
    machine_clear(&from);
    machine_clear(&to);
}

static void guest_moved_while_stopped_stays_so(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    Machine from, to;
    machine_boot(&from, "");
    await_writes(&from, 1000);
    microvm_stop(from.vm, &error);
    fail_on(error);
    machine_wait_for_guest(&to, RAM_ANON);
    take_over(&from, &to);
    start_guest(&to);
    assert_false(microvm_is_running(to.vm));
    assert_stands(&to);
    microvm_cont(to.vm, &error);
    fail_on(error);
    await_writes(&to, 1000);
    machine_clear(&from);
    machine_clear(&to);
}

/* Code that ends the guest, and a loop behind that. */
static const struct {
    const char *how;
    uint32_t code, more_code;
    int status;
} ends[] = {
    {"it says so", 0xf4e607b0, 0xfeeb, 7},    /* mov $7,%al; out %al,$0xf4 */
    {"it shuts down", 0xfeeb0b0f, 0xfeeb, 0}, /* ud2 */
};

static void guest_moved_after_its_end_has_ended_there_too(void **state) {
    (void)state;
    for (gsize i = 0; i < G_N_ELEMENTS(ends); i++) {
        g_autoptr(GError) error = NULL;
        Machine from, to;
        print_message("  %s\n", ends[i].how);
        machine_boot_code(&from, ends[i].code, ends[i].more_code);
        await_end(&from);
        machine_wait_for_guest(&to, RAM_ANON);
        take_over(&from, &to);
        assert_false(to.ended); /* not before it is this machine's */
        start_guest(&to);
        assert_true(to.ended);
        assert_int_equal(to.end_status, ends[i].status);
        assert_int_equal(to.end_why != NULL, from.end_why != NULL);
        assert_false(microvm_is_running(to.vm));
        assert_false(microvm_cont(to.vm, &error));
        assert_true(g_error_matches(error, SNAP_ERROR, SNAP_ERROR_REFUSED));
        machine_clear(&from);
        machine_clear(&to);
    }
}

static void guest_handed_over_never_runs_again(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    Machine m;
    machine_boot(&m, "");
    await_writes(&m, 1000);
    pause_guest(&m);
    m.guest->move_ops->hand_over(m.guest->opaque);
    assert_false(microvm_is_running(m.vm));
    assert_false(microvm_cont(m.vm, &error));
    assert_true(g_error_matches(error, SNAP_ERROR, SNAP_ERROR_REFUSED));
    resume_guest(&m);
    assert_stands(&m);
    machine_clear(&m);
}

static void machine_that_waits_runs_nothing(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    Machine m;
    machine_wait_for_guest(&m, RAM_ANON);
    assert_false(microvm_is_running(m.vm));
    assert_false(microvm_cont(m.vm, &error));
    assert_true(g_error_matches(error, SNAP_ERROR, SNAP_ERROR_REFUSED));
    g_clear_error(&error);
    assert_false(m.guest->move_ops->start(m.guest->opaque, &error));
    assert_true(g_error_matches(error, SNAP_ERROR, SNAP_ERROR_REFUSED));
    assert_int_equal(written(&m), 0);
    machine_clear(&m);
}

static void assert_refused(GPtrArray *states, const char *why) {
    g_autoptr(GError) error = NULL;
    Machine m;
    machine_wait_for_guest(&m, RAM_ANON);
    assert_false(load_state(&m, states, &error));
    assert_non_null(strstr(error->message, why));
    g_clear_error(&error);
    assert_false(m.guest->move_ops->start(m.guest->opaque, &error));
    machine_clear(&m);
}

static GPtrArray *one_state(const char *name, const void *bytes, gsize length) {
    GPtrArray *states = g_ptr_array_new_with_free_func((GDestroyNotify)snap_state_free);
    g_ptr_array_add(states, snap_state_new(name, g_bytes_new(bytes, length)));
    return states;
}

static void state_that_does_not_fit_is_refused(void **state) {
    (void)state;
    Machine small;
    g_autoptr(GPtrArray) none = g_ptr_array_new();
    assert_refused(none, "not that of a microvm");
    g_autoptr(GPtrArray) other = one_state("devices", "x", 1);
    assert_refused(other, "not that of a microvm");
    g_autoptr(GPtrArray) garbage = one_state("machine", "x", 1);
    assert_refused(garbage, "not the state of a microvm");
    machine_init(&small, (MicrovmOptions){.begin = MICROVM_BOOT, .kernel = kernel, .ram_bytes = RAM_BYTES / 2});
    pause_guest(&small);
    g_autoptr(GPtrArray) states = get_state(&small);
    assert_refused(states, "other memory");
    assert_false(load_state(&small, states, NULL)); /* it does not wait for one */
    machine_clear(&small);
}

/* ---------------------------------------------------------------------------------------------------------- */

static void skip_without_kvm(void) {
    g_autoptr(GError) error = NULL;
    g_autoptr(Microvm) vm =
        microvm_new(&(MicrovmOptions){.begin = MICROVM_INCOMING, .ram_bytes = RAM_BYTES, .serial_fd = -1}, &error);
    if (vm || !(g_error_matches(error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED) ||
                g_error_matches(error, SNAP_ERROR, SNAP_ERROR_PERMISSION)))
        return;
    printf("skip: %s\n", error->message);
    exit(77);
}

int main(int argc, char **argv) {
    if (argc < 2)
        return 2;
    kernel = argv[1];
    skip_without_kvm();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(guest_booted_writes_and_reports),
        cmocka_unit_test(guest_limited_in_rate_keeps_it),
        cmocka_unit_test(guest_that_ends_says_with_what),
        cmocka_unit_test(guest_that_shuts_down_is_complained_of),
        cmocka_unit_test(client_stops_and_continues_it),
        cmocka_unit_test(copy_pauses_and_resumes_it),
        cmocka_unit_test(client_and_copy_each_hold_it),
        cmocka_unit_test(throttled_guest_runs_less),
        cmocka_unit_test(guest_moved_goes_on),
        cmocka_unit_test(state_loaded_and_taken_again_is_the_same),
        cmocka_unit_test(guest_moved_sees_its_downtime),
        cmocka_unit_test(guest_moved_while_stopped_stays_so),
        cmocka_unit_test(guest_moved_after_its_end_has_ended_there_too),
        cmocka_unit_test(guest_handed_over_never_runs_again),
        cmocka_unit_test(machine_that_waits_runs_nothing),
        cmocka_unit_test(state_that_does_not_fit_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
