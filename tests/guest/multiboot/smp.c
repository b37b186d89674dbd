/*
 * The other processors of the multiboot guest: started all at once by INIT and start-up messages of the local
 * APIC, then asleep in hlt whenever they have nothing to do, and woken by an interrupt. A guest with four
 * processors so needs one host CPU, and its interrupt state is worth saving.
 *
 * Failure mode: a processor that does not start within a second is not waited for, nor used.
 */
#include "kernel.h"

#define APIC_ADDRESS 0xfee00000u
#define APIC_ID 0x020u
#define APIC_SPURIOUS 0x0f0u
#define APIC_COMMAND_LOW 0x300u
#define APIC_COMMAND_HIGH 0x310u
#define COMMAND_PENDING (1u << 12)
#define COMMAND_INIT_OTHERS 0x000c4500u
#define COMMAND_START_OTHERS 0x000c4600u /* + page number of the code to start in */
#define START_SHIFT 12
#define WAKE_VECTOR 0x40u
#define WAIT_VECTOR 13u /* general protection: hlt is not for ring 3 */
#define SPURIOUS_VECTOR 0x4fu
#define FIRST_VECTOR 0x20u
#define CODE64_SELECTOR 0x18u
#define GATE_INTERRUPT 0x8e00u
#define SPINS 100u /* looks at the word before going to sleep */

#define CONFIG_SELECTOR 0x510
#define CONFIG_DATA 0x511
#define CONFIG_CPUS 0x05
#define START_TIMEOUT_MS 1000u

typedef struct {
    uint16_t address_low;
    uint16_t selector;
    uint16_t attributes;
    uint16_t address_middle;
    uint64_t address_high;
} Gate;

extern const char trampoline[], trampoline_end[];
extern const char wait_handler[], wake_handler[], ignore_handler[];

Gate gates[GATES]; /* boot.S points every processor here */
static uint32_t apic_ids[CPUS_MAX];
static uint32_t cpus_ready; /* atomic: without the first */

static volatile uint32_t *apic(uint32_t offset) {
    return (volatile uint32_t *)(uintptr_t)(APIC_ADDRESS + offset);
}

/* ---- each processor --------------------------------------------------------------------------------------- */

static void set_gate(uint32_t vector, const char *handler) {
    uint32_t address = (uint32_t)(uintptr_t)handler;

    gates[vector] = (Gate){(uint16_t)address, CODE64_SELECTOR, GATE_INTERRUPT, (uint16_t)(address >> 16), 0};
}

/* Let this processor be woken. */
static void enable_waking(uint32_t cpu) {
    apic_ids[cpu] = *apic(APIC_ID) >> 24;
    *apic(APIC_SPURIOUS) = 0x100u | SPURIOUS_VECTOR;
}

void smp_join(uint32_t cpu) {
    enable_waking(cpu);
    __atomic_fetch_add(&cpus_ready, 1, __ATOMIC_SEQ_CST);
}

void smp_wait(const uint32_t *word, uint32_t value) {
    for (uint32_t i = 0; i < SPINS; i++) {
        if (__atomic_load_n(word, __ATOMIC_ACQUIRE) == value)
            return;
        __builtin_ia32_pause();
    }
    while (__atomic_load_n(word, __ATOMIC_ACQUIRE) != value)
        __asm__ volatile("hlt" : : "D"(word), "S"(value) : "memory"); /* wait_handler does it */
}

static void send_command(uint32_t apic_id, uint32_t command) {
    while (*apic(APIC_COMMAND_LOW) & COMMAND_PENDING)
        __builtin_ia32_pause();
    *apic(APIC_COMMAND_HIGH) = apic_id << 24;
    *apic(APIC_COMMAND_LOW) = command;
}

void smp_wake(uint32_t cpu) {
    send_command(apic_ids[cpu], 0x4000u | WAKE_VECTOR);
}

/* ---- starting them ---------------------------------------------------------------------------------------- */

/* How many processors QEMU says there are. */
static uint32_t count_cpus(void) {
    uint32_t count;

    __asm__ volatile("outw %0, %1" : : "a"((uint16_t)CONFIG_CPUS), "Nd"((uint16_t)CONFIG_SELECTOR));
    count = in8(CONFIG_DATA);
    return count | (uint32_t)in8(CONFIG_DATA) << 8;
}

static void copy_trampoline(void) {
    char *place = (char *)TRAMPOLINE_ADDRESS;

    __asm__ volatile("" : "+r"(place)); /* low memory is an object of no C program */
    for (uint32_t i = 0; trampoline + i < trampoline_end; i++)
        place[i] = trampoline[i];
}

static void start_others(uint32_t others) {
    uint32_t waited_ms = 0;

    copy_trampoline();
    send_command(0, COMMAND_INIT_OTHERS);
    clock_wait_us(10000);
    send_command(0, COMMAND_START_OTHERS | TRAMPOLINE_ADDRESS >> START_SHIFT);
    while (__atomic_load_n(&cpus_ready, __ATOMIC_ACQUIRE) < others && waited_ms++ < START_TIMEOUT_MS)
        clock_wait_us(1000);
}

uint32_t smp_start(uint32_t wanted) {
    uint32_t cpus = count_cpus();
    uint32_t others = (cpus < CPUS_MAX ? cpus : CPUS_MAX) - 1, ready;

    out8(0x21, 0xff); /* the old interrupt controllers stay silent */
    out8(0xa1, 0xff);
    for (uint32_t vector = FIRST_VECTOR; vector < GATES; vector++)
        set_gate(vector, ignore_handler);
    set_gate(WAKE_VECTOR, wake_handler);
    set_gate(WAIT_VECTOR, wait_handler);
    enable_waking(0);
    if (others)
        start_others(others);
    ready = 1 + __atomic_load_n(&cpus_ready, __ATOMIC_ACQUIRE);
    return wanted < 1 ? 1 : wanted < ready ? wanted : ready;
}
