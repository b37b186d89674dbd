/*
 * The parts of the multiboot guest, and where they lie in physical memory:
 *
 *     TRAMPOLINE_ADDRESS  start-up code of the other processors, in low memory; unused once they run
 *     1 MiB               the kernel: code, data, stacks
 *     ARENA_ADDRESS       the arena: header page, data pages; ends FIRMWARE_BYTES below the end of memory at the
 * latest
 */
#pragma once

#include "../sequence.h"

#define ARENA_ADDRESS 0x1000000u  /* 16 MiB; seqcheck --multiboot looks here */
#define ARENA_END_MAX 0xc0000000u /* devices are mapped somewhere above */
#define FIRMWARE_BYTES 0x2000000u /* SeaBIOS leaves old code of its own in the last 32 MiB, outside its map */
#define X86_PAGE_BYTES 4096u      /* what page= is by default; the processor does not care, paging is off */

/* What the command line asks for. Counts of pages may be given as a percentage. */
typedef struct {
    uint32_t size_bytes; /* 0: all there is */
    uint32_t page_bytes;
    uint32_t populate; /* pages, or per cent */
    uint32_t hot;
    bool populate_percent;
    bool hot_percent;
    bool linear;
    uint32_t batch;
    uint32_t rate; /* writes a second, 0: no limit */
    uint32_t cpus;
    uint32_t writes; /* end after so many, 0: never */
} Config;

/* ---- config.c: the command line, and the memory map --------------------------------------------------------- */

void config_parse(Config *config, const void *multiboot_info);

/* End of the usable memory that starts at ARENA_ADDRESS or below; 0 when there is none. */
uint32_t config_memory_end(const void *multiboot_info);

/* ---- serial.c: COM1, by polling. A line that nobody takes is dropped, the guest never waits for long. --------
 */

void serial_init(void);
void serial_text(const char *text);
void serial_number(const char *name, uint64_t number);
void serial_hex(const char *name, uint64_t number);
void serial_end_line(void);

/* ---- clock.c: the time stamp counter --------------------------------------------------------------------------
 */

extern uint32_t clock_khz;

/* Measure the counter against the timer chip; takes 0.1 s. */
void clock_calibrate(void);
void clock_wait_us(uint32_t us);

static inline uint64_t clock_now(void) {
    return __builtin_ia32_rdtsc();
}

/* ---- smp.c: the other processors, and sleeping until one is woken ---------------------------------------------
 */

/* Processor @cpu runs and can be woken from now on. */
void smp_join(uint32_t cpu);

/* Start the others. Return: how many processors run, at most @wanted and CPUS_MAX. */
uint32_t smp_start(uint32_t wanted);

/* Sleep until *@word is @value; smp_wake() after changing it. */
void smp_wait(const uint32_t *word, uint32_t value);
void smp_wake(uint32_t cpu);

/* ---- kernel.c -------------------------------------------------------------------------------------------------
 */

void *memset(void *place, int byte, size_t count);
void *memcpy(void *place, const void *source, size_t count);
_Noreturn void kernel_main(uint32_t magic, const void *multiboot_info);
_Noreturn void cpu_main(uint32_t cpu);

/* ---- ports ----------------------------------------------------------------------------------------------------
 */

static inline void out8(uint16_t port, uint8_t value) {
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline uint8_t in8(uint16_t port) {
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}
