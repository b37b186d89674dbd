/*
 * COM1 of the multiboot guest: 115200 8N1, by polling. Text is gathered in a line and sent sixteen bytes, a full
 * transmit queue, at a time.
 *
 * Failure mode: when the other end takes nothing for a while the rest of the line is dropped, and so are later
 * ones until it does again. The guest goes on.
 */
#include "kernel.h"

#define COM1 0x3f8
#define LINE_STATUS (COM1 + 5)
#define QUEUE_EMPTY 0x20
#define QUEUE_BYTES 16u
#define PATIENCE_US 20000u
#define LINE_BYTES 200u

static char line[LINE_BYTES];
static uint32_t length;
static bool stuck; /* nobody took the last line */

void serial_init(void) {
    out8(COM1 + 1, 0x00); /* no interrupts */
    out8(COM1 + 3, 0x80); /* divisor latch */
    out8(COM1 + 0, 1);
    out8(COM1 + 1, 0);
    out8(COM1 + 3, 0x03); /* 8N1 */
    out8(COM1 + 2, 0x07); /* queues on and empty */
    out8(COM1 + 4, 0x03);
}

static bool queue_is_empty(void) {
    return in8(LINE_STATUS) & QUEUE_EMPTY;
}

/* Return: whether bytes can be sent now. */
static bool wait_for_queue(void) {
    uint64_t start = clock_now(), patience = (uint64_t)clock_khz * (PATIENCE_US / 1000);

    while (!queue_is_empty())
        if (stuck || clock_now() - start > patience)
            return false;
    return true;
}

static void send(const char *bytes, uint32_t count) {
    __asm__ volatile("rep outsb" : "+S"(bytes), "+c"(count) : "d"(COM1) : "memory");
}

static void append(char byte) {
    if (length < LINE_BYTES)
        line[length++] = byte;
}

void serial_text(const char *text) {
    while (*text)
        append(*text++);
}

void serial_number(const char *name, uint64_t number) {
    char digits[20];
    uint32_t count = 0;

    serial_text(name);
    do {
        digits[count++] = (char)('0' + number % 10);
        number /= 10;
    } while (number);
    while (count)
        append(digits[--count]);
}

void serial_hex(const char *name, uint64_t number) {
    static const char digits[] = "0123456789abcdef";
    int shift = 60;

    serial_text(name);
    serial_text("0x");
    while (shift && !(number >> shift & 15))
        shift -= 4;
    for (; shift >= 0; shift -= 4)
        append(digits[number >> shift & 15]);
}

void serial_end_line(void) {
    uint32_t sent = 0;

    append('\n');
    line[length - 1] = '\n';
    while (sent < length && wait_for_queue()) {
        uint32_t count = length - sent < QUEUE_BYTES ? length - sent : QUEUE_BYTES;
        send(line + sent, count);
        sent += count;
    }
    stuck = sent < length;
    length = 0;
}
