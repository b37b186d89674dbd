/* See serial.h. Register names are those of the 16550's data sheet. */
#include "serial.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

enum { DATA, INTERRUPTS, QUEUEING, LINE, MODEM, LINE_STATUS, MODEM_STATUS, SCRATCH };
enum { LINE_DIVISOR = 0x80 };                                 /* LCR: the first two ports are the divisor */
enum { QUEUEING_ON = 0x01, QUEUEING_EMPTY_OUT = 0x04 };       /* FCR */
enum { STATUS_QUEUE_EMPTY = 0x20, STATUS_ALL_SENT = 0x40 };   /* LSR */
enum { NO_INTERRUPT = 0x01, QUEUES_ARE_ON = 0xc0 };           /* IIR */
enum { CARRIER = 0x80, DATA_SET_READY = 0x20, CLEAR = 0x10 }; /* MSR */

void serial_init(Serial *serial, int fd) {
    *serial = (Serial){.fd = fd, .state = {.divisor = {12, 0}}};
}

/* ---- to the reader --------------------------------------------------------------------------------------- */

/* Asked before each write, as the descriptor may be shared with programs that want it to block. */
static bool reader_is_ready(int fd) {
    struct pollfd poll_fd = {.fd = fd, .events = POLLOUT};
    return poll(&poll_fd, 1, 0) > 0;
}

static void take_out(SerialState *state, size_t n) {
    state->n_queued = (uint8_t)(state->n_queued - n);
    memmove(state->queue, state->queue + n, state->n_queued);
}

static void send_queued(Serial *serial) {
    SerialState *state = &serial->state;
    if (state->n_queued == 0)
        return;
    if (serial->fd < 0) {
        state->n_queued = 0;
        return;
    }
    if (!reader_is_ready(serial->fd))
        return;
    ssize_t n = write(serial->fd, state->queue, state->n_queued);
    if (n >= 0)
        take_out(state, (size_t)n);
    else if (errno != EAGAIN && errno != EINTR)
        serial->fd = -1; /* what is queued goes with the next byte */
}

static void send(Serial *serial, const uint8_t *bytes, size_t n) {
    SerialState *state = &serial->state;
    size_t room = state->queueing & QUEUEING_ON ? SERIAL_QUEUE_BYTES : 1;
    for (size_t i = 0; i < n; i++) {
        if (state->n_queued >= room)
            send_queued(serial);
        if (state->n_queued < room)
            state->queue[state->n_queued++] = bytes[i];
    }
    send_queued(serial);
}

/* ---- the registers --------------------------------------------------------------------------------------- */

static uint8_t line_status(Serial *serial) {
    send_queued(serial);
    return serial->state.n_queued == 0 ? STATUS_QUEUE_EMPTY | STATUS_ALL_SENT : 0;
}

uint8_t serial_read(Serial *serial, unsigned offset) {
    const SerialState *state = &serial->state;
    bool divisor = state->line & LINE_DIVISOR;
    switch (offset) {
    case DATA:
        return divisor ? state->divisor[0] : 0;
    case INTERRUPTS:
        return divisor ? state->divisor[1] : state->interrupts;
    case QUEUEING:
        return state->queueing & QUEUEING_ON ? NO_INTERRUPT | QUEUES_ARE_ON : NO_INTERRUPT;
    case LINE:
        return state->line;
    case MODEM:
        return state->modem;
    case LINE_STATUS:
        return line_status(serial);
    case MODEM_STATUS:
        return CARRIER | DATA_SET_READY | CLEAR;
    case SCRATCH:
        return state->scratch;
    default:
        return 0xff;
    }
}

static void set_queueing(SerialState *state, uint8_t value) {
    if (value & QUEUEING_EMPTY_OUT)
        state->n_queued = 0;
    state->queueing = value & QUEUEING_ON;
}

static void write_one(Serial *serial, unsigned offset, uint8_t value) {
    SerialState *state = &serial->state;
    switch (offset) {
    case DATA: /* of the divisor, or it would not have come here */
    case INTERRUPTS:
        if (state->line & LINE_DIVISOR)
            state->divisor[offset] = value;
        else
            state->interrupts = value & 0x0f;
        break;
    case QUEUEING:
        set_queueing(state, value);
        break;
    case LINE:
        state->line = value;
        break;
    case MODEM:
        state->modem = value & 0x1f;
        break;
    case SCRATCH:
        state->scratch = value;
        break;
    default: /* the others cannot be written */
        break;
    }
}

void serial_write(Serial *serial, unsigned offset, const uint8_t *bytes, size_t n) {
    if (offset == DATA && !(serial->state.line & LINE_DIVISOR)) {
        send(serial, bytes, n);
        return;
    }
    for (size_t i = 0; i < n; i++)
        write_one(serial, offset, bytes[i]);
}

bool serial_state_valid(const SerialState *state) {
    return state->n_queued <= SERIAL_QUEUE_BYTES;
}
