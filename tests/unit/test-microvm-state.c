/* The state of a microvm's devices as bytes, whole and damaged; and its clocks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../../vmm-glue/microvm/state.h"

#include <string.h>

#define HEAD 16u
#define SECTION 8u
#define SECOND UINT64_C(1000000000)

/* Every byte of it different from its neighbours, and from zero. */
static void fill(void *bytes, size_t n, uint8_t seed) {
    for (size_t i = 0; i < n; i++)
        ((uint8_t *)bytes)[i] = (uint8_t)(1 + (seed + i) % 251);
}

static MachineState *example(uint32_t n_cpuid, uint32_t n_msrs, uint32_t n_xsave) {
    MachineState *state = g_new0(MachineState, 1);
    fill(state, sizeof(*state), 7);
    state->machine = (StateMachine){.ram_bytes = 7, .stopped = 1, .ended = STATE_EXITED, .status = 9};
    state->serial.n_queued = SERIAL_QUEUE_BYTES;
    state->n_cpuid = n_cpuid;
    state->n_msrs = n_msrs;
    state->n_xsave = n_xsave;
    memset(state->cpuid + n_cpuid, 0, (STATE_MAX_CPUID - n_cpuid) * sizeof(*state->cpuid));
    memset(state->msrs + n_msrs, 0, (STATE_MAX_MSRS - n_msrs) * sizeof(*state->msrs));
    memset(state->xsave + n_xsave, 0, STATE_MAX_XSAVE_BYTES - n_xsave);
    for (uint32_t i = 0; i < STATE_IRQCHIPS; i++)
        state->irqchips[i].chip_id = i;
    return state;
}

static GByteArray *example_blob(void) {
    g_autofree MachineState *state = example(3, 4, STATE_MIN_XSAVE_BYTES);
    return g_bytes_unref_to_array(state_encode(state));
}

/* Nothing but what is wrong comes back, and the state is as it was. */
static const char *decode(GByteArray *array) {
    g_autoptr(GBytes) blob = g_byte_array_free_to_bytes(array);
    g_autofree MachineState *state = g_new0(MachineState, 1), *before = g_new0(MachineState, 1);
    const char *wrong = state_decode(blob, state);
    if (wrong)
        assert_memory_equal(state, before, sizeof(*state));
    return wrong;
}

static void assert_wrong(GByteArray *array, const char *words) {
    const char *wrong = decode(array);
    assert_non_null(wrong);
    assert_non_null(strstr(wrong, words));
}

static uint32_t word_at(const GByteArray *blob, guint at) {
    uint32_t word;
    memcpy(&word, blob->data + at, sizeof(word));
    return word;
}

static void set_word(GByteArray *blob, guint at, uint32_t word) {
    memcpy(blob->data + at, &word, sizeof(word));
}

/* Where the head of section @number, from 1 on, is. */
static guint section_at(const GByteArray *blob, uint32_t number) {
    guint at = HEAD;
    while (word_at(blob, at) != number)
        at += SECTION + word_at(blob, at + 4);
    return at;
}

/* ---------------------------------------------------------------------------------------------------------- */

static void state_encoded_and_decoded_is_the_same(void **unused) {
    (void)unused;
    const uint32_t sizes[][3] = {
        {1, 0, STATE_MIN_XSAVE_BYTES}, {75, 39, 4096}, {STATE_MAX_CPUID, STATE_MAX_MSRS, STATE_MAX_XSAVE_BYTES}};
    for (gsize i = 0; i < G_N_ELEMENTS(sizes); i++) {
        g_autofree MachineState *state = example(sizes[i][0], sizes[i][1], sizes[i][2]);
        g_autofree MachineState *back = g_new0(MachineState, 1);
        g_autoptr(GBytes) blob = state_encode(state);
        assert_null(state_decode(blob, back));
        g_autoptr(GBytes) again = state_encode(back);
        assert_true(g_bytes_equal(blob, again));
        assert_memory_equal(&back->machine, &state->machine, sizeof(state->machine));
        assert_memory_equal(&back->regs, &state->regs, sizeof(state->regs));
        assert_memory_equal(back->msrs, state->msrs, sizeof(state->msrs));
        assert_memory_equal(&back->timer, &state->timer, sizeof(state->timer));
        assert_int_equal(back->n_xsave, state->n_xsave);
    }
}

static void state_cut_anywhere_is_refused(void **unused) {
    (void)unused;
    g_autoptr(GByteArray) whole = example_blob();
    for (guint length = 0; length < whole->len; length++) {
        GByteArray *cut = g_byte_array_new();
        g_byte_array_append(cut, whole->data, length);
        assert_non_null(decode(cut));
    }
}

static void state_with_more_behind_it_is_refused(void **unused) {
    (void)unused;
    GByteArray *blob = example_blob();
    g_byte_array_append(blob, (const guint8 *)"", 1);
    assert_wrong(blob, "more behind it");
}

