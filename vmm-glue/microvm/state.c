/*
 * See state.h. The blob, version 1; integers are little endian:
 *
 *     [8]  "microvm" and a zero byte
 *     [4]  version
 *     [4]  number of sections, 16
 *     then of each section
 *     [4]  its number, from 1 on: they come in this order
 *     [4]  length in bytes
 *     [..] what it is
 *
 *     1  [8] bytes of memory [1] 1: a client had stopped it    9   kvm_debugregs
 *        [1] 1: it has ended, 2: it cannot go on               10  kvm_lapic_state
 *        [1] the status it has ended with [5] zeros            11  kvm_vcpu_events
 *     2  [8] wall clock, ns since 1970 [8] time stamp counter  12  kvm_cpuid_entry2, 1 to 256 of them
 *        [8] its kHz, kvm_clock_data                           13  kvm_msr_entry, up to 512
 *     3  COM1: [1] IER FCR LCR MCR SCR DLL DLM, [1] bytes in   14  extended state, XSAVE's standard form
 *        its queue [16] the queue                              15  kvm_irqchip, 3 of them
 *     4  fw_cfg: [4] selector [4] position                     16  kvm_pit_state2
 *     5  kvm_mp_state  6  kvm_regs  7  kvm_sregs2  8  kvm_xcrs
 */
#include "state.h"

#include <string.h>

G_STATIC_ASSERT(G_BYTE_ORDER == G_LITTLE_ENDIAN);

#define MAGIC_BYTES 8u
#define HEAD_BYTES 16u
#define SECTION_BYTES 8u
#define MOVED_NS (UINT64_C(3600) * 1000000000) /* a move takes less than an hour */

static const char magic[MAGIC_BYTES] = "microvm";

/* A run of @item_bytes things, between @min_items and @max_items of them; n_items: where their number is. */
typedef struct {
    size_t offset;
    size_t item_bytes;
    size_t min_items;
    size_t max_items;
    size_t n_items; /* offset; 0: always max_items */
} Section;

#define ONE(field)                                                                                                \
    { offsetof(MachineState, field), sizeof(((MachineState *)0)->field), 1, 1, 0 }
