/*
 * COM1 of a microvm: what a guest that prints by polling sees of a 16550.
 *
 * Happy path: what the guest sends is queued and written to a descriptor at once; the line status says that there
 * is room again when it was taken.
 *
 * Failure modes: a reader that takes nothing leaves the queue full, the guest sees that, and what it sends
 * nevertheless is lost, as on the wire. The guest's processor never waits for a reader. A descriptor that fails
 * takes everything from then on, and throws it away.
 *
 * It raises no interrupts and receives nothing. Threads: one at a time.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SERIAL_PORT 0x3f8
#define SERIAL_PORTS 8
#define SERIAL_QUEUE_BYTES 16u

/* Its registers, and what nobody has taken yet: a part of the guest's state, as bytes. */
typedef struct {
    uint8_t interrupts; /* IER */
    uint8_t queueing;   /* FCR, less what the hardware does not keep */
    uint8_t line;       /* LCR */
    uint8_t modem;      /* MCR */
    uint8_t scratch;    /* SCR */
    uint8_t divisor[2]; /* DLL, DLM */
    uint8_t n_queued;   /* at most SERIAL_QUEUE_BYTES */
    uint8_t queue[SERIAL_QUEUE_BYTES];
} SerialState;

typedef struct {
    int fd; /* (borrow) -1: nobody reads, and all is taken */
    SerialState state;
} Serial;

/* As after a reset. */
void serial_init(Serial *serial, int fd);

/* @offset: of the port, below SERIAL_PORTS. */
uint8_t serial_read(Serial *serial, unsigned offset);
/* @n bytes, one after another, to one port. */
void serial_write(Serial *serial, unsigned offset, const uint8_t *bytes, size_t n);

/* Whether such a state can be. */
bool serial_state_valid(const SerialState *state);