static void state_of_something_else_is_refused(void **unused) {
    (void)unused;
    const struct {
        guint at;
        uint32_t word;
        const char *words;
    } damages[] = {
        {0, 0x12345678, "not the state of a microvm"},
        {8, STATE_VERSION + 1, "another version"},
        {8, 0, "another version"},
        {12, 15, "number of sections"},
        {HEAD, 2, "another order"},
        {HEAD + 4, 8, "another length"},
        {HEAD + 4, 24, "another length"},
        {HEAD + 4, 0, "another length"},
    };
    for (gsize i = 0; i < G_N_ELEMENTS(damages); i++) {
        GByteArray *blob = example_blob();
        set_word(blob, damages[i].at, damages[i].word);
        assert_wrong(blob, damages[i].words);
    }
}

static void runs_too_long_too_short_or_uneven_are_refused(void **unused) {
    (void)unused;
    const uint32_t lengths[][2] = {/* section, length */
                                   {12, 0},
                                   {12, 41},
                                   {12, 40 * (STATE_MAX_CPUID + 1)},
                                   {13, 17},
                                   {13, 16 * (STATE_MAX_MSRS + 1)},
                                   {14, STATE_MIN_XSAVE_BYTES - 1},
                                   {14, STATE_MAX_XSAVE_BYTES + 1},
                                   {14, UINT32_MAX},
                                   {15, 520 * 2}};
    for (gsize i = 0; i < G_N_ELEMENTS(lengths); i++) {
        GByteArray *blob = example_blob();
        set_word(blob, section_at(blob, lengths[i][0]) + 4, lengths[i][1]);
        assert_wrong(blob, "another length");
    }
}

static void values_that_cannot_be_are_refused(void **unused) {
    (void)unused;
    static const StateMachine wrong[] = {{.stopped = 2},
                                         {.ended = STATE_END_MAX},
                                         {.status = 1},
                                         {.ended = STATE_FAILED, .status = 1},
                                         {.zeros = {1}}};
    GByteArray *blob;
    for (gsize i = 0; i < G_N_ELEMENTS(wrong); i++) {
        blob = example_blob();
        memcpy(blob->data + HEAD + SECTION, &wrong[i], sizeof(*wrong));
        assert_wrong(blob, "of a stop or an end");
    }
    blob = example_blob();
    blob->data[section_at(blob, 3) + SECTION + offsetof(SerialState, n_queued)] = SERIAL_QUEUE_BYTES + 1;
    assert_wrong(blob, "queue is too long");
    blob = example_blob();
    memset(blob->data + section_at(blob, 2) + SECTION + offsetof(StateTime, tsc_khz), 0, sizeof(uint64_t));
    assert_wrong(blob, "clock stands still");
    blob = example_blob();
    set_word(blob, section_at(blob, 15) + SECTION + (guint)sizeof(struct kvm_irqchip), 2);
    assert_wrong(blob, "interrupt controllers");
}

/* Whatever a bit says, the result is a state that can be encoded, or a reason. */
static void state_with_a_bit_flipped_is_a_state_or_refused(void **unused) {
    (void)unused;
    g_autoptr(GByteArray) whole = example_blob();
    for (guint bit = 0; bit < 8 * MIN(whole->len, 1024); bit++) {
        GByteArray *blob = g_byte_array_new();
        g_byte_array_append(blob, whole->data, whole->len);
        blob->data[bit / 8] ^= (guint8)(1u << bit % 8);
        const char *wrong = decode(blob);
        assert_true(wrong || bit / 8 >= HEAD + SECTION);
    }
}

/* ---- time ------------------------------------------------------------------------------------------------ */

static void time_that_has_passed_counts_for_a_move(void **unused) {
    (void)unused;
    assert_int_equal(state_elapsed_ns(5 * SECOND, 7 * SECOND), 2 * SECOND);
    assert_int_equal(state_elapsed_ns(5 * SECOND, 5 * SECOND), 0);
}

static void time_set_back_or_long_past_does_not_count(void **unused) {
    (void)unused;
    assert_int_equal(state_elapsed_ns(5 * SECOND, 4 * SECOND), 0);
    assert_int_equal(state_elapsed_ns(0, 7200 * SECOND), 0);
    assert_int_equal(state_elapsed_ns(UINT64_MAX, 0), 0);
}

static void counter_goes_on_at_its_rate(void **unused) {
    (void)unused;
    const StateTime time = {.tsc = 1000, .tsc_khz = 3000000};
    assert_int_equal(state_tsc_after(&time, 0), 1000);
    assert_int_equal(state_tsc_after(&time, 1000), 4000);
    assert_int_equal(state_tsc_after(&time, 3600 * SECOND), 1000 + 3600 * UINT64_C(3000000000));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(state_encoded_and_decoded_is_the_same),
        cmocka_unit_test(state_cut_anywhere_is_refused),
        cmocka_unit_test(state_with_more_behind_it_is_refused),
        cmocka_unit_test(state_of_something_else_is_refused),
        cmocka_unit_test(runs_too_long_too_short_or_uneven_are_refused),
        cmocka_unit_test(values_that_cannot_be_are_refused),
        cmocka_unit_test(state_with_a_bit_flipped_is_a_state_or_refused),
        cmocka_unit_test(time_that_has_passed_counts_for_a_move),
        cmocka_unit_test(time_set_back_or_long_past_does_not_count),
        cmocka_unit_test(counter_goes_on_at_its_rate),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