#define RUN(field, min, max)                                                                                      \
    {                                                                                                             \
        offsetof(MachineState, field), sizeof(((MachineState *)0)->field[0]), min, max,                           \
            offsetof(MachineState, n_##field)                                                                     \
    }

static const Section sections[] = {
    ONE(machine),
    ONE(time),
    ONE(serial),
    ONE(config),
    ONE(activity),
    ONE(regs),
    ONE(sregs),
    ONE(xcrs),
    ONE(debugregs),
    ONE(lapic),
    ONE(events),
    RUN(cpuid, 1, STATE_MAX_CPUID),
    RUN(msrs, 0, STATE_MAX_MSRS),
    RUN(xsave, STATE_MIN_XSAVE_BYTES, STATE_MAX_XSAVE_BYTES),
    {offsetof(MachineState, irqchips), sizeof(struct kvm_irqchip), STATE_IRQCHIPS, STATE_IRQCHIPS, 0},
    ONE(timer),
};
#define SECTIONS G_N_ELEMENTS(sections)

/* No padding of ours gets into the blob. */
G_STATIC_ASSERT(sizeof(StateMachine) == 16);
G_STATIC_ASSERT(sizeof(StateTime) == 24 + sizeof(struct kvm_clock_data));
G_STATIC_ASSERT(sizeof(SerialState) == 24);
G_STATIC_ASSERT(sizeof(PortsState) == 8);

/* ---- encoding -------------------------------------------------------------------------------------------- */

static size_t items_of(const MachineState *state, const Section *section) {
    uint32_t n;
    if (section->n_items == 0)
        return section->max_items;
    memcpy(&n, (const char *)state + section->n_items, sizeof(n));
    return n;
}

static void append_word(GByteArray *blob, uint32_t word) {
    g_byte_array_append(blob, (const guint8 *)&word, sizeof(word));
}

GBytes *state_encode(const MachineState *state) {
    GByteArray *blob = g_byte_array_new();
    g_byte_array_append(blob, (const guint8 *)magic, MAGIC_BYTES);
    append_word(blob, STATE_VERSION);
    append_word(blob, SECTIONS);
    for (uint32_t i = 0; i < SECTIONS; i++) {
        uint32_t length = (uint32_t)(sections[i].item_bytes * items_of(state, &sections[i]));
        append_word(blob, i + 1);
        append_word(blob, length);
        g_byte_array_append(blob, (const guint8 *)state + sections[i].offset, length);
    }
    return g_byte_array_free_to_bytes(blob);
}

/* ---- decoding -------------------------------------------------------------------------------------------- */

typedef struct {
    const uint8_t *bytes;
    size_t left;
} Input;

static const uint8_t *take(Input *input, size_t n) {
    const uint8_t *bytes = input->bytes;
    if (n > input->left)
        return NULL;
    input->bytes += n;
    input->left -= n;
    return bytes;
}

static uint32_t word_at(const uint8_t *bytes) {
    uint32_t word;
    memcpy(&word, bytes, sizeof(word));
    return word;
}

static const char *decode_head(Input *input) {
    const uint8_t *head = take(input, HEAD_BYTES);
    if (!head || memcmp(head, magic, MAGIC_BYTES) != 0)
        return "it is not the state of a microvm";
    if (word_at(head + MAGIC_BYTES) != STATE_VERSION)
        return "it is of another version";
    return word_at(head + MAGIC_BYTES + 4) == SECTIONS ? NULL : "it has another number of sections";
}

static const char *decode_section(Input *input, uint32_t index, MachineState *state) {
    const Section *section = &sections[index];
    const uint8_t *head = take(input, SECTION_BYTES);
    if (!head)
        return "it is too short";
    if (word_at(head) != index + 1)
        return "its sections are in another order";
    uint32_t length = word_at(head + 4), n = (uint32_t)(length / section->item_bytes);
    if (length % section->item_bytes != 0 || n < section->min_items || n > section->max_items)
        return "a section has another length";
    const uint8_t *bytes = take(input, length);
    if (!bytes)
        return "it is too short";
    memcpy((char *)state + section->offset, bytes, length);
    if (section->n_items)
        memcpy((char *)state + section->n_items, &n, sizeof(n));
    return NULL;
}

static gboolean machine_valid(const StateMachine *machine) {
    static const uint8_t zeros[sizeof(machine->zeros)];
    return machine->stopped <= 1 && machine->ended < STATE_END_MAX &&
           (machine->status == 0 || machine->ended == STATE_EXITED) &&
           memcmp(machine->zeros, zeros, sizeof(zeros)) == 0;
}

/* What no length tells. */
static const char *check(const MachineState *state) {
    if (!machine_valid(&state->machine))
        return "what it says of a stop or an end cannot be";
    if (!serial_state_valid(&state->serial))
        return "the serial port's queue is too long";
    if (state->time.tsc_khz == 0)
        return "its clock stands still";
    for (uint32_t i = 0; i < STATE_IRQCHIPS; i++)
        if (state->irqchips[i].chip_id != i)
            return "the interrupt controllers are in another order";
    return NULL;
}

const char *state_decode(GBytes *blob, MachineState *ret_state) {
    gsize length;
    const uint8_t *bytes = g_bytes_get_data(blob, &length);
    Input input = {bytes, length};
    g_autofree MachineState *state = g_new0(MachineState, 1);
    const char *wrong = decode_head(&input);
    for (uint32_t i = 0; i < SECTIONS && !wrong; i++)
        wrong = decode_section(&input, i, state);
    if (!wrong && input.left > 0)
        wrong = "there is more behind it";
    if (!wrong)
        wrong = check(state);
    if (!wrong)
        *ret_state = *state;
    return wrong;
}

/* ---- time ------------------------------------------------------------------------------------------------ */

uint64_t state_elapsed_ns(uint64_t then_ns, uint64_t now_ns) {
    return now_ns > then_ns && now_ns - then_ns < MOVED_NS ? now_ns - then_ns : 0;
}

uint64_t state_tsc_after(const StateTime *time, uint64_t elapsed_ns) {
    return time->tsc + (uint64_t)((unsigned __int128)elapsed_ns * time->tsc_khz / 1000000);
}
