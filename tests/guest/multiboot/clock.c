/*
 * Time in the multiboot guest: the time stamp counter, its frequency measured once against channel 2 of the timer
 * chip. A restored guest may see the counter jump either way; whoever takes a difference allows for that.
 */
#include "kernel.h"

#define TIMER_HZ 1193182u
#define CALIBRATE_MS 20u
#define MEASUREMENTS 4u
#define TIMER_COUNT (TIMER_HZ / 1000 * CALIBRATE_MS)
#define TIMER_COMMAND 0x43
#define TIMER_CHANNEL_2 0x42
#define SPEAKER 0x61
#define SPEAKER_GATE 0x01
#define SPEAKER_ON 0x02
#define SPEAKER_OUTPUT 0x20

uint32_t clock_khz = 1000000;

/* Cycles that the timer takes to run down, or more if the host looks the other way meanwhile. */
static uint64_t measure(void) {
    uint64_t start;

    out8(SPEAKER, (uint8_t)((in8(SPEAKER) & ~SPEAKER_ON) | SPEAKER_GATE));
    out8(TIMER_COMMAND, 0xb0); /* channel 2, both bytes, output rises at zero */
    out8(TIMER_CHANNEL_2, TIMER_COUNT & 0xff);
    out8(TIMER_CHANNEL_2, TIMER_COUNT >> 8);
    start = clock_now();
    while (!(in8(SPEAKER) & SPEAKER_OUTPUT))
        ;
    return clock_now() - start;
}

void clock_calibrate(void) {
    uint64_t shortest = UINT64_MAX;

    for (uint32_t i = 0; i < MEASUREMENTS; i++) {
        uint64_t cycles = measure();
        if (cycles < shortest)
            shortest = cycles;
    }
    clock_khz = (uint32_t)(shortest / CALIBRATE_MS);
    if (!clock_khz)
        clock_khz = 1;
}

void clock_wait_us(uint32_t us) {
    uint64_t start = clock_now(), wait = (uint64_t)clock_khz * us / 1000;

    while (clock_now() - start < wait)
        __builtin_ia32_pause();
}
